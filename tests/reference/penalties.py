"""Float64 numpy twins of the penalties, written from the papers: a two-layer tanh network by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Params = dict[str, Array]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def logits(p: Params, x: Array) -> Array:
    return np.tanh(x @ p["0.weight"].T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]


def backward(p: Params, x: Array, d_logits: Array) -> Params:
    """Gradients of a scalar whose gradient at the logits is ``d_logits``."""
    h = np.tanh(x @ p["0.weight"].T + p["0.bias"])
    d_z = (d_logits @ p["2.weight"]) * (1 - h**2)
    return {
        "0.weight": d_z.T @ x,
        "0.bias": d_z.sum(0),
        "2.weight": d_logits.T @ h,
        "2.bias": d_logits.sum(0),
    }


def cross_entropy_gradient(p: Params, x: Array, y: npt.NDArray[np.int64]) -> Params:
    d = softmax(logits(p, x))
    d[np.arange(len(y)), y] -= 1
    return backward(p, x, d / len(y))


class Adam:
    """Kingma and Ba 2015, algorithm 1."""

    def __init__(self, lr: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> None:
        self.lr, self.b1, self.b2, self.eps, self.t = lr, b1, b2, eps, 0
        self.m: Params = {}
        self.v: Params = {}

    def step(self, p: Params, g: Params) -> None:
        self.t += 1
        for n in p:
            self.m[n] = self.b1 * self.m.get(n, np.zeros_like(p[n])) + (1 - self.b1) * g[n]
            self.v[n] = self.b2 * self.v.get(n, np.zeros_like(p[n])) + (1 - self.b2) * g[n] ** 2
            m_hat, v_hat = self.m[n] / (1 - self.b1**self.t), self.v[n] / (1 - self.b2**self.t)
            p[n] = p[n] - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


def train(
    p: Params,
    batches: list[tuple[Array, npt.NDArray[np.int64]]],
    lr: float,
    penalty: Callable[[int, Params], Params],
) -> list[Params]:
    """Adam on cross entropy plus a penalty's gradient; the parameters after every step."""
    p, adam, path = {n: a.copy() for n, a in p.items()}, Adam(lr), []
    for t, (x, y) in enumerate(batches):
        g = cross_entropy_gradient(p, x, y)
        extra = penalty(t, p)
        adam.step(p, {n: g[n] + extra.get(n, 0.0) for n in p})
        path.append({n: a.copy() for n, a in p.items()})
    return path


class Spectral:
    """Spectral regularisation with one warm power iteration per step, exponent 2k on biases."""

    def __init__(self, p: Params, coef: float, k: int = 2) -> None:
        self.coef, self.k = coef, k
        self.v = {n: np.linalg.svd(w)[2][0] for n, w in p.items() if w.ndim == 2}

    def __call__(self, t: int, p: Params) -> Params:
        k, g = self.k, {}
        for n, w in p.items():
            if w.ndim == 2:
                u = w @ self.v[n]
                u /= np.linalg.norm(u)
                v = w.T @ u
                v /= np.linalg.norm(v)
                self.v[n] = v
                s = u @ w @ v
                g[n] = self.coef * 2 * (s**k - 1) * k * s ** (k - 1) * np.outer(u, v)
            else:  # d/db (b.b)^k
                g[n] = self.coef * k * (w @ w) ** (k - 1) * 2 * w
        return g


class Churn:
    """C-CHAIN with deep copies: the reference network is the one before the last update."""

    def __init__(self, coef: float, kind: str, draw: Callable[[int], Array | None]) -> None:
        self.coef, self.kind, self.draw = coef, kind, draw
        self.history: list[Params] = []

    def __call__(self, t: int, p: Params) -> Params:
        self.history.append({n: a.copy() for n, a in p.items()})
        x = self.draw(t)
        if x is None or len(self.history) < 2:
            return {}
        before, now = logits(self.history[-2], x), logits(p, x)
        if self.kind == "mse":
            d = 2 * (now - before) / now.size
        else:  # KL(old || new) and CE(old, new) have the same gradient
            d = (softmax(now) - softmax(before)) / len(x)
        return {n: self.coef * g for n, g in backward(p, x, d).items()}
