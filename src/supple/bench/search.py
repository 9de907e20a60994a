"""A search's dials, its trials on disk, and how it goes on after a stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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
from supple.bench.statistics import area
from supple.diagnose.types import plain
from supple.errors import StoreError
from supple.store import load
from supple.store.identity import difference

if TYPE_CHECKING:
    import optuna


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


class Search:
    """One method on one protocol: its dials, its runs, its study on disk."""

    def __init__(
        self, protocol: Protocol, method: str, folder: Path, seeds: Sequence[int], workers: int
    ) -> None:
        self.protocol, self.method, self.folder = protocol, method, folder
        self.seeds, self.workers = seeds, workers
        # a method that the protocol gives the form of a combination has no setting of that name
        whole = "parts" not in methods.get(method).settings_in(protocol)
        self.dials = {**RATE, **(SPACES.get(method, {}) if whole else {})}

    def study(self) -> optuna.Study:
        """The study of this folder, made at its first use with the defaults as its first trial.

        Raises:
            StoreError: the folder's study searched something else.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(self.folder / "trials.journal"))
        )
        study = optuna.create_study(
            storage=storage, study_name=f"{self.protocol.label}/{self.method}", direction="maximize",
            load_if_exists=True,
        )  # fmt: skip
        own = self.identity()
        there = study.user_attrs.get("search", {} if study.trials else own)
        if changed := difference(there, own):
            raise StoreError(
                "this folder holds a search with other settings",
                found="; ".join(changed[:6]), where=str(self.folder),
                do="give this search a folder of its own (--out)",
            )  # fmt: skip
        study.set_user_attr("search", own)
        return study

    def identity(self) -> dict[str, Any]:
        """What is searched, as plain types: trials of another protocol or of other seeds are no trials of this."""
        dials = {k: dataclasses.asdict(d) for k, d in self.dials.items()}
        own = {
            "protocol": self.protocol.to_dict(),
            "method": self.method,
            "seeds": self.seeds,
            "dials": dials,
        }
        return dict(plain(own))

    def defaults(self) -> dict[str, float]:
        """What the dials stand at without a search, as far as the method says."""
        own = {"lr": self.protocol.lr, **methods.get(self.method).settings_in(self.protocol)}
        found = {k: v for k, v in own.items() if k in self.dials}
        return {k: min(max(float(v), self.dials[k].low), self.dials[k].high) for k, v in found.items()}

    def trial(self, study: optuna.Study) -> float:
        """One more trial, or one that was stopped; a method that diverges gets the area that it reached."""
        number, settings = self._stopped(study) or self._asked(study)
        value = fmean(self.areas(settings, self.seeds, self.folder / f"trial-{number}"))
        study.tell(number, value)
        return value

    def _stopped(self, study: optuna.Study) -> tuple[int, dict[str, float]] | None:
        """A trial that an earlier call did not finish; one that never got its settings is given up."""
        for trial in study.trials:
            if trial.state.name == "RUNNING":
                if trial.params.keys() == self.dials.keys():
                    return trial.number, trial.params
                study.tell(trial.number, state=type(trial.state).FAIL)
        return None

    def _asked(self, study: optuna.Study) -> tuple[int, dict[str, float]]:
        """The settings of a new trial: the same whether the search was stopped before it or not."""
        import optuna

        if all(t.state.name == "FAIL" for t in study.trials):
            study.enqueue_trial(self.defaults())
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
        asked = study.ask()
        return asked.number, {
            k: asked.suggest_float(k, d.low, d.high, log=d.log) for k, d in self.dials.items()
        }

    def areas(self, settings: Mapping[str, float], seeds: Sequence[int], root: Path) -> list[float]:
        """Area under the plasticity curve by seed; {} are the defaults."""
        specs = [
            RunSpec(protocol=self.protocol, method=self.method, seed=s, settings=settings) for s in seeds
        ]
        outcome = run_list(with_engine(specs, "auto"), root, workers=min(self.workers, len(specs)))
        if not outcome.ok:
            label, trace = next(iter(outcome.errors.items()))
            raise StoreError("a run failed", found=trace.strip().splitlines()[-1], where=label)
        return [area(curve(load(f).records, "online")) for f in outcome.folders]
