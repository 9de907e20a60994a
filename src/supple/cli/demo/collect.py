"""From run folders to what the page is drawn from: curves, dead units, memory of earlier tasks, spectra."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from supple.cli.demo.arms import Cast
from supple.report import Arm, Spread, Story

if TYPE_CHECKING:
    from supple.bench.protocols import Protocol
    from supple.bench.spec import RunSpec
    from supple.diagnose import DiagnosisReport
    from supple.store.read import StoredRun


def story(
    protocol: Protocol,
    root: Path,
    cast: Sequence[Cast],
    seeds: tuple[int, ...],
    worn: Sequence[DiagnosisReport],
    fresh: Sequence[DiagnosisReport],
    command: str,
) -> Story:
    """Everything the page shows, from finished run folders."""
    from supple import store

    found = [arm(protocol, root, c, seeds) for c in cast]
    plain = next(c for c in cast if c.role == "worn")
    first = store.load(specs_of(protocol, plain, seeds)[0].folder(root))
    return Story(
        setting=protocol.name,
        stream=f"{protocol.title}: {protocol.description}",
        tasks=protocol.tasks,
        seeds=seeds,
        window=window(protocol),
        arms=tuple(found),
        worn=tuple(worn),
        fresh=tuple(fresh),
        spectra=spectra(first, protocol),
        facts=facts(protocol, seeds),
        command=command,
    )


def window(protocol: Protocol) -> int:
    """A tenth of the tasks, at least one."""
    return max(1, protocol.tasks // 10)


def specs_of(protocol: Protocol, cast: Cast, seeds: Sequence[int]) -> list[RunSpec]:
    from supple.cli.demo.story import specs

    return specs(protocol, [cast], seeds)


def arm(protocol: Protocol, root: Path, cast: Cast, seeds: Sequence[int]) -> Arm:
    """One method over the seeds."""
    from supple import store
    from supple.bench.kept import stability

    specs = specs_of(protocol, cast, seeds)
    runs = [store.load(spec.folder(root)) for spec in specs]
    measured = specs[0].measured()
    dead = [dead_units(run, measured) for run in runs]
    return Arm(
        key=cast.method,
        title=cast.title,
        role=cast.role,
        settings=cast.words(),
        online=tuple(tuple(run.records.select(instrument="online_accuracy").values()) for run in runs),
        dead=tuple(dead) if any(not math.isnan(v) for seed in dead for v in seed) else (),
        dead_tasks=tuple(i + 1 for i in measured),
        stability=tuple(stability(run.records) for run in runs),
    )


def dead_units(run: StoredRun, measured: Sequence[int]) -> tuple[float, ...]:
    """Pooled share of dead units after each measured task; NaN where it was not measured."""
    values = {
        r.task: r.value for r in run.records.select(instrument="dead", layer="*") if r.status == "measured"
    }
    return tuple(values.get(f"task-{i}", math.nan) for i in measured)


def spectra(run: StoredRun, protocol: Protocol) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Singular values of every matrix after the first and after the last task."""
    early, late = run.arrays("task-0"), run.arrays(f"task-{protocol.tasks - 1}")
    names = [k for k in early if k.startswith("spectrum/") and k in late]
    order = sorted(names, key=lambda k: (k.endswith("head"), k))
    return {
        k.removeprefix("spectrum/"): (
            tuple(float(v) for v in early[k].flatten()),
            tuple(float(v) for v in late[k].flatten()),
        )
        for k in order
    }


def progress_lines(protocol: Protocol, root: Path, cast: Sequence[Cast], seeds: Sequence[int]) -> list[str]:
    """One line a method: how well it learned at first and at last."""
    from supple import store

    w, lines = window(protocol), []
    for c in cast:
        runs = [store.load(s.folder(root)) for s in specs_of(protocol, c, seeds)]
        online = tuple(tuple(r.records.select(instrument="online_accuracy").values()) for r in runs)
        a = Arm(c.method, c.title, c.role, online=online)
        lines.append(f"  {c.title:<28} {_short(a.early(w))} → {_short(a.late(w))} online accuracy")
    return lines


def _short(spread: Spread) -> str:
    return f"{spread.mean:.3f}"


def facts(protocol: Protocol, seeds: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """Versions and settings; nothing that differs between two equal runs on one machine."""
    import supple

    values = protocol.to_dict()
    shown = ("optimizer", "lr", "batch", "epochs", "hidden")
    return (
        ("supple", supple.__version__),
        ("torch", torch.__version__),
        ("python", platform.python_version()),
        ("protocol", protocol.name),
        *((name, str(values[name])) for name in shown),
        ("tasks", str(protocol.tasks)),
        ("seeds", ", ".join(map(str, seeds))),
        ("data", "scikit-learn's digits (UCI optical recognition of handwritten digits), bundled"),
    )
