"""What is true of a network: how much less it learns than fresh ones, and which repair gives it back."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supple.bench.lab.cases import Case, Size
from supple.bench.lab.ills import repair_
from supple.bench.networks import keyed
from supple.diagnose.probe_tasks import ProbeTask, learn, read_kind

RATE = 5e-3  # Adam; step 0 is given the same
#: families that learn more slowly get more steps
PATIENCE = {"convnet": 3, "resnet": 2}
HARM = 0.10  # below it nothing is lost that a repair could give back
LEARNS = 0.05  # references that learn less than this tell no truth
ARTICLE = ("dead", "rank", "common")
#: repairs that change healthy networks too; the others leave them as they are
FELT = ("rank", "common")


def reference(case: Case, index: int) -> nn.Module:
    """The index-th fresh network of the case's factory."""
    return keyed(case.factory, 0, "lab-reference", case.half, index)


@dataclass
class Bench:
    """Fresh tasks of one half, and the scores of the references on them, measured once per factory."""

    size: Size
    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        self._healthy: dict[tuple[str, str, str, str], float] = {}

    def score(self, net: nn.Module, case: Case) -> float:
        """Mean score over the tasks of copies of ``net``; a course that diverges counts as nothing learned."""
        found = []
        steps = self.size.steps * PATIENCE.get(case.family, 1)
        kind = read_kind(net(self.x), self.y)
        for index in range(self.size.tasks):
            task = ProbeTask.draw((self.x, self.y), kind, F.cross_entropy, 90_001 + index)
            pupil = copy.deepcopy(net)
            course = learn(pupil, task, steps, [torch.optim.Adam(pupil.parameters(), lr=RATE)])
            found.append(0.0 if math.isnan(course[-1]) else fmean(course))
        return fmean(found)

    def healthy(self, case: Case, repair: str = "") -> float:
        """Mean score of the references, as they are or after a repair that they do not need."""
        key = (case.half, case.family, case.design, repair)
        if key not in self._healthy:
            count = max(2, self.size.references // 2) if repair else self.size.references
            scores = [
                self._treated(reference(case, i), (repair,) if repair else (), case) for i in range(count)
            ]
            self._healthy[key] = fmean(scores)
        return self._healthy[key]

    def gain(self, ills: tuple[str, ...], case: Case) -> float:
        """What these repairs give a healthy network."""
        felt = {"common" if i == "ordered" else i for i in ills} & set(FELT)
        return sum(self.healthy(case, ill) - self.healthy(case) for ill in sorted(felt))

    def repaired(self, net: nn.Module, ills: tuple[str, ...], case: Case) -> float:
        """The score after the repairs, less what they give a healthy network."""
        return self._treated(net, ills, case) - self.gain(ills, case)

    def _treated(self, net: nn.Module, ills: tuple[str, ...], case: Case) -> float:
        fixed = copy.deepcopy(net)
        for ill in ills:
            repair_(fixed, ill, reference(case, self.size.references), self.x)
        return self.score(fixed, case)

    def truth(self, net: nn.Module, case: Case) -> dict[str, object]:
        """``loss`` against the references, and the score after each repair (see `supple.bench.lab.score.present`)."""
        healthy, own = self.healthy(case), self.score(net, case)
        row: dict[str, object] = {"loss": None, "repairs": {}, "healthy": healthy, "own": own}
        if healthy < LEARNS:
            return row
        loss = 1 - own / healthy
        names = tuple(i for i, _ in case.ills)
        groups: list[tuple[str, ...]] = [(ill,) for ill in dict.fromkeys((*ARTICLE, *names))]
        if len(names) > 2:  # and all but one of them, to see what each adds
            groups += [tuple(i for i in names if i != left) for left in names]
        if len(names) > 1:
            groups.append(names)
        repairs = {"+".join(g): self.repaired(net, g, case) for g in groups} if loss >= HARM else {}
        return {**row, "loss": loss, "repairs": repairs}
