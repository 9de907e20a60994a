"""Float64 numpy twins of methods on weights, from the papers and the authors' code (facts only)."""

from __future__ import annotations

import math

import numpy as np
from tests.reference.penalties import Array, Params


class Wasserstein:
    """2 (θ at rank i − the i-th smallest of θ₀), put back where the entry sits."""

    def __init__(self, p: Params, coef: float, mean: bool = False) -> None:
        self.coef, self.mean = coef, mean
        self.sorted = {n: np.sort(w.ravel()) for n, w in p.items()}

    def __call__(self, t: int, p: Params) -> Params:
        out = {}
        for n, w in p.items():
            rank = np.argsort(np.argsort(w.ravel(), kind="stable"), kind="stable")
            g = 2 * (w.ravel() - self.sorted[n][rank]).reshape(w.shape)
            out[n] = self.coef * g / (w.size if self.mean else 1)
        return out


class Parseval:
    """d/dW ‖W Wᵀ − s I‖² = 4 (W Wᵀ − s I) W, on the short side, of hidden weights."""

    def __init__(self, hidden: list[str], coef: float, scale: float, width: int) -> None:
        self.hidden, self.coef, self.scale, self.width = hidden, coef, scale, width

    def __call__(self, t: int, p: Params) -> Params:
        out = {}
        for n in self.hidden:
            w = p[n] if p[n].shape[0] <= p[n].shape[1] else p[n].T
            factor = self.coef * (self.width / len(w)) ** 2
            g = factor * 4 * (w @ w.T - self.scale * np.eye(len(w))) @ w
            out[n] = g if p[n].shape[0] <= p[n].shape[1] else g.T
        return out


def feature_rank_gradient(phi: Array) -> Array:
    """d/dΦ (σ₁² − σ_k²) = 2 (σ₁ u₁ v₁ᵀ − σ_k u_k v_kᵀ)."""
    u, s, vt = np.linalg.svd(phi, full_matrices=False)
    return 2 * (s[0] * np.outer(u[:, 0], vt[0]) - s[-1] * np.outer(u[:, -1], vt[-1]))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def erfi(x: float) -> float:
    """(2/√π) ∫₀ˣ exp(t²) dt by Gauss-Legendre quadrature: another way than the series."""
    t = 0.5 * x * (_NODES + 1)
    return float(2 / math.sqrt(math.pi) * 0.5 * x * np.sum(_WEIGHTS * np.exp(t**2)))


class Trac:
    """One tuner per discount over all parameters of one optimizer."""

    def __init__(self, start: Params, betas: tuple[float, ...], s0: float = 1e-8, eps: float = 1e-8) -> None:
        self.ref = {n: w.copy() for n, w in start.items()}
        self.betas, self.s0, self.eps = betas, s0, eps
        self.s, self.v, self.sigma = ([x] * len(betas) for x in (0.0, 0.0, 1e-8))

    def step(self, theta: Params, grads: Params, stepped: Params) -> Params:
        """``stepped``: where the base optimizer went from ``theta``."""
        whole = sum(self.s) + self.eps
        delta = {n: (theta[n] - self.ref[n]) / whole for n in theta}
        h = sum(float((delta[n] * grads[n]).sum()) for n in theta)
        for i, b in enumerate(self.betas):
            self.v[i] = b * b * self.v[i] + h * h
            self.sigma[i] = b * self.sigma[i] - h
            x = self.sigma[i] / (math.sqrt(2) * math.sqrt(self.v[i]) + self.eps)
            self.s[i] = self.s0 / erfi(1 / math.sqrt(2)) * erfi(x)
        scale = max(sum(self.s), 0.0)
        return {n: self.ref[n] + scale * (delta[n] + stepped[n] - theta[n]) for n in theta}
