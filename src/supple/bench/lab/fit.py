"""Thresholds and probabilities from the training half: what separates truly ill from well, and how sure that is.

A threshold is fitted on cases in which nothing else fakes the statistic: positives have the mechanism and no other
of the three, negatives none of the three. It is the middle of the gap, or, where there is none, the value with the
largest Youden index (sensitivity + specificity - 1; Youden 1950). A probability is a logistic curve over severity
for each status (Platt 1999), with one added case on each side so that no group is certain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from supple.bench.lab.cases import TRAIN
from supple.bench.lab.run import read
from supple.bench.lab.score import HARMFUL, THREE, interchangeable
from supple.errors import InputError

#: illnesses that fake the statistic of another one
MIMICS = {
    "dead_units": ("common",),
    "rank_collapse": ("cloned", "rank"),
    "ntk_degeneration": ("ordered", "dead"),
}
Row = dict[str, Any]
Array = npt.NDArray[np.float64]
#: mechanism -> (name of the threshold, whether a larger statistic is ill)
STATISTIC = {
    "dead_units": ("grama", True),
    "rank_collapse": ("effective_rank", False),
    "ntk_degeneration": ("1 - ntk_mean_cosine", False),
}
RIDGE = 1.0  # few cases: a slope is shrunk


def separating(ill: Sequence[float], well: Sequence[float], above: bool) -> dict[str, float]:
    """The threshold between two samples, and what it makes of them.

    >>> separating([0.8, 0.9], [0.0, 0.2], True)
    {'value': 0.5, 'sensitivity': 1.0, 'specificity': 1.0}
    """
    sign = 1.0 if above else -1.0
    a, b = sign * np.sort(np.asarray(ill)), sign * np.sort(np.asarray(well))
    values = np.unique(np.concatenate([a, b]))
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    hit = np.array([(a > c).mean() for c in cuts])
    spared = np.array([(b < c).mean() for c in cuts])
    best = np.flatnonzero(hit + spared >= (hit + spared).max() - 1e-12)
    at = best[len(best) // 2]
    return {
        "value": float(sign * cuts[at]), "sensitivity": float(hit[at]), "specificity": float(spared[at]),
    }  # fmt: skip


def statistic(row: Row, mechanism: str) -> float:
    """The excess over the twin, or the ratio to it, that severity was made of; NaN where it was not measured."""
    severity = row["verdicts"][mechanism]["severity"]
    if severity is None:
        return math.nan
    return float(severity) if STATISTIC[mechanism][1] else 1.0 - float(severity)


def thresholds(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """A threshold for each of the three mechanisms, where both groups have cases."""
    found = {}
    for mechanism, (name, above) in STATISTIC.items():
        others = {m for m in THREE if m != mechanism}
        ill = [
            statistic(r, mechanism)
            for r in rows
            if mechanism in r["present"]
            and not others & set(r["present"])
            and r["loss"] >= HARMFUL
            and not interchangeable(r)
        ]
        # what fakes the statistic is told apart by the order of the rules, not by a threshold
        well = [
            statistic(r, mechanism)
            for r in rows
            if not set(THREE) & set(r["present"])
            and not {i for i, _ in r["built"]} & set(MIMICS[mechanism])
            and r["worn"] != "decayed-pairs"
        ]
        ill, well = ([v for v in group if math.isfinite(v)] for group in (ill, well))
        if ill and well:
            found[name] = {**separating(ill, well, above), "ill": len(ill), "well": len(well)}
    return found


def logistic(x: Array, y: Array) -> tuple[float, float]:
    """Intercept and slope of P(y) = 1 / (1 + exp(-(a + b x))), by Newton's method with a small ridge on b."""
    design = np.stack([np.ones_like(x), x], 1)
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-design @ beta))
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + np.diag([1e-9, RIDGE])
        step = np.linalg.solve(curvature, design.T @ (y - p) - np.array([0.0, RIDGE]) * beta)
        beta += np.clip(step, -4, 4)
        if np.abs(step).max() < 1e-10:
            break
    return float(beta[0]), float(beta[1])


def probabilities(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Mechanism -> status -> (intercept, slope) over severity, from the rows that have one truth.

    A slope is fitted where the mechanism was found; elsewhere severity is mostly what another one explains, and the
    curve is flat.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for mechanism in THREE:
        for status in ("present", "inconclusive", "absent"):
            mine = [
                r for r in rows if r["verdicts"][mechanism]["status"] == status and not interchangeable(r)
            ]
            x = [float(r["verdicts"][mechanism]["severity"] or 0.0) for r in mine]
            y = [float(mechanism in r["present"]) for r in mine]
            centre = float(np.mean(x)) if x else 0.5
            if status == "present":
                fitted = logistic(np.array([*x, centre, centre]), np.array([*y, 0.0, 1.0]))
            else:
                fitted = (math.log((sum(y) + 1) / (len(y) - sum(y) + 1)), 0.0)
            found.setdefault(mechanism, {})[status] = list(fitted)
    return found


def fit(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that the training half says, ready to be stored."""
    known = [r for r in rows if r["loss"] is not None]
    return {"cases": len(known), "thresholds": thresholds(known), "probability": probabilities(known)}


def of_folder(folder: Path) -> dict[str, Any]:
    """The fit of a lab folder, with where it comes from.

    Raises:
        InputError: a folder without records of the training half.
    """
    rows = [r for r in read(folder) if r["half"] == TRAIN]
    if not rows:
        raise InputError(
            "there are no records of the training half here",
            where=str(folder),
            do="run the lab first: supple bench run lab",
        )
    provenance = {
        "command": f"supple bench run lab --preset {folder.name}; supple bench fit FOLDER --json FILE",
        "half": TRAIN,
        "torch": torch.__version__,
    }
    return {"provenance": provenance, **fit(rows)}
