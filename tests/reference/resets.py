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


class TwinNature:
    """The listing of Dohare et al. 2024, line by line: no correction for age, one unit at most."""

    def __init__(self, net: TwinMLP, fresh: Fresh, rate: float, decay: float, maturity: int) -> None:
        self.net, self.fresh, self.rate, self.decay, self.maturity = net, fresh, rate, decay, maturity
        sizes = [len(net.b[i].value) for i in range(net.hidden)]
        self.u, self.a = [np.zeros(n) for n in sizes], [np.zeros(n, dtype=int) for n in sizes]
        self.c = [0.0 for _ in sizes]

    def act(self) -> None:
        net, chosen = self.net, []
        for i in range(net.hidden):
            self.a[i] += 1
            contribution = np.abs(net.h[i + 1]).mean(0) * np.abs(net.w[i + 1].value).sum(0)
            self.u[i] = self.decay * self.u[i] + (1 - self.decay) * contribution
            eligible = np.flatnonzero(self.a[i] > self.maturity)
            self.c[i] += self.rate * len(eligible)
            if self.c[i] > 1:
                chosen.append((i, int(eligible[np.argmin(self.u[i][eligible])])))
                self.c[i] -= 1
        for i, r in chosen:
            net.reset(i, [r], self.fresh)
            self.u[i][r] = self.a[i][r] = 0


class TwinLazy:
    """E|h| is averaged; the outgoing weights are read at the moment of a replacement."""

    def __init__(self, net: TwinMLP, fresh: Fresh, rate: float, decay: float, maturity: int) -> None:
        self.net, self.fresh, self.rate, self.decay, self.maturity = net, fresh, rate, decay, maturity
        sizes = [len(net.b[i].value) for i in range(net.hidden)]
        self.h, self.a = [np.zeros(n) for n in sizes], [np.zeros(n, dtype=int) for n in sizes]
        self.c = [0.0 for _ in sizes]

    def act(self) -> None:
        net, chosen = self.net, []
        for i in range(net.hidden):
            self.a[i] += 1
            self.h[i] = self.decay * self.h[i] + (1 - self.decay) * np.abs(net.h[i + 1]).mean(0)
            eligible = np.flatnonzero(self.a[i] > self.maturity)
            self.c[i] += self.rate * len(eligible)
            if self.c[i] > 1:
                mean = self.h[i] / (1 - self.decay ** self.a[i])
                u = mean * np.abs(net.w[i + 1].value).sum(0)
                chosen.append((i, int(eligible[np.argmin(u[eligible])])))
                self.c[i] -= 1
        for i, r in chosen:
            net.reset(i, [r], self.fresh)
            self.h[i][r] = self.a[i][r] = 0


class TwinSNR:
    """Farias & Jozefiak 2025 with an exact histogram of gaps per unit."""

    def __init__(
        self, net: TwinMLP, fresh: Fresh, rejection: float, threshold: int, update: int, longest: int
    ) -> None:
        self.net, self.fresh = net, fresh
        self.percentile, self.update, self.longest = 1 - rejection, update, longest
        sizes = [len(net.b[i].value) for i in range(net.hidden)]
        self.a = [[0] * n for n in sizes]
        self.t = [[float(threshold)] * n for n in sizes]
        self.hist = [[[0] * (longest + 1) for _ in range(n)] for n in sizes]

    def _threshold(self, hist: list[int], old: float, batch: int) -> float:
        total, running, index = sum(hist[1:]), 0, 1
        for gap in range(1, self.longest + 1):
            running += hist[gap]
            if total and running / total >= self.percentile:
                index = gap
                break
        return max(batch, min(index if index < old else 2 * old, self.longest))

    def act(self, step: int) -> None:
        net, chosen = self.net, []
        for i in range(net.hidden):
            batch, units = len(net.z[i]), []
            for j in range(len(self.a[i])):
                if step % self.update == 0:
                    self.t[i][j] = self._threshold(self.hist[i][j], self.t[i][j], batch)
                    self.hist[i][j] = [0] * (self.longest + 1)
                if (net.z[i][:, j] > 0).any():
                    self._record(i, j)
                    self.a[i][j] = 0
                else:
                    self.a[i][j] += batch
                if self.a[i][j] >= self.t[i][j]:
                    self._record(i, j)
                    self.a[i][j] = 0
                    units.append(j)
            chosen.append((i, units))
        for i, units in chosen:
            net.reset(i, units, self.fresh)

    def _record(self, i: int, j: int) -> None:
        if self.a[i][j] <= self.longest:
            self.hist[i][j][self.a[i][j]] += 1


class TwinCCBP:
    """u follows the layer-normalised gradient; every so often all weights are pulled to fresh ones."""

    def __init__(
        self,
        net: TwinMLP,
        fresh: Fresh,
        rate: float,
        every: int,
        decay: float,
        steepness: float,
        capped: bool,
    ) -> None:
        self.net, self.fresh, self.rate, self.every = net, fresh, rate, every
        self.decay, self.steepness, self.capped = decay, steepness, capped
        self.u = [np.ones(len(net.b[i].value)) for i in range(net.hidden)]

    def act(self, step: int) -> None:
        net = self.net
        for i in range(net.hidden):
            g = np.abs(net.grads[i]).mean(1)
            self.u[i] = self.decay * self.u[i] + (1 - self.decay) * g / g.mean()
        if step % self.every:
            return
        for i in range(net.hidden):
            f = 1 / (1 + np.exp(self.steepness * (self.u[i] - 1)))
            r = self.rate * (np.minimum(2 * f, 1) if self.capped else f)
            net.w[i].value = (1 - r)[:, None] * net.w[i].value + r[:, None] * self.fresh(i, net.step_count)
            net.w[i + 1].value = net.w[i + 1].value * (1 - r)[None, :]
            self.u[i][:] = 1
            net.log.append((net.step_count, i, tuple(range(len(r)))))


def layer_reset(net: TwinMLP, layer: int, fresh: Fresh) -> None:
    """All weights of one layer anew, bias 0, optimizer state fresh."""
    everywhere = np.ones(net.w[layer].value.shape, dtype=bool)
    net.w[layer].reset(everywhere, fresh(layer, net.step_count))
    net.b[layer].reset(everywhere[:, 0], np.zeros(len(everywhere)))
    net.log.append((net.step_count, layer, tuple(range(len(everywhere)))))
