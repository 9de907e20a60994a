"""The diagnoses of the demo: the worn network of each seed, and a fresh one as a control; kept once made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supple.cli.console import write_text
from supple.errors import StoreError

if TYPE_CHECKING:
    from torch import nn

    from supple.bench.protocols import Protocol
    from supple.diagnose import DiagnosisReport

PROBE = 256
#: earlier tasks whose data are shown to the diagnosis, to tell forgetting from loss of plasticity
EARLIER = 3


@dataclass(frozen=True)
class Patient:
    """One network to diagnose: the worn one of a seed (its run folder), or a fresh one of that seed."""

    protocol: Protocol
    seed: int
    worn: Path | None
    kept: Path
    budget: float

    @property
    def name(self) -> str:
        return f"{'fresh' if self.worn is None else 'worn'} network, seed {self.seed}"

    def model(self) -> nn.Module:
        """The network as it left the last task, or as it would start one."""
        from supple import store
        from supple.bench import methods

        # The control is drawn with a key of its own: no task of the stream starts from it.
        model = methods.get("plain").build(self.protocol, self.seed, self.protocol.tasks)
        if self.worn is not None:
            model.load_state_dict(store.load(self.worn).state()["learner"]["model"])
        return model

    def factory(self) -> nn.Module:
        """A network as the protocol starts one, keyed by the global random state."""
        import torch

        from supple.bench import methods

        return methods.get("plain").build(self.protocol, int(torch.randint(2**31 - 1, ())), 0)

    def diagnose(self) -> DiagnosisReport:
        """The protocol of `supple.diagnose` on a batch of the last task."""
        from supple import api

        stream, model = self.protocol.stream(self.seed), self.model()
        last = self.protocol.tasks - 1
        earlier = []
        if self.worn is not None:
            indices = sorted({last * i // (EARLIER + 1) for i in range(1, EARLIER + 1)} - {last})
            earlier = [(t.name, t.probe(PROBE)) for t in map(stream.task, indices)]
        return api.diagnose(
            model,
            stream.task(last).probe(PROBE),
            self.protocol.loss,
            optimizer=self.protocol.build_optimizers(model.parameters())[0],
            reference=self.factory,
            budget=self.budget,
            earlier=earlier,
        )


def patients(
    protocol: Protocol, root: Path, runs: dict[int, Path], budget: float
) -> tuple[list[Patient], list[Patient]]:
    """(worn, fresh), one of each a seed; ``runs`` are the folders of the plain network's runs."""
    kept = root / "diagnosis" / f"budget-{budget:g}"  # another budget is another diagnosis
    worn = [Patient(protocol, s, runs[s], kept / f"worn-seed-{s}.json", budget) for s in runs]
    fresh = [Patient(protocol, s, None, kept / f"fresh-seed-{s}.json", budget) for s in runs]
    return worn, fresh


def diagnose_all(
    people: list[Patient], workers: int, progress: Callable[[float, str], None]
) -> list[DiagnosisReport]:
    """Diagnose those without a kept diagnosis, in processes, and read all of them back."""
    from supple.diagnose.types import DiagnosisReport

    todo = [p for p in people if not p.kept.exists()]
    if todo:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        try:
            _diagnose_in_processes(todo, len(people), workers, progress)
        except BrokenProcessPool as error:
            raise StoreError(
                "a process that made a diagnosis died",
                found=str(error),
                do="start the command again; what was finished is kept",
            ) from error
    return [DiagnosisReport.from_json(p.kept) for p in people]


def _diagnose_in_processes(
    todo: list[Patient], total: int, workers: int, progress: Callable[[float, str], None]
) -> None:
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(diagnose_one, p): p for p in todo}
        for done, future in enumerate(as_completed(waiting), 1):
            write_text(waiting[future].kept, json.dumps(future.result(), allow_nan=False) + "\n")
            progress((total - len(todo) + done) / total, waiting[future].name)


def diagnose_one(patient: Patient) -> dict[str, Any]:
    """A diagnosis as plain types, in a process of its own with one thread."""
    import torch

    torch.set_num_threads(1)
    return patient.diagnose().to_dict()
