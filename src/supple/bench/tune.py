"""Search a method's settings on tuning seeds, and report what they bring on other seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from supple.bench import methods
from supple.bench.protocols import Protocol
from supple.bench.search import Search
from supple.bench.statistics import Paired, paired
from supple.diagnose.types import plain
from supple.errors import InputError, need
from supple.store.files import Lock, make_folder

#: tuning seeds start here, so that they are never those of a report
TUNING = 10_000


@dataclass(frozen=True)
class Tuned:
    """The best settings found, and how they and the defaults do on seeds that were not searched on."""

    protocol: str
    method: str
    settings: Mapping[str, float]
    searched: float  # mean area on the tuning seeds
    trials: int
    tuned: tuple[float, ...]  # area on the report's seeds
    default: tuple[float, ...]
    gain: Paired

    def to_dict(self) -> dict[str, Any]:
        """Plain types; what one seed gives no interval for is None."""
        return dict(plain(dataclasses.asdict(self)))

    def __str__(self) -> str:
        found = ", ".join(f"{k} {v:.4g}" for k, v in self.settings.items())
        return (
            f"{self.method} on {self.protocol}: {found} (best of {self.trials} trials, {self.searched:.3f} on the "
            f"tuning seeds)\non {len(self.tuned)} other seeds: {fmean(self.tuned):.3f}, with the default settings "
            f"{fmean(self.default):.3f}; difference {self.gain.difference}"
        )


def tune(
    protocol: Protocol,
    method: str,
    root: str | Path,
    *,
    trials: int = 20,
    tuning_seeds: int = 3,
    seeds: int = 5,
    workers: int = 2,
    say: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Search with Optuna (TPE) for the largest area under the plasticity curve; resumes where it stopped.

    The learning rate is searched for every method, so that none wins by its step size alone; the method's own
    settings beside it. Trial 0 is the default. A search that was stopped gives the same trials as one that was not.

    Raises:
        InputError: numbers below 1, a method that the network has no form of. MissingExtraError: no Optuna.
        StoreError: a run failed; the folder holds a search of other settings, or is in use.
    """
    for name, value in (("trials", trials), ("tuning_seeds", tuning_seeds), ("seeds", seeds)):
        if value < 1:
            raise InputError(f"{name} must be at least 1", found=value)
    need("optuna", "tune")
    methods.get(method).check(protocol)
    folder = Path(root) / protocol.label / method
    search = Search(protocol, method, folder, [TUNING + i for i in range(tuning_seeds)], workers)
    make_folder(folder)
    lock = Lock(folder / "lock", wait=0.0)  # two searches at once would take up each other's trials
    try:
        study = search.study()
        while len(done := [t for t in study.trials if t.state.name == "COMPLETE"]) < trials:
            value = search.trial(study)
            say(f"trial {len(done) + 1}/{trials}: {value:.3f}, best so far {study.best_value:.3f}")
        best, test = study.best_trial, list(range(seeds))
        # a later call may find better settings, so the runs of these have a folder of their own
        tuned = search.areas(best.params, test, folder / "tuned" / f"trial-{best.number}")
        default = search.areas({}, test, folder / "default")
    finally:
        lock.release()
    gain = paired(tuned, default)
    return Tuned(
        protocol.label,
        method,
        dict(best.params),
        study.best_value,
        len(done),
        tuple(tuned),
        tuple(default),
        gain,
    )
