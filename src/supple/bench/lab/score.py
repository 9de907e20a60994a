"""Verdicts against truth: counts, sensitivity, specificity and step 0, with Wilson intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from supple.bench.statistics import wilson
from supple.bench.studies.predicts import spearman
from supple.bench.tables import Cell, Table, markdown

MECHANISM = {
    "dead": "dead_units", "rank": "rank_collapse", "common": "ntk_degeneration", "ordered": "ntk_degeneration",
    "grown": "weight_growth", "saturated": "saturation", "cloned": "cloned_units",
}  # fmt: skip
HALF = 0.5
FLOOR = 0.05  # a gain within the noise of the scores is none
STEP_0 = "plasticity_loss"
THREE = ("dead_units", "rank_collapse", "ntk_degeneration")
REST = (
    "false alarms on healthy", "two or three at once, all found",
    "several repairs would do, one of them named, none false",
)  # fmt: skip
HARMFUL, LOST, NOT_LOST = 0.25, 0.10, 0.03
Row = dict[str, Any]


def gains(row: Row) -> dict[str, float]:
    """What each repair gave back, less what it gives healthy networks."""
    return {ill: score - row["own"] for ill, score in row["repairs"].items()}


def sufficient(row: Row) -> list[str]:
    """The single repairs that give half of the lost learning back."""
    needed = max(HALF * (row["healthy"] - row["own"]), FLOOR)
    return [ill for ill, gain in gains(row).items() if "+" not in ill and gain >= needed]


def present(row: Row) -> list[str]:
    """The mechanisms that are true of a network: those whose repair gives half of the lost learning back.

    What a repair gives healthy networks too (centring helps every ReLU network a little) does not count. With
    several illnesses one repair alone may give nothing back: then a mechanism is also true where leaving its repair
    out of the joint one forgoes half of what the joint one recovers.
    """
    found = sufficient(row)
    gain = gains(row)
    joint = max(gain, key=lambda k: k.count("+"), default="")
    if "+" in joint and gain[joint] >= max(HALF * (row["healthy"] - row["own"]), FLOOR):
        ills = joint.split("+")
        for ill in ills:
            rest = gain["+".join(i for i in ills if i != ill)]
            if gain[joint] - rest >= HALF * gain[joint]:
                found.append(ill)
    return sorted({MECHANISM[i] for i in found})


def interchangeable(row: Row) -> bool:
    """Whether several single repairs would do, one of the three among them, so that naming one of them is right."""
    known = {MECHANISM[i] for i in sufficient(row)}
    return len(known) > 1 and bool(known & set(THREE)) and not any("+" in k for k in row["repairs"])


def _share(hits: Iterable[bool]) -> dict[str, Any]:
    found = list(hits)
    lo, hi = wilson(sum(found), len(found))
    return {"hits": sum(found), "n": len(found), "lo": lo, "hi": hi}


def claims(row: Row, mechanism: str) -> bool:
    return row["verdicts"][mechanism]["status"] == "present"


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """All shares of one half, over all families and by family; cases without a truth are counted, not scored."""
    known = [r for r in rows if r["loss"] is not None]
    families = sorted({r["family"] for r in known})
    return {
        "cases": len(rows),
        "without_truth": len(rows) - len(known),
        "all": _scores(known),
        "families": {f: _scores([r for r in known if r["family"] == f]) for f in families},
        "confusion": _confusion(known),
        "calibration": calibration(known),
        "brier": brier(known),
        "severity": {m: agreement(known, m) for m in (STEP_0, *THREE)},
        "wrong": [_wrong(r) for r in known if _wrong(r)["found"] != _wrong(r)["true"]],
    }


def _scores(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for m in THREE:
        ill = [r for r in rows if m in r["present"] and r["loss"] >= HARMFUL and not interchangeable(r)]
        well = [r for r in rows if m not in r["present"]]
        found[m] = {
            "sensitivity": _share(claims(r, m) for r in ill),
            "specificity": _share(not claims(r, m) for r in well),
        }
    controls = [r for r in rows if r["healthy_by_design"] and r["loss"] < LOST]
    judged = [r for r in rows if r["loss"] >= LOST or r["loss"] < NOT_LOST]
    found["false alarms on healthy"] = _share(any(claims(r, m) for m in THREE) for r in controls)
    found["step 0"] = _share(claims(r, STEP_0) == (r["loss"] >= LOST) for r in judged)
    any_of = [r for r in rows if interchangeable(r) and r["loss"] >= HARMFUL]
    found["several repairs would do, one of them named, none false"] = _share(
        any(claims(r, m) for m in r["present"]) and all(m in r["present"] for m in THREE if claims(r, m))
        for r in any_of
    )
    two = [
        r
        for r in rows
        if len(set(r["present"]) & set(THREE)) > 1 and r["loss"] >= HARMFUL and not interchangeable(r)
    ]
    found["two or three at once, all found"] = _share(
        all(claims(r, m) for m in THREE if m in r["present"]) for r in two
    )
    return found


def calibration(rows: Sequence[Row], bins: int = 5) -> list[dict[str, float]]:
    """Claimed probability against the share that is true, in equal bins, over the three mechanisms."""
    pairs = [
        (float(p), mechanism in r["present"])
        for r in rows
        for mechanism in THREE
        if (p := r["verdicts"][mechanism].get("probability")) is not None
    ]
    table = []
    for i in range(bins):
        lo, hi = i / bins, (i + 1) / bins
        mine = [(p, t) for p, t in pairs if lo <= p < hi or (i == bins - 1 and p == 1.0)]
        if mine:
            claimed, true = (fmean(v) for v in zip(*mine, strict=True))
            table.append({"lo": lo, "hi": hi, "n": len(mine), "claimed": claimed, "true": true})
    return table


def brier(rows: Sequence[Row]) -> float:
    """Mean squared distance of probability and truth (Brier 1950); 0 is perfect, NaN without a probability."""
    squares = [
        (float(p) - (mechanism in r["present"])) ** 2
        for r in rows
        for mechanism in THREE
        if (p := r["verdicts"][mechanism].get("probability")) is not None
    ]
    return fmean(squares) if squares else math.nan


def agreement(rows: Sequence[Row], mechanism: str) -> dict[str, Any]:
    """Spearman's correlation of a severity with the true loss, over all networks and over those it was found in."""
    known = [r for r in rows if r["verdicts"][mechanism].get("severity") is not None]
    pairs = [(r["verdicts"][mechanism]["severity"], r["loss"]) for r in known]
    found = [pair for pair, r in zip(pairs, known, strict=True) if claims(r, mechanism)]
    return {"n": len(pairs), "all": spearman(pairs), "n_found": len(found), "found": spearman(found)}


