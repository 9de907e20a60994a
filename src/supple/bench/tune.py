"""Search a method's settings on tuning seeds, and report what they bring on other seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from supple.bench import methods
from supple.bench.jobs import with_engine
from supple.bench.protocols import Protocol
from supple.bench.rows import curve
from supple.bench.runner import run_list
from supple.bench.spec import RunSpec
from supple.bench.statistics import Paired, area, paired
from supple.errors import InputError, StoreError
from supple.store import load

if TYPE_CHECKING:
    import optuna

#: tuning seeds start here, so that they are never those of a report
TUNING = 10_000


@dataclass(frozen=True)
class Dial:
    """A setting's range, searched evenly or evenly in the logarithm."""

    low: float
    high: float
    log: bool = False


RATE = {"lr": Dial(1e-4, 0.3, log=True)}
#: method -> what is searched; "lr" is the protocol's learning rate
SPACES: Mapping[str, Mapping[str, Dial]] = {
    "regrama": {"tau": Dial(0.005, 0.3, log=True)},
    "redo": {"tau": Dial(0.005, 0.3, log=True)},
    "cbp": {"replacement_rate": Dial(1e-6, 1e-2, log=True)},
    "cchain": {"coef": Dial(1e-3, 1e3, log=True)},
    "l2": {"coef": Dial(1e-6, 1e-1, log=True)},
    "l2init": {"coef": Dial(1e-6, 1e-1, log=True)},
    "spectral": {"coef": Dial(1e-6, 1e-1, log=True)},
    "wasserstein": {"coef": Dial(1e-6, 1e-1, log=True)},
    "parseval": {"coef": Dial(1e-6, 1e-1, log=True)},
    "feature_rank": {"coef": Dial(1e-6, 1e-1, log=True)},
    "clipping": {"kappa": Dial(0.5, 10.0, log=True)},
    "shrink_perturb": {"shrink": Dial(0.05, 0.999)},
}


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
        """Plain types."""
        return dataclasses.asdict(self)

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
    settings beside it. Trial 0 is the default.

    Raises:
        InputError: numbers below 1. StoreError: a run of the report failed.
    """
    for name, value in (("trials", trials), ("tuning_seeds", tuning_seeds), ("seeds", seeds)):
        if value < 1:
            raise InputError(f"{name} must be at least 1", found=value)
    folder = Path(root) / protocol.label / method
    folder.mkdir(parents=True, exist_ok=True)
    search = _Search(protocol, method, folder, [TUNING + i for i in range(tuning_seeds)], workers)
    study = search.study()
    while len(done := _completed(study)) < trials:
        value = search.trial(study)
        say(f"trial {len(done) + 1}/{trials}: {value:.3f}, best so far {study.best_value:.3f}")
    best = dict(study.best_params)
    test = list(range(seeds))
    tuned, default = (search.areas(s, test, folder / n) for s, n in ((best, "tuned"), ({}, "default")))
    gain = paired(tuned, default)
    return Tuned(
        protocol.label, method, best, study.best_value, len(done), tuple(tuned), tuple(default), gain
    )


def _completed(study: optuna.Study) -> list[Any]:
    return [t for t in study.trials if t.state.name == "COMPLETE"]


class _Search:
    """One method on one protocol: its dials, its runs, its study on disk."""

    def __init__(
        self, protocol: Protocol, method: str, folder: Path, seeds: Sequence[int], workers: int
    ) -> None:
        methods.get(method)
        self.protocol, self.method, self.folder = protocol, method, folder
        self.seeds, self.workers = seeds, workers
        self.dials = {**RATE, **SPACES.get(method, {})}

    def study(self) -> optuna.Study:
        """The study of this folder, made at its first use with the defaults as its first trial."""
        try:
            import optuna
        except ImportError as error:
            raise InputError("tuning needs Optuna", do="pip install 'supple[tune]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(self.folder / "trials.journal"))
        )
        study = optuna.create_study(
            storage=storage, study_name=f"{self.protocol.label}/{self.method}", direction="maximize",
            load_if_exists=True, sampler=optuna.samplers.TPESampler(seed=0),
        )  # fmt: skip
        if not study.trials:
            study.enqueue_trial(self.defaults())
        return study

    def defaults(self) -> dict[str, float]:
        """What the dials stand at without a search, as far as the method says."""
        own = methods.get(self.method).settings_in(self.protocol)
        found = {"lr": self.protocol.lr, **{k: v for k, v in own.items() if k in self.dials}}
        return {k: min(max(float(v), self.dials[k].low), self.dials[k].high) for k, v in found.items()}

    def trial(self, study: optuna.Study) -> float:
        """One more trial; a method that diverges gets the area that it reached."""
        asked = study.ask()
        settings = {k: asked.suggest_float(k, d.low, d.high, log=d.log) for k, d in self.dials.items()}
        value = fmean(self.areas(settings, self.seeds, self.folder / f"trial-{asked.number}"))
        study.tell(asked, value)
        return value

    def areas(self, settings: Mapping[str, float], seeds: Sequence[int], root: Path) -> list[float]:
        """Area under the plasticity curve by seed; {} are the defaults."""
        own = {k: v for k, v in settings.items() if k != "lr"}
        protocol = dataclasses.replace(self.protocol, lr=settings.get("lr", self.protocol.lr))
        specs = [RunSpec(protocol=protocol, method=self.method, seed=s, settings=own) for s in seeds]
        outcome = run_list(with_engine(specs, "auto"), root, workers=min(self.workers, len(specs)))
        if not outcome.ok:
            label, trace = next(iter(outcome.errors.items()))
            raise StoreError("a run failed", found=trace.strip().splitlines()[-1], where=label)
        return [area(curve(load(f).records, "online")) for f in outcome.folders]
