"""How the step count enters an optimizer's update, so that a fresh row can be given a count of its own.

Optimizers of the Adam family keep one step count t per tensor and correct their running averages for it. A
row whose averages were zeroed at age 0 is then corrected as if it were t steps old. An `Ageing` says how the
update depends on the count, by age a = 1, 2, ... of a row; `supple.interventions.compensation` applies it.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Group: TypeAlias = Mapping[str, Any]  # of optimizer.param_groups
Curve: TypeAlias = npt.NDArray[np.float64]

_OLD = (1e-3, 2e-3)  # b1^a and b2^a below these: what depends on the age is within 1e-3 of its limit


def betas(group: Group) -> tuple[float, float]:
    """Both decays as plain numbers; they may be tensors."""
    beta1, beta2 = group["betas"]
    return float(beta1), float(beta2)


@functools.lru_cache(maxsize=64)
def young_span(beta1: float, beta2: float) -> int:
    """Ages below this count as young."""
    pairs = zip((beta1, beta2), _OLD, strict=True)
    return math.ceil(max(math.log(old) / math.log(b) if b > 0 else 0.0 for b, old in pairs)) + 1


def growth(beta: float, ages: Curve) -> Curve:
    """1 - beta^a without cancellation."""
    return -np.expm1(ages * math.log(beta)) if beta > 0 else np.sign(ages)


@dataclass(frozen=True)
class Ageing(abc.ABC):
    """What of an update depends on the step count. ``averages`` maps the running averages of the state to the
    position of their decay in ``group["betas"]``.
    """

    averages: Mapping[str, int] = field(default_factory=dict)

    def key(self, group: Group) -> tuple[float, ...]:
        """The settings on which the coefficients depend."""
        return betas(group)

    def span(self, group: Group) -> int:
        """Ages below this count as young; older rows are left to the optimizer."""
        return young_span(*betas(group))

    @abc.abstractmethod
    def coefficients(self, group: Group, ages: Curve) -> Curve:
        """(k, A) the numbers that depend on the age; the entry of age 0 is never read."""


@dataclass(frozen=True)
class Scaled(Ageing):
    """The whole update is proportional to one number k(a): a row of age a moves k(a) / k(t) times as far.

    ``kind`` "adam": k = sqrt(1 - b2^a) / (1 - b1^a); "adamax": k = 1 / (1 - b1^a).
    """

    kind: str = "adam"

    def at(self, group: Group, count: int) -> float:
        """k(count)."""
        beta1, beta2 = betas(group)
        top = math.sqrt(-math.expm1(count * math.log(beta2))) if self.kind == "adam" and beta2 else 1.0
        return top / (-math.expm1(count * math.log(beta1)) if beta1 else 1.0)

    def coefficients(self, group: Group, ages: Curve) -> Curve:
        beta1, beta2 = betas(group)
        with np.errstate(divide="ignore", invalid="ignore"):
            top = np.sqrt(growth(beta2, ages)) if self.kind == "adam" else 1.0
            return np.nan_to_num(top / growth(beta1, ages), nan=1.0, posinf=1.0)[None]


@dataclass(frozen=True)
class Recomputed(Ageing):
    """Terms of the update depend on the age in different ways: young rows are moved anew from their state."""

    @abc.abstractmethod
    def direction(
        self, grad: Tensor, slots: Mapping[str, Tensor], by_age: list[Tensor], eps: float
    ) -> Tensor:
        """The displacement divided by -lr, from the gradient and the averages after the step."""


@dataclass(frozen=True)
class _NAdam(Recomputed):
    def key(self, group: Group) -> tuple[float, ...]:
        return (*betas(group), float(group["momentum_decay"]))

    def coefficients(self, group: Group, ages: Curve) -> Curve:
        beta1, beta2 = betas(group)
        mu = beta1 * (1.0 - 0.5 * 0.96 ** (np.append(ages, ages[-1] + 1) * group["momentum_decay"]))
        now, after = mu[:-1], mu[1:]
        product = np.cumprod(np.where(ages > 0, now, 1.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = [(1 - now) / (1 - product), after / (1 - product * after), 1 / growth(beta2, ages)]
        return np.nan_to_num(np.stack(rows), nan=0.0, posinf=0.0)

    def direction(
        self, grad: Tensor, slots: Mapping[str, Tensor], by_age: list[Tensor], eps: float
    ) -> Tensor:
        top = by_age[0] * grad + by_age[1] * slots["exp_avg"]
        return top / ((by_age[2] * slots["exp_avg_sq"]).sqrt() + eps)


@dataclass(frozen=True)
class _RAdam(Recomputed):
    def coefficients(self, group: Group, ages: Curve) -> Curve:
        beta1, beta2 = betas(group)
        longest = 2.0 / (1.0 - beta2) - 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            length = longest - 2.0 * ages * beta2**ages / growth(beta2, ages)
            square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            rectified = np.sqrt(np.maximum(square, 0.0) * growth(beta2, ages))
            rows = [1.0 / growth(beta1, ages), np.where(length > 5.0, rectified, -1.0)]  # -1: not adaptive
        return np.nan_to_num(np.stack(rows), nan=0.0, posinf=0.0)

    def direction(
        self, grad: Tensor, slots: Mapping[str, Tensor], by_age: list[Tensor], eps: float
    ) -> Tensor:
        adaptive = by_age[1] / (slots["exp_avg_sq"].sqrt() + eps)
        return by_age[0] * slots["exp_avg"] * torch.where(by_age[1] < 0, torch.ones_like(adaptive), adaptive)


_MOMENTS = {"exp_avg": 0, "exp_avg_sq": 1}
#: Adam, AdamW and SparseAdam
ADAM = Scaled({**_MOMENTS, "max_exp_avg_sq": 1})
ADAMAX = Scaled({"exp_avg": 0}, kind="adamax")  # the infinity norm is a maximum, without bias
NADAM = _NAdam(_MOMENTS)
RADAM = _RAdam(_MOMENTS)
