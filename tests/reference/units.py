"""Unit scores and batch-gradient statistics in numpy float64, written from the papers, one unit at a time."""

from __future__ import annotations

import numpy as np


def _units(h: np.ndarray, unit_dim: int) -> list[np.ndarray]:
    """The responses of each unit over samples and positions."""
    h = np.moveaxis(np.asarray(h, dtype=np.float64), unit_dim, 0)
    return [unit.reshape(-1) for unit in h]


def dormant_scores(h: np.ndarray, unit_dim: int = 1) -> np.ndarray:
    """Sokar et al. 2023, eq. 1: the mean magnitude over the layer's mean of it."""
    means = [np.mean(np.abs(u)) for u in _units(h, unit_dim)]
    layer = sum(means) / len(means)
    return np.array([m / layer if layer > 0 else 0.0 for m in means])


def grama_scores(grad: np.ndarray, kind: str, unit_dim: int) -> np.ndarray:
    """Liu et al. 2025: mean gradient magnitude of a unit over that of its layer."""
    means = [np.mean(np.abs(u)) for u in _units(grad, unit_dim if kind == "preactivation" else 0)]
    layer = sum(means) / len(means)
    return np.array([m / layer if layer > 0 else np.nan for m in means])


def dead(h: np.ndarray, unit_dim: int = 1) -> np.ndarray:
    return np.array([float(not np.any(u != 0)) for u in _units(h, unit_dim)])


def always_on(h: np.ndarray, unit_dim: int = 1) -> np.ndarray:
    return np.array([float(np.all(u > 0)) for u in _units(h, unit_dim)])


def saturated(h: np.ndarray, kind: str, unit_dim: int = 1) -> np.ndarray:
    """|tanh| > 0.9, or a sigmoid outside [0.01, 0.99]."""
    test = (lambda u: np.abs(u) > 0.9) if kind == "tanh" else (lambda u: (u < 0.01) | (u > 0.99))
    return np.array([np.mean(test(u)) for u in _units(h, unit_dim)])


def cloned(h: np.ndarray, unit_dim: int = 1, centred: bool = True) -> np.ndarray:
    units = [u - u.mean() if centred else u for u in _units(h, unit_dim)]
    best = []
    for i, a in enumerate(units):
        cosines = [0.0]
        for j, b in enumerate(units):
            length = np.linalg.norm(a) * np.linalg.norm(b)
            if i != j and length > 1e-12:
                cosines.append(abs(a @ b) / length)
        best.append(max(cosines))
    return np.array(best)


def diversity(g: np.ndarray) -> float:
    """Yin et al. 2018: sum of squared norms over the squared norm of the sum."""
    g = g.astype(np.float64)
    return sum(np.dot(r, r) for r in g) / np.dot(g.sum(0), g.sum(0))


def statistics(g: np.ndarray) -> tuple[float, float, float]:
    """(||E g||^2, tr Cov, E||g||^2): pairs of different samples, and numpy's own covariance."""
    g = g.astype(np.float64)
    n = len(g)
    pairs = [g[i] @ g[j] for i in range(n) for j in range(n) if i != j]
    return float(np.mean(pairs)), float(np.trace(np.atleast_2d(np.cov(g.T)))), float(np.mean((g**2).sum(1)))


def contribution(h: np.ndarray, out: np.ndarray, unit_dim: int = 1) -> np.ndarray:
    """Dohare et al. 2024, Algorithm 1: |h_i| sum_k |w_ik|, mean over the batch."""
    return np.array(
        [
            np.mean(np.abs(u)) * sum(abs(w) for w in out[:, i].reshape(-1))
            for i, u in enumerate(_units(h, unit_dim))
        ]
    )


def adaptable(h: np.ndarray, out: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Dohare et al. 2021: the mean-corrected contribution over the mean incoming magnitude."""
    return np.array(
        [
            np.mean(np.abs(u - u.mean())) * np.abs(out[:, i]).sum() / np.mean(np.abs(into[i]))
            for i, u in enumerate(_units(h, 1))
        ]
    )
