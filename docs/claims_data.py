"""The committed figures that the claims are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from page import ROOT, read

HOLDS, PARTLY, NOT_HERE = "holds", "holds partly", "does not hold here"
CONTROL = "digits-permuted-iid"
LONG = "continual-tiny-imagenet"
PRESET = {"digits-permuted": "demo", "digits-random-labels": "demo", CONTROL: "demo"}
METHODS = {
    "plain", "fresh", "linear", "l2", "shrink_perturb", "cbp", "redo", "regrama", "spectral", "crelu",
    "fourier", "cchain", "layernorm",
}  # fmt: skip


def table(protocol: str) -> Path:
    """The committed table of a protocol."""
    return ROOT / "results" / protocol / f"{PRESET.get(protocol, 'small')}.json"


def whole(protocol: str) -> bool:
    """Whether a protocol has a table with every method that a claim speaks of."""
    path = table(protocol)
    return path.exists() and {row["method"] for row in read(path)["rows"]} >= METHODS


#: protocols in which every task is new, so that a fresh network is the healthy level
NEW = tuple(
    p
    for p in (
        "digits-permuted",
        "digits-random-labels",
        "permuted-mnist",
        "label-flipping-mnist",
        "random-label-mnist",
    )
    if whole(p)
)
Verdict = tuple[str, str]


class Data:
    """The committed figures."""

    def __init__(self) -> None:
        folder = ROOT / "results"
        known = (*NEW, "digits-permuted", CONTROL)
        self.tables = {n: self._rows(table(n)) for n in known if table(n).exists()}
        self.matrix = read(folder / "matrix/records.json")["records"]
        ranking = read(folder / "predicts/study.json")["answer"]["ranking"]
        self.instruments = {row["instrument"]: row for row in ranking}
        self.grama = read(folder / "grama-vs-dormant/study.json")["answer"]
        self.trials = read(folder / "trials/records.json")["records"]
        self.long = {r["method"]: r for r in read(folder / LONG / "long.json")["runs"]}

    @staticmethod
    def _rows(path: Any) -> dict[str, dict[str, Any]]:
        return {row["method"]: row for row in read(path)["rows"]}

    def last(self, protocol: str, method: str) -> float:
        return float(self.tables[protocol][method]["last"]["value"])

    def recovered(self, method: str) -> dict[str, float]:
        """Protocol -> share of the gap between plain and fresh that a method closes at the end."""
        ends = {p: [self.last(p, m) for m in ("plain", method, "fresh")] for p in NEW}
        return {p: (m - plain) / (fresh - plain) for p, (plain, m, fresh) in ends.items()}

    def repairs(self, origin: str, arm: str) -> float:
        """Mean share of the gap that an arm of the matrix closes."""
        from supple.bench.lab.matrix import recovered

        return fmean(recovered(r, arm) for r in self.matrix if r["origin"] == origin)

    def course(self, instrument: str) -> Mapping[str, tuple[float, float]]:
        return self.instruments[instrument]["course"]
