"""Can the networks of an agent still learn? Supervised, so that a failure to explore is not taken for one to learn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supple.diagnose.probe_tasks import ProbeKind, ProbeTask, learn

TASKS, STEPS, SAMPLES = 4, 200, 256


def trainability(
    worn: nn.Module,
    fresh: Callable[[int], nn.Module],
    observations: Tensor,
    actions: int,
    lr: float,
    seed: int,
    *,
    values: int = 1,
    unlearn: bool = False,
) -> float:
    """Mean score of ``worn`` over that of fresh networks, on random targets for the agent's own observations.

    The course of step 0 (`supple.trainability`) at a fixed length, so that a run repeats bit for bit: `TASKS` tasks,
    `STEPS` steps of Adam at the agent's learning rate. ``actions`` > 0: random classes; 0: ``values`` random numbers.
    ``unlearn``: the old answers are not subtracted, so a saturated policy pays for them.

    Returns:
        The ratio; NaN where a course is not finite or the fresh networks learn nothing.

    >>> net = nn.Linear(3, 2)
    >>> trainability(net, lambda i: copy.deepcopy(net), torch.randn(32, 3), 2, 1e-2, 0)
    1.0
    """
    kind = ProbeKind("classes", classes=actions) if actions else ProbeKind("values")
    old = (
        torch.zeros(len(observations), dtype=torch.int64)
        if actions
        else torch.zeros(len(observations), values)
    )
    loss = F.cross_entropy if actions else F.mse_loss
    own, new = [], []
    for i in range(TASKS):
        task = ProbeTask.draw((observations, old), kind, loss, seed + 101 * i, samples=SAMPLES)
        for found, net in ((own, copy.deepcopy(worn)), (new, fresh(i))):
            optimizer = torch.optim.Adam(net.parameters(), lr=lr)
            found.append(fmean(learn(net, task, STEPS, [optimizer], centred=not unlearn)))
    reference = fmean(new)
    return fmean(own) / reference if reference > 0.02 else math.nan
