"""kill -9 of a runner or its workers at random moments: started again, the results are the same to the last byte.

`supple bench run` computes a list of runs; at random moments the runner alone, one of its workers, or all of them are
killed, and the command is started again until it has ended by itself and the wanted number of kills is reached (a
finished folder is begun anew). Records, arrays, summaries and the last checkpoint of every run must be those of an
undisturbed command.

    python benchmarks/kill_moments.py --kills 50
    python benchmarks/kill_moments.py --kills 50 --engine cohort --json out.json

Exit status 1 where a byte differs. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

METHODS = {"loop": "plain,fresh,cbp,shrink_perturb", "cohort": "plain,fresh,l2init,cchain"}
VICTIMS = ("runner", "worker", "all")


def command(out: Path, engine: str) -> list[str]:
    return [
        sys.executable, "-m", "supple", "bench", "run", "digits-permuted", "--preset", "demo", "--tasks", "6",
        "--methods", METHODS[engine], "--seeds", "2", "--measure-every", "2", "--engine", engine, "--workers", "2",
        "--out", str(out),
    ]  # fmt: skip


def start(out: Path, engine: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(out, engine), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def children(pid: int) -> list[int]:
    """Living children of a process, without the helper that multiprocessing keeps."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(c) for c in listed if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
    except OSError:
        return []


def strike(process: subprocess.Popen[bytes], draw: random.Random) -> str | None:
    """Kill by chance the runner, a worker, or all; what was killed, None where there was no worker yet to kill."""
    victim, workers = draw.choice(VICTIMS), children(process.pid)
    if victim == "worker" and not workers:
        return None
    for pid in {"runner": [process.pid], "worker": workers[:1], "all": [process.pid, *workers]}[victim]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None  # it ended by itself just now
    return victim


def content(root: Path) -> dict[str, bytes]:
    """What must be equal, by path; of the checkpoints the last."""
    kept = [p for name in ("records.jsonl", "summary.json", "*.safetensors") for p in root.rglob(name)]
    last = {p.parent: p for p in sorted(kept) if p.parent.name == "checkpoints"}
    kept = [p for p in kept if p.parent.name != "checkpoints"] + list(last.values())
    return {str(p.relative_to(root)): p.read_bytes() for p in kept}


def until_done(out: Path, engine: str, draw: random.Random, wanted: int, longest: float) -> Counter[str]:
    """Kill and start again until the command has ended by itself; after ``wanted`` kills it is left alone."""
    killed: Counter[str] = Counter()
    process = start(out, engine)
    while True:
        quiet = killed.total() >= wanted
        try:
            code = process.wait(None if quiet else draw.uniform(0.0, longest))
        except subprocess.TimeoutExpired:
            if victim := strike(process, draw):
                killed[victim] += 1
            if victim in ("runner", "all"):
                process.wait()
                process = start(out, engine)
            continue
        if code != 0:
            sys.exit(f"the command ended with {code}: {process.stderr.read().decode()}")  # pyrefly: ignore
        return killed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--engine", choices=list(METHODS), default="loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    draw, killed, rounds, wrong = random.Random(given.seed), Counter[str](), 0, list[str]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        began = time.monotonic()
        subprocess.run(command(root / "calm", given.engine), check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)  # fmt: skip
        longest = time.monotonic() - began
        calm = content(root / "calm")
        while killed.total() < given.kills:
            shutil.rmtree(root / "killed", ignore_errors=True)
            left = given.kills - killed.total()
            killed += until_done(root / "killed", given.engine, draw, left, longest)
            rounds += 1
            found = content(root / "killed")
            wrong += [p for p in calm.keys() | found.keys() if calm.get(p) != found.get(p)]
    result = {
        "kills": dict(killed), "total": killed.total(), "times finished": rounds, "files": len(calm),
        "longest wait, s": round(longest, 1), "wrong": sorted(wrong),
    }  # fmt: skip
    print(json.dumps(result))
    if given.json:
        given.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