def _wrong(row: Row) -> dict[str, Any]:
    return {
        "case": row["case"],
        "loss": row["loss"],
        "true": [m for m in THREE if m in row["present"]],
        "found": [m for m in THREE if claims(row, m)],
    }


def _confusion(rows: Sequence[Row]) -> dict[str, int]:
    """How often each set of true mechanisms met each set of found ones."""
    counts: dict[str, int] = {}
    for row in rows:
        pair = _wrong(row)
        key = f"{'+'.join(pair['true']) or 'none'} -> {'+'.join(pair['found']) or 'none'}"
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))


def _text(share: Row) -> Cell:
    if not share["n"]:
        return Cell("no case")
    return Cell(f"{share['hits']}/{share['n']} [{share['lo']:.2f}, {share['hi']:.2f}]", **share)


def render(found: dict[str, Any]) -> str:
    """Markdown of a `summary`."""
    return markdown(parts(found))


def parts(found: dict[str, Any]) -> list[str | Table]:
    """Sentences and tables of a `summary`."""
    columns = [found["all"], *found["families"].values()]
    rows = [
        [f"{m}, {kind}", *(_text(c[m][kind]) for c in columns)]
        for m in THREE
        for kind in ("sensitivity", "specificity")
    ]
    rows += [[key, *(_text(c[key]) for c in columns)] for key in (*REST, "step 0")]
    told: list[str | Table] = [
        f"{found['cases']} networks, {found['without_truth']} without a truth (references do not learn).",
        Table("verdicts against truth", ("of", "all", *found["families"]), rows),
    ]
    if found["calibration"]:
        told += [
            f"Brier score of the probabilities: {found['brier']:.3f}.",
            _calibration(found["calibration"]),
        ]
    told += ["Does severity follow the loss?", _severity(found["severity"])]
    counts = [[k, Cell(str(v), count=v)] for k, v in found["confusion"].items()]
    told.append(Table("confusion", ("true -> found", "networks"), counts))
    wrong = [
        [w["case"], Cell(f"{w['loss']:.2f}", value=w["loss"]), ", ".join(w["true"]) or "none",
         ", ".join(w["found"]) or "none"]
        for w in found["wrong"]
    ]  # fmt: skip
    return [*told, Table("wrong", ("wrong", "loss", "true", "found"), wrong)] if wrong else told


def _severity(found: dict[str, Any]) -> Table:
    def cells(rho: float, n: int) -> list[Cell]:
        return [Cell(str(n), count=n), Cell("–") if math.isnan(rho) else Cell(f"{rho:.2f}", value=rho)]

    rows = [[m, *cells(a["all"], a["n"]), *cells(a["found"], a["n_found"])] for m, a in found.items()]
    columns = (
        "severity of",
        "networks",
        "rank correlation with the loss",
        "found in",
        "correlation in these",
    )
    return Table("severity", columns, rows)


def _calibration(bins: Sequence[Row]) -> Table:
    rows = [
        [f"{b['lo']:.1f} to {b['hi']:.1f}", Cell(str(b["n"]), count=b["n"]),
         *(Cell(f"{b[k]:.2f}", value=b[k]) for k in ("claimed", "true"))]
        for b in bins
    ]  # fmt: skip
    return Table("calibration", ("claimed probability", "mechanisms", "mean claimed", "true"), rows)
