"""The entry: parse, run, and turn what went wrong into one message and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

COULD_NOT_RUN = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``supple`` with these arguments (default: the process's own) and return the exit status."""
    # One thread a process: small networks get slower with more (workers are processes).
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from supple.errors import SuppleError

    try:
        command = parse(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else COULD_NOT_RUN
    try:
        return command.run()
    except SuppleError as error:
        return refuse(str(error))
    except (OSError, MemoryError) as error:
        # The disk, the memory: not the user's input, yet nothing that a traceback would explain.
        return refuse(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        refuse("interrupted; start the same command again to go on")
        return INTERRUPTED


def refuse(message: str) -> int:
    """One line on stderr, exit status 2."""
    print(f"supple: {' '.join(message.split())}", file=sys.stderr)
    return COULD_NOT_RUN


def parse(argv: Sequence[str] | None) -> Any:
    """The command object for these arguments; exits as argparse does on ``--help`` and on bad options."""
    from typing import Annotated

    import tyro

    from supple.cli.bench import BenchList, BenchRun
    from supple.cli.bench_report import BenchReport
    from supple.cli.demo import Demo
    from supple.cli.diagnose import Diagnose
    from supple.cli.experiments import BenchFit
    from supple.cli.report import Report
    from supple.cli.scan import Scan
    from supple.cli.tune import BenchTune

    sub, positional = tyro.conf.subcommand, tyro.conf.PositionalRequiredArgs
    bench = (
        Annotated[BenchList, sub("list")]
        | Annotated[positional[BenchRun], sub("run")]
        | Annotated[positional[BenchReport], sub("report")]
        | Annotated[positional[BenchFit], sub("fit")]
        | Annotated[positional[BenchTune], sub("tune")]
    )
    commands = (
        Annotated[Demo, sub("demo")]
        | Annotated[Diagnose, sub("diagnose")]
        | Annotated[positional[Scan], sub("scan")]
        | Annotated[
            bench, sub("bench", description="Compare methods on protocols: list, run, report, fit, tune.")
        ]
        | Annotated[positional[Report], sub("report")]
    )
    return tyro.cli(
        commands,
        args=list(argv) if argv is not None else None,
        prog="supple",
        description="Measure, explain, repair and prove: loss of plasticity in PyTorch networks.",
        config=(
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.CascadeSubcommandArgs,
        ),
    )
