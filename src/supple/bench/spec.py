"""One run: a protocol, a method, a seed, and what is measured on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from supple.bench import methods, protocols
from supple.bench.protocols import Protocol
from supple.errors import InputError

#: what runs of earlier versions had, whose protocol does not name it
ONCE: Mapping[str, Any] = {"labels": "sorted", "widths": (32, 64, 128)}
#: time of a slot in a cohort over time of the same run in the loop, about; for estimates of the time left
COHORT_COST = 0.2


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What identifies a run. Everything but ``checkpoint_every`` decides its records.

    Args:
        protocol, method, seed: the run.
        settings: hyper-parameters of the method's intervention that override all defaults.
        measure_every: measure at the end of every k-th task, the first and the last; 0: never.
        instruments: which bundle `supple.observe.observe` takes at most measured tasks.
        edge_instruments: which it takes at the first and last measured task, whose arrays are kept.
        probe: samples of the task's data that are measured on.
        checkpoint_every: tasks between checkpoints.
        engine: "loop", or "cohort" for a run that is computed as one slot of a stack (`supple.bench.cohort`).
            The two agree within rounding, not bit for bit, so a run belongs to one of them.
    """

    protocol: Protocol
    method: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    measure_every: int = 0
    instruments: str = "economy"
    edge_instruments: str = "standard"
    probe: int = 256
    checkpoint_every: int = 10
    engine: Literal["loop", "cohort"] = "loop"

    def __post_init__(self) -> None:
        methods.get(self.method)
        for name in ("probe", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", found=getattr(self, name))
        if self.measure_every < 0 or self.seed < 0:
            raise InputError(
                "seed and measure_every cannot be negative", found=(self.seed, self.measure_every)
            )

    @property
    def label(self) -> str:
        return f"{self.protocol.label}/{self.method}/seed-{self.seed}"

    @property
    def cost(self) -> float:
        """Expected seconds, in units of one plain task of the protocol."""
        share = COHORT_COST if self.engine == "cohort" else 1.0
        return self.protocol.tasks * methods.get(self.method).cost * share

    def folder(self, root: str | Path) -> Path:
        return Path(root) / self.protocol.label / self.method / f"seed-{self.seed}"

    def manifest(self) -> dict[str, Any]:
        """Plain types; two specs with equal manifests have equal records."""
        method, settings = methods.get(self.method), self.method_settings
        return {
            "engine": self.engine,
            "protocol": self.protocol.to_dict(),
            "method": self.method,
            "intervention": method.kind(settings),
            "method_settings": settings,
            "seed": self.seed,
            "measure_every": self.measure_every,
            "instruments": self.instruments,
            "edge_instruments": self.edge_instruments,
            "probe": self.probe,
        }

    @property
    def method_settings(self) -> dict[str, Any]:
        """The method's settings in this protocol; "lr" among them is a learning rate of its own."""
        return methods.get(self.method).settings_in(self.protocol, self.settings)

    @property
    def taught(self) -> Protocol:
        """The protocol with the learning rate of the method, as a learner takes it."""
        return dataclasses.replace(self.protocol, lr=self.method_settings.get("lr", self.protocol.lr))

    def measured(self) -> list[int]:
        """Indices of the tasks after which the network is measured."""
        if not self.measure_every:
            return []
        last = self.protocol.tasks - 1
        return sorted({0, *range(self.measure_every - 1, last, self.measure_every), last})


def grid(
    protocol: str | Protocol, names: list[str], seeds: list[int], *, preset: str = "demo", **options: Any
) -> list[RunSpec]:
    """Methods × seeds of one protocol as a run list; seeds vary slowest, so that pairs fill up early.

    >>> [s.label for s in grid("digits-permuted", ["plain"], [0, 1])]
    ['digits-permuted/plain/seed-0', 'digits-permuted/plain/seed-1']
    """
    if isinstance(protocol, str):
        protocol = protocols.create(protocol, preset)
    return [RunSpec(protocol=protocol, method=n, seed=s, **options) for s in seeds for n in names]


def different(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first setting in which two descriptions of a protocol differ, in words; empty where they agree.

    A setting that only one of them names is none: runs of earlier versions lack what was added since. But for what
    is known of them.

    >>> different({"tasks": 3, "lr": 0.1}, {"tasks": 4, "batch": 8})
    'tasks 3 and 4'
    >>> different({"tasks": 3}, {"tasks": 3, "labels": "drawn"})
    'labels sorted and drawn'
    """
    for key in sorted(one.keys() | other.keys()):
        if key not in ONCE and not (key in one and key in other):
            continue
        a, b = (side.get(key, ONCE.get(key)) for side in (one, other))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if inside := different(a, b):
                return f"{key}: {inside}"
        elif a != b:
            return f"{key} {a} and {b}"
    return ""
