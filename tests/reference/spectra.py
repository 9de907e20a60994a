"""Ranks, kernel statistics, churn and penalties in numpy float64, written from the papers."""

from __future__ import annotations

import numpy as np


def effective_rank(s: np.ndarray, power: int = 1) -> float:
    """Roy & Vetterli 2007: exp of the Shannon entropy of the normalised spectrum (of its square: power 2)."""
    s = np.asarray(s, np.float64) ** power
    p = s[s > 0] / s.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def srank(s: np.ndarray, delta: float, power: int = 1) -> int:
    """Kumar et al. 2021: min k with sum_{i<=k} / sum >= 1 - delta; ties within 1e-10."""
    s = np.sort(np.asarray(s, np.float64))[::-1] ** power
    for k in range(1, len(s) + 1):
        if s[:k].sum() >= (1 - delta) * s.sum() * (1 - 1e-10):
            return k
    raise AssertionError


def kernel_statistics(k: np.ndarray) -> dict[str, float]:
    values = np.clip(np.linalg.eigvalsh(k)[::-1], 0, None)
    n = len(k)
    cosines = [k[i, j] / np.sqrt(k[i, i] * k[j, j]) for i in range(n) for j in range(n) if i != j]
    return {
        "rank99": srank(values, 0.01),
        "effective_rank": effective_rank(values),
        "condition": values[0] / values[-1],
        "mean_cosine": float(np.mean(cosines)),
        "trace": float(np.trace(k)),
    }


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def churn(before: np.ndarray, after: np.ndarray, kind: str) -> float:
    """Tang et al. 2025, per sample, then the mean."""
    if kind == "mse":
        return float(np.mean((after - before) ** 2))
    if kind == "flip":
        return float(np.mean(before.argmax(-1) != after.argmax(-1)))
    p, q = softmax(before), softmax(after)
    if kind == "ce":
        return float(np.mean(-(p * np.log(q)).sum(-1)))
    return float(np.mean((p * (np.log(p) - np.log(q))).sum(-1)))


def gaussian_kl(new: np.ndarray, old: np.ndarray) -> float:
    """KL(new ‖ old) of diagonal Gaussians, rows (means, ln of deviations), by full covariance matrices."""
    total = []
    for p, q in zip(new, old, strict=True):
        (m, s), (n, t) = np.split(p, 2), np.split(q, 2)
        a, b = np.diag(np.exp(2 * s)), np.diag(np.exp(2 * t))
        inverse = np.linalg.inv(b)
        ratio = np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]
        total.append(0.5 * (np.trace(inverse @ a) + (n - m) @ inverse @ (n - m) - len(m) + ratio))
    return float(np.mean(total))


def parseval(w: np.ndarray, scale: float) -> float:
    w = w if w.shape[0] <= w.shape[1] else w.T
    return float(((w @ w.T - scale * np.eye(len(w))) ** 2).sum())


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    return float(((np.sort(a.reshape(-1)) - np.sort(b.reshape(-1))) ** 2).sum())
