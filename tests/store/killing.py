"""A run that is killed and started again until it is finished. A script that forks: torch is imported once.

    python killing.py calls ROOT      kill at the n-th file operation, for every n of the run
    python killing.py times ROOT N    kill after a random time, N kills in all

Prints one JSON line: how many kills, and the folders whose result differs from the undisturbed run's.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from supple.records import Record
from supple.store import Run, load

STEPS, EVERY = 24, 5


def train(folder: Path, pause: float = 0.0) -> None:
    """A stand-in for training: a recurrence whose every bit depends on all steps before."""
    with Run.open(folder, {"kind": "killing", "steps": STEPS}) as run:
        if run.done:
            return
        state = run.resume() or {"step": 0, "x": torch.ones(3), "pair": (1, 0.5)}
        step, x = state["step"], state["x"]
        while step < STEPS:
            if step % EVERY == 0 and step:
                run.checkpoint({"step": step, "x": x, "pair": (step, 0.5)})
            x = torch.sin(3.0 * x + step)
            run.append(Record("x", float(v), step=step, layer=f"unit{i}") for i, v in enumerate(x))
            if step == 13:
                run.arrays("middle", {"x": x})
            step += 1
            time.sleep(pause)
        run.checkpoint({"step": step, "x": x, "pair": (step, 0.5)})
        run.finish({"total": float(x.sum())})


def fingerprint(folder: Path) -> str:
    """Everything but times.jsonl, as one hash."""
    stored = load(folder)
    parts = [(folder / "records.jsonl").read_bytes(), (folder / "summary.json").read_bytes()]
    parts.append(stored.state()["x"].numpy().tobytes())
    parts.append(stored.arrays("middle")["x"].numpy().tobytes())
    leftovers = [p.name for p in folder.rglob("*.tmp")]
    return hashlib.sha256(b"|".join(parts)).hexdigest() + "".join(leftovers)


def kill_at(operation: int) -> None:
    """SIGKILL this process at its n-th write, sync, rename or truncation; a write is made half way first."""
    count = 0

    def wrap(name: str) -> None:
        original = getattr(os, name)

        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count == operation:
                if name == "write":
                    original(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(os, name, counted)

    for name in ("write", "fsync", "replace", "ftruncate", "unlink"):
        wrap(name)


def forked(work) -> int:
    """Run ``work`` in a child process; its exit status (-9 when killed)."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_calls(root: Path) -> list[Path]:
    """One folder for each operation of the run: killed there, then started again."""
    folders = []
    for operation in range(1, 100_000):
        folder = root / f"call-{operation}"
        status = forked(lambda f=folder, n=operation: (kill_at(n), train(f)))
        if status == 0:
            return folders
        assert status == -signal.SIGKILL, status
        # and once more in the middle of the way back
        again = forked(lambda f=folder, n=operation: (kill_at(1 + n % 7), train(f)))
        assert again in (0, -signal.SIGKILL), again
        assert forked(lambda f=folder: train(f)) == 0
        folders.append(folder)
    raise AssertionError("the run never ended")


def at_times(root: Path, kills: int) -> tuple[list[Path], int]:
    """Runs that are killed after random times until ``kills`` kills are reached."""
    draw, done, folders = random.Random(0), 0, []
    while done < kills:
        folder = root / f"time-{len(folders)}"
        folders.append(folder)
        while True:
            pid = os.fork()
            if pid == 0:
                train(folder, pause=0.002)
                os._exit(0)
            time.sleep(draw.uniform(0.0, 0.12))
            os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status == 0:
                break
            assert status == -signal.SIGKILL, status
            done += 1
    return folders, done


def main() -> None:
    torch.set_num_threads(1)
    mode, root = sys.argv[1], Path(sys.argv[2])
    train(root / "undisturbed")
    if mode == "calls":
        folders = at_calls(root)
        kills = len(folders)
    else:
        folders, kills = at_times(root, int(sys.argv[3]))
    expected = fingerprint(root / "undisturbed")
    wrong = [f.name for f in folders if fingerprint(f) != expected]
    print(json.dumps({"kills": kills, "runs": len(folders), "wrong": wrong}))


if __name__ == "__main__":
    main()
