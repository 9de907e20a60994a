"""Runs of the loop engine that are killed at random times until they finish. A script that forks.

    python -m tests.bench.killing ROOT KILLS METHOD...

Prints one JSON line: kills, runs, and the runs whose content differs from an undisturbed one's.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from supple.bench import RunSpec, run

from .tiny import content, tiny, weigh


def killed_until_done(spec: RunSpec, root: Path, draw: random.Random) -> int:
    """How many kills it took."""
    kills = 0
    while True:
        pid = os.fork()
        if pid == 0:
            run(spec, root, measure=weigh)
            os._exit(0)
        # a busy machine gives a child more time with every kill, so that each run ends
        time.sleep(draw.uniform(0.0, 0.3 + 0.03 * kills))
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            return kills
        assert status == -signal.SIGKILL, status
        kills += 1


def main() -> None:
    root, wanted, methods = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    draw, kills, runs, wrong = random.Random(0), 0, 0, []
    for name in methods:  # all that torch imports on first use, so that no child spends its life importing
        run(tiny(tasks=1, method=name), root / "warm", measure=weigh)
    while kills < wanted or runs < len(methods):
        spec = tiny(tasks=12, method=methods[runs % len(methods)], seed=runs, measure_every=3)
        kills += killed_until_done(spec, root / "killed", draw)
        runs += 1
        if content(spec.folder(root / "killed")) != content(run(spec, root / "calm", measure=weigh)):
            wrong.append(spec.label)
    print(json.dumps({"kills": kills, "runs": runs, "wrong": wrong}))


if __name__ == "__main__":
    main()
