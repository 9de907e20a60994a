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
from supple.streams import generator

TASKS, STEPS, SAMPLES, WIDTH = 3, 300, 256, 16


def teacher(observations: Tensor, seed: int, index: int, values: int = 1) -> Tensor:
    """(N, values) of mean 0 and variance 1: random smooth functions of standardised observations.

    tanh(z W₁) W₂ with z (N, d) the observations at mean 0 and variance 1, W₁ ~ N(0, 1.5²), W₂ ~ N(0, 1). Random labels,
    which step 0 uses, are out of reach of even fresh networks here: the states of short episodes lie too close.

    >>> teacher(torch.randn(64, 3), seed=0, index=1, values=2).shape
    torch.Size([64, 2])
    """
    flat = observations.flatten(1)
    g = generator(seed, "teacher", index)
    z = (flat - flat.mean(0)) / (flat.std(0) + 1e-6)
    first = 1.5 * torch.randn(flat.shape[1], WIDTH, generator=g).to(z)
    y = (z @ first).tanh() @ torch.randn(WIDTH, values, generator=g).to(z)
    return (y - y.mean(0)) / (y.std(0) + 1e-6)


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
    """Mean score of ``worn`` over that of fresh networks, on functions of the agent's own observations.

    The course of step 0 (`supple.trainability`) at a fixed length, so that a run repeats bit for bit: `TASKS` random
    teachers, `STEPS` steps of Adam at the agent's learning rate. ``actions`` > 0: the first two outputs tell whether
    the teacher is above its median; 0: the outputs (N, ``values``) are the teacher's. ``unlearn``: the old answers are
    not subtracted, so a saturated policy pays for them.

    Returns:
        The ratio; NaN where a course is not finite or the fresh networks learn nothing.

    >>> net = nn.Linear(3, 2)
    >>> trainability(net, lambda i: copy.deepcopy(net), torch.randn(32, 3), 2, 1e-2, 0)
    1.0
    """
    kind = ProbeKind("classes", classes=actions) if actions else ProbeKind("values")
    loss = F.cross_entropy if actions else F.mse_loss
    own, new = [], []
    for i in range(TASKS):
        y = teacher(observations, seed, i, 1 if actions else values)
        target = (y > y.median()).long()[:, 0] if actions else y
        task = ProbeTask.draw((observations, target), kind, loss, seed + i, samples=SAMPLES, fresh=False)
        for found, net in ((own, copy.deepcopy(worn)), (new, fresh(i))):
            optimizer = torch.optim.Adam(net.parameters(), lr=lr)
            found.append(fmean(learn(net, task, STEPS, [optimizer], centred=not unlearn)))
    reference = fmean(new)
    return fmean(own) / reference if reference > 0.05 else math.nan
