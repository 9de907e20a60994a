"""The order of events of the demo, each of which is skipped when its result is on disk already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from supple.cli.console import Progress, wrap
from supple.cli.demo import arms, collect
from supple.cli.demo.arms import Cast
from supple.cli.demo.patients import diagnose_all, patients
from supple.cli.train import train

if TYPE_CHECKING:
    from supple.bench.protocols import Protocol
    from supple.bench.spec import RunSpec
    from supple.diagnose import DiagnosisReport
    from supple.report import Story

#: how often the networks are looked at: about this many times in a run
LOOKS = 30
#: the methods whose runs take longest, longest first
LONG = ("cchain", "cbp", "regrama", "fresh", "plain")


def tell(
    protocol: Protocol,
    root: Path,
    *,
    seeds: tuple[int, ...],
    workers: int,
    budget: float,
    command: str,
    say: Callable[[str], None],
) -> Story:
    """Train, diagnose, repair, collect; returns what the page is drawn from."""
    say(wrap(f"{protocol.title}: {protocol.description}."))
    say(f"{protocol.tasks} tasks, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}; results in")
    say(f"  {root}")
    cast = arms.before()
    train("1/3 training", specs(protocol, cast, seeds), root, workers)
    for line in collect.progress_lines(protocol, root, cast, seeds):
        say(line)
    worn, fresh = diagnose(protocol, root, seeds, workers, budget)
    say("")
    say(str(worn[0]))
    more = arms.after(worn)
    say("")
    say(wrap(announce(more)))
    train("3/3 repairing", specs(protocol, more, seeds), root, workers)
    cast += more
    for line in collect.progress_lines(protocol, root, more, seeds):
        say(line)
    return collect.story(protocol, root, cast, seeds, worn, fresh, command)


def specs(protocol: Protocol, cast: Sequence[Cast], seeds: Sequence[int]) -> list[RunSpec]:
    """One run for each arm and seed, the longest runs first: no core waits for the last one."""
    from supple.bench import RunSpec, with_engine

    order = sorted(cast, key=lambda c: LONG.index(c.method) if c.method in LONG else len(LONG))

    runs = [
        RunSpec(
            protocol=protocol,
            method=c.method,
            seed=seed,
            settings=dict(c.settings),
            measure_every=max(1, protocol.tasks // LOOKS),
        )
        for c in order
        for seed in seeds
    ]
    return with_engine(runs, "auto")


def diagnose(
    protocol: Protocol, root: Path, seeds: Sequence[int], workers: int, budget: float
) -> tuple[list[DiagnosisReport], list[DiagnosisReport]]:
    """The worn networks and the controls."""
    runs = {s.seed: s.folder(root) for s in specs(protocol, [Cast("worn", "plain")], seeds)}
    worn, fresh = patients(protocol, root, runs, budget)
    with Progress("2/3 diagnosing") as bar:
        found = diagnose_all([*worn, *fresh], workers, bar.update)
    return found[: len(worn)], found[len(worn) :]


def announce(cast: Sequence[Cast]) -> str:
    """What is tried, and why."""
    roles = {
        "prescribed": "what the diagnosis prescribes",
        "famous": "the famous fix",
        "mismatched": "a fix for another mechanism, fixed beforehand",
    }
    parts = [f"{c.title}{f' ({c.words()})' if c.settings else ''}, {roles[c.role]}" for c in cast]
    if all(c.role != "prescribed" for c in cast):
        parts.insert(0, "nothing is prescribed")
    return "On the same stream: " + "; ".join(parts) + "."
