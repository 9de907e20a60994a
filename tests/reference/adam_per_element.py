"""Adam with a step count per element, in float64 numpy: what a reset element should do."""

from __future__ import annotations

import numpy as np


class ElementAdam:
    """One array; `reset(mask)` makes the elements under the mask as new."""

    def __init__(
        self,
        value: np.ndarray,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        amsgrad: bool = False,
    ) -> None:
        self.value = np.array(value, dtype=np.float64)
        self.lr, self.betas, self.eps = lr, betas, eps
        self.weight_decay, self.decoupled, self.amsgrad = weight_decay, decoupled, amsgrad
        self.m, self.v, self.top, self.t = (np.zeros_like(self.value) for _ in range(4))

    def step(self, grad: np.ndarray) -> None:
        grad = np.array(grad, dtype=np.float64)
        if self.decoupled:
            self.value = self.value * (1 - self.lr * self.weight_decay)
        else:
            grad = grad + self.weight_decay * self.value
        beta1, beta2 = self.betas
        self.t += 1
        self.m = beta1 * self.m + (1 - beta1) * grad
        self.v = beta2 * self.v + (1 - beta2) * grad**2
        self.top = np.maximum(self.top, self.v)
        second = (self.top if self.amsgrad else self.v) / (1 - beta2**self.t)
        self.value = self.value - self.lr * self.m / (1 - beta1**self.t) / (np.sqrt(second) + self.eps)

    def reset(self, mask: np.ndarray, value: np.ndarray) -> None:
        self.value[mask] = value[mask]
        for slot in (self.m, self.v, self.top, self.t):
            slot[mask] = 0
