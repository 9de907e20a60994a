"""Where a run list stands: events of its runs, turned into `Progress` and, at the end, an `Outcome`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from supple.bench.spec import RunSpec


@dataclass(frozen=True)
class Progress:
    """Where a run list stands. ``seconds_left`` is None until there is a rate to judge by."""

    fraction: float
    done: int
    total: int
    seconds_left: float | None
    running: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass
class Outcome:
    """What became of a run list: folders in the order of the list, and errors by label."""

    folders: list[Path]
    skipped: int = 0
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.errors


ProgressCallback = Callable[[Progress], None]


class Board:
    """Who is how far; turns events into `Progress`."""

    def __init__(
        self, specs: Sequence[RunSpec], finished: set[int], callback: ProgressCallback | None
    ) -> None:
        self.specs, self.callback = specs, callback
        self.finished = finished
        self.skipped = len(self.finished)
        self.share = dict.fromkeys(self.finished, 1.0)
        self.running: set[int] = set()
        self.errors: dict[str, str] = {}
        self.started = time.monotonic()
        self.before: dict[int, float] = {}  # share that earlier calls had computed already
        self.total = sum(s.cost for s in specs)
        self.tell()

    def progress(self, places: Iterable[int], share: float) -> None:
        for place in places:
            self.running.add(place)
            self.before.setdefault(place, share)
            self.share[place] = share
        self.tell()

    def end(self, places: Iterable[int], error: str | None = None) -> None:
        for place in places:
            self.running.discard(place)
            if error is None:
                self.finished.add(place)
                self.share[place] = 1.0
            else:
                self.errors[self.specs[place].label] = error
        self.tell()

    def tell(self) -> None:
        if self.callback is None:
            return
        done = sum(self.specs[i].cost * share for i, share in self.share.items())
        here = sum(self.specs[i].cost * (self.share[i] - b) for i, b in self.before.items())
        failed = [i for i, s in enumerate(self.specs) if s.label in self.errors]
        lost = sum(self.specs[i].cost * (1.0 - self.share.get(i, 0.0)) for i in failed)
        left = max(self.total - done - lost, 0.0)
        elapsed = time.monotonic() - self.started
        self.callback(
            Progress(
                fraction=1.0 if self.total == 0 else min((done + lost) / self.total, 1.0),
                done=len(self.finished),
                total=len(self.specs),
                seconds_left=0.0 if left == 0 else (elapsed * left / here if here > 0 else None),
                running=tuple(self.specs[i].label for i in sorted(self.running)),
                failed=tuple(self.errors),
            )
        )
