"""Reset methods as plain loops in float64 numpy on a ReLU MLP, written from the papers' listings.

Only the random draws come from outside: ``fresh_row(layer, step)`` gives a full fresh weight matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Fresh = Callable[[int, int], Array]


class ElementSGD:
    """SGD with momentum, one buffer per element."""

    def __init__(self, value: Array, lr: float, momentum: float = 0.0) -> None:
        self.value, self.buffer = np.array(value, dtype=np.float64), np.zeros_like(value, dtype=np.float64)
        self.lr, self.momentum = lr, momentum

    def step(self, grad: Array) -> None:
        self.buffer = self.momentum * self.buffer + grad
        self.value = self.value - self.lr * self.buffer

    def reset(self, mask: Array, value: Array) -> None:
        self.value[mask] = value[mask]
        self.buffer[mask] = 0


class TwinMLP:
    """fc - relu - fc - relu - ... - fc with mean squared error; every parameter has its own optimizer."""

    def __init__(self, weights: list[Array], biases: list[Array], make: Callable[[Array], object]) -> None:
        self.w, self.b = [make(w) for w in weights], [make(b) for b in biases]
        self.hidden = len(weights) - 1
        self.step_count = 0
        self.log: list[tuple[int, int, tuple[int, ...]]] = []

    def train(self, x: Array, y: Array) -> None:
        """One step; keeps activations, gradients and pre-activation gradients for the methods."""
        self.h, self.z = [x], []
        for i in range(len(self.w)):
            z = self.h[-1] @ self.w[i].value.T + self.b[i].value
            self.z.append(z)
            self.h.append(np.maximum(z, 0) if i < self.hidden else z)
        delta = 2.0 * (self.h[-1] - y) / y.size
        grads_w: list[Array] = [None] * len(self.w)
        self.dz: list[Array] = [None] * len(self.w)
        grads_b: list[Array] = [None] * len(self.w)
        for i in reversed(range(len(self.w))):
            self.dz[i] = delta
            grads_w[i], grads_b[i] = delta.T @ self.h[i], delta.sum(0)
            if i:
                delta = (delta @ self.w[i].value) * (self.z[i - 1] > 0)
        self.grads = grads_w
        for i in range(len(self.w)):
            self.w[i].step(grads_w[i])
            self.b[i].step(grads_b[i])
        self.step_count += 1

    def reset(self, layer: int, units: list[int], fresh: Fresh, zero_outgoing: bool = True) -> None:
        if not units:
            return
        rows = np.zeros(self.w[layer].value.shape, dtype=bool)
        rows[units] = True
        self.w[layer].reset(rows, fresh(layer, self.step_count))
        self.b[layer].reset(rows[:, 0], np.zeros_like(self.b[layer].value))
        if zero_outgoing:
            columns = np.zeros(self.w[layer + 1].value.shape, dtype=bool)
            columns[:, units] = True
            self.w[layer + 1].reset(columns, np.zeros_like(self.w[layer + 1].value))
        self.log.append((self.step_count, layer, tuple(sorted(units))))


class TwinContinualBackprop:
    """Dohare et al. 2024, algorithm 1; ranking corrected for age and the three utilities of the code."""

    def __init__(
        self,
        net: TwinMLP,
        fresh: Fresh,
        rate: float,
        decay: float,
        maturity: int,
        utility: str,
        correct: bool,
    ) -> None:
        self.net, self.fresh, self.rate, self.decay, self.maturity = net, fresh, rate, decay, maturity
        self.utility, self.correct = utility, correct
        sizes = [len(net.b[i].value) for i in range(net.hidden)]
        self.a = [np.zeros(n, dtype=int) for n in sizes]
        self.u, self.mean = [np.zeros(n) for n in sizes], [np.zeros(n) for n in sizes]
        self.c = [0.0 for _ in sizes]

    def act(self) -> None:
        net, eta = self.net, self.decay
        for i in range(net.hidden):
            self.a[i] += 1
            for j in range(len(self.a[i])):
                h = net.h[i + 1][:, j]
                self.mean[i][j] = eta * self.mean[i][j] + (1 - eta) * h.mean()
                centre = self.mean[i][j] / (1 - eta ** self.a[i][j])
                size = abs(h).mean() if self.utility == "contribution" else abs(h - centre).mean()
                now = size * sum(abs(w) for w in net.w[i + 1].value[:, j])
                if self.utility == "adaptable":
                    now /= abs(net.w[i].value[j]).mean()
                self.u[i][j] = eta * self.u[i][j] + (1 - eta) * now
        chosen = []
        for i in range(net.hidden):
            mature = [j for j in range(len(self.a[i])) if self.a[i][j] > self.maturity]
            self.c[i] += self.rate * len(mature)
            if self.c[i] > 1:
                rank = [
                    self.u[i][j] / (1 - eta ** self.a[i][j]) if self.correct else self.u[i][j] for j in mature
                ]
                chosen.append((i, mature[int(np.argmin(rank))]))
                self.c[i] -= 1
        for i, r in chosen:
            net.reset(i, [r], self.fresh)
            self.u[i][r] = self.mean[i][r] = self.a[i][r] = 0


def redo(net: TwinMLP, tau: float, fresh: Fresh) -> None:
    """Sokar et al. 2023, eq. 1 on the batch of this step."""
    chosen = []
    for i in range(net.hidden):
        size = np.abs(net.h[i + 1]).mean(0)
        score = size / (size.mean() + 1e-9)
        chosen.append([j for j in range(len(score)) if score[j] <= tau])
    for i, units in enumerate(chosen):
        net.reset(i, units, fresh)


def regrama(
    net: TwinMLP, tau: float, fresh: Fresh, score: str, mode: str, fraction: float, zero: bool
) -> None:
    """Liu et al. 2025, eq. 2, from the weight gradient or the pre-activation gradient."""
    chosen = []
    for i in range(net.hidden):
        size = np.abs(net.grads[i]).mean(1) if score == "weight" else np.abs(net.dz[i]).mean(0)
        value = size / size.mean()
        order = np.argsort(value, kind="stable")
        most = int(fraction * len(value)) if mode != "threshold" else len(value)
        chosen.append([int(j) for j in order[:most] if mode == "percentage" or value[j] <= tau])
    for i, units in enumerate(chosen):
        net.reset(i, units, fresh, zero)
