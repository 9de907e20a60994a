"""The registry of instruments: name, cost, what it needs, which records it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from supple.errors import InputError
from supple.records import Record

if TYPE_CHECKING:
    from supple.observe.probe import Probe

Cost: TypeAlias = Literal["economy", "standard", "full", "training"]
Need: TypeAlias = Literal["outputs", "units", "gradients", "weights", "copy"]
#: each contains the cheaper ones; what trains copies for seconds is in none and is asked for by name
BUNDLES: tuple[Cost, ...] = ("economy", "standard", "full")


@dataclass(frozen=True)
class Instrument:
    """A named measurement on one probe pass.

    ``records`` are the names of the rows it writes, in each of which an impossible value is a row with a
    status and a reason. ``needs`` say what must be valid: nothing, or ``"weights"`` alone, can be read
    without a probe.
    ``minimum`` is the number of probe samples below which nothing is measured.
    """

    name: str
    cost: Cost
    needs: frozenset[Need]
    minimum: int
    records: tuple[str, ...]
    measure: Callable[[Probe], Iterable[Record]]


_REGISTRY: dict[str, Instrument] = {}


def instrument(
    name: str, cost: Cost, needs: Iterable[Need], records: Iterable[str], minimum: int = 1
) -> Callable[[Callable[[Probe], Iterable[Record]]], Callable[[Probe], Iterable[Record]]]:
    """Register a generator of records as an instrument."""

    def add(measure: Callable[[Probe], Iterable[Record]]) -> Callable[[Probe], Iterable[Record]]:
        _REGISTRY[name] = Instrument(name, cost, frozenset(needs), minimum, tuple(records), measure)
        return measure

    return add


def available() -> dict[str, Instrument]:
    """All instruments by name.

    >>> available()["dormant"].cost
    'economy'
    """
    from supple.observe import (  # noqa: F401
        ages,
        change,
        curvature,
        features,
        learning,
        outputs,
        signal,
        spectrum,
        tangent,
        units,
        weights,
    )

    return dict(_REGISTRY)


def select(instruments: str | Sequence[str]) -> list[Instrument]:
    """A bundle (each contains the cheaper ones), one name, or a sequence of names of both kinds.

    Raises:
        InputError: an unknown name; the message lists the known ones.

    >>> len(select("economy")) < len(select("standard")) < len(select("full"))
    True
    """
    table = available()
    wanted = [instruments] if isinstance(instruments, str) else list(instruments)
    chosen: dict[str, Instrument] = {}
    for word in wanted:
        if word in BUNDLES:
            costs = BUNDLES[: BUNDLES.index(word) + 1]
            chosen.update({n: i for n, i in table.items() if i.cost in costs})
        elif word in table:
            chosen[word] = table[word]
        else:
            raise InputError(
                f"unknown instrument {word!r}", do=f"choose from {', '.join((*BUNDLES, *sorted(table)))}"
            )
    return list(chosen.values())
