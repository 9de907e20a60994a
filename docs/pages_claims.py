"""The claims page: what the field says of loss of plasticity, and what was measured here, with a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from page import NOTICE, ROOT, read

HOLDS, PARTLY, NOT_HERE = "holds", "holds partly", "does not hold here"
CONTROL = "digits-permuted-iid"
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


@dataclass(frozen=True)
class Claim:
    """A sentence that can be tested, where it was tested, and the judgement made from the committed figures."""

    text: str
    pages: tuple[str, ...]
    judge: Callable[[Data], Verdict]


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


def _shares(found: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {'no gap' if value != value else format(value, '.0%')}" for name, value in found.items()
    )


def _count(flags: list[bool]) -> str:
    return HOLDS if all(flags) else PARTLY if any(flags) else NOT_HERE


def lost(data: Data) -> Verdict:
    gaps = {p: data.tables[p]["plain"]["against_fresh"] for p in NEW}
    text = ", ".join(f"{p} {g['value']:+.2f} [{g['lo']:+.2f}, {g['hi']:+.2f}]" for p, g in gaps.items())
    return _count([g["hi"] < 0 for g in gaps.values()]), f"plain against fresh over the last tenth: {text}"


def linear_level(data: Data) -> Verdict:
    pairs = {p: (data.last(p, "plain"), data.last(p, "linear")) for p in NEW}
    text = ", ".join(f"{p} {a:.2f} against {b:.2f}" for p, (a, b) in pairs.items())
    return _count([a <= b for a, b in pairs.values()]), f"plain against the linear model: {text}"


def eases(method: str) -> Callable[[Data], Verdict]:
    """Slows without stopping: part of the gap is closed, a part stays."""

    def judge(data: Data) -> Verdict:
        found = data.recovered(method)
        return _count([0.05 < v < 0.9 for v in found.values()]), f"share of the gap closed: {_shares(found)}"

    return judge


def keeps(method: str, enough: float = 0.9) -> Callable[[Data], Verdict]:
    """Prevents: nearly all of the gap is closed."""

    def judge(data: Data) -> Verdict:
        found = data.recovered(method)
        return _count([v >= enough for v in found.values()]), f"share of the gap closed: {_shares(found)}"

    return judge


def only_one(data: Data) -> Verdict:
    means = {
        m: fmean(data.recovered(m).values())
        for m in data.tables[NEW[0]]
        if m not in ("plain", "fresh", "linear")
    }
    order = sorted(means.items(), key=lambda item: -item[1])
    better = [m for m, v in order if v > means["cbp"]]
    text = ", ".join(f"{m} {v:.0%}" for m, v in order)
    return NOT_HERE if better else HOLDS, f"mean share of the gap closed over {len(NEW)} protocols: {text}"


def sequence(data: Data) -> Verdict:
    falls = {n: data.tables[n]["plain"]["from_peak"]["value"] for n in ("digits-permuted", CONTROL)}
    text = ", ".join(f"{n} {v:.2f}" for n, v in falls.items())
    holds = falls[CONTROL] < 0.2 * falls["digits-permuted"]
    return HOLDS if holds else PARTLY, f"fall below its own peak: {text}"


def linear_keeps(data: Data) -> Verdict:
    falls = {p: data.tables[p]["linear"]["from_peak"]["value"] for p in NEW}
    text = ", ".join(f"{p} {v:.2f}" for p, v in falls.items())
    return _count([v < 0.03 for v in falls.values()]), f"fall of the linear model below its own peak: {text}"


def fourier_flat(data: Data) -> Verdict:
    falls = {p: data.tables[p]["fourier"]["from_peak"]["value"] for p in NEW}
    text = ", ".join(f"{p} {v:.2f}" for p, v in falls.items())
    return _count([v < 0.03 for v in falls.values()]), f"fall below its own peak: {text}"


def spectral_beats_l2(data: Data) -> Verdict:
    pairs = {p: data.last(p, "spectral") - data.last(p, "l2") for p in NEW}
    text = ", ".join(f"{p} {v:+.2f}" for p, v in pairs.items())
    return _count([v > 0 for v in pairs.values()]), f"spectral minus L2, last tenth: {text}"


def regrama_beats_redo(data: Data) -> Verdict:
    pairs = {p: data.last(p, "regrama") - data.last(p, "redo") for p in NEW}
    text = ", ".join(f"{p} {v:+.2f}" for p, v in pairs.items())
    gains = {r["network"]: r["gain"]["difference"] for r in data.grama["repairs"]}
    more = ", ".join(f"{n} {g['value']:+.3f} [{g['lo']:+.3f}, {g['hi']:+.3f}]" for n, g in gains.items())
    clear = [g["lo"] > 0 for g in gains.values()] + [v > 0.01 for v in pairs.values()]
    return _count(clear), f"ReGraMa minus ReDo: {text}; worn {more}"


def grama_sees_more(data: Data) -> Verdict:
    rows = [c for c in data.grama["comparisons"] if c["tau"] == 0.1 and c["ratio"] is not None]
    text = ", ".join(
        f"{c['network']} {c['ratio']['value']:.2f} [{c['ratio']['lo']:.2f}, {c['ratio']['hi']:.2f}]"
        for c in rows
    )
    residual = next(c["ratio"] for c in rows if c["network"] == "ResNet-8")
    verdict = HOLDS if residual["lo"] >= 2 else PARTLY if residual["lo"] > 1 else NOT_HERE
    return verdict, f"GraMa / dormant units, τ = 0.1: {text}"


def moves(instrument: str, up: bool) -> Callable[[Data], Verdict]:
    """An instrument rises (or falls) over the stream in the plain network."""

    def judge(data: Data) -> Verdict:
        found = data.course(instrument)
        text = ", ".join(f"{p} {a:.3g} → {b:.3g}" for p, (a, b) in found.items())
        return _count(
            [(b > a) is up for a, b in found.values()]
        ), f"`{instrument}`, plain, first and last look: {text}"

    return judge


def churn_tells(data: Data) -> Verdict:
    rows = {n: data.instruments[n] for n in data.instruments if n.startswith("churn")}
    text = "; ".join(
        f"{n}: within {r['within']['value']:+.2f} [{r['within']['lo']:+.2f}, {r['within']['hi']:+.2f}]"
        for n, r in rows.items()
    )
    best = max(data.instruments.values(), key=lambda r: r["strength"])
    text += f"; the strongest instrument of all is `{best['instrument']}` ({best['strength']:.2f})"
    signs = [r["within"]["hi"] < 0 for r in rows.values()]
    return _count(signs), f"rank correlation with the next task's learning: {text}"


def matched(origin: str, arm: str, enough: float = 0.5) -> Callable[[Data], Verdict]:
    """The remedy gives back half of what is lost or more on networks with the illness."""

    def judge(data: Data) -> Verdict:
        rows = [
            o
            for o in dict.fromkeys(r["origin"] for r in data.matrix)
            if o.startswith(origin) and o != "healthy"
        ]
        found = {o: data.repairs(o, arm) for o in rows}
        return _count([v >= enough for v in found.values()]), f"share given back: {_shares(found)}"

    return judge


def indirect(data: Data) -> Verdict:
    rows = [o for o in dict.fromkeys(r["origin"] for r in data.matrix) if o.startswith("rank collapse")]
    found = {o: data.repairs(o, "cbp") for o in rows}
    spectral = {o: data.repairs(o, "spectral") for o in rows}
    text = f"CBP gives back {_shares(found)}; spectral regularisation {_shares(spectral)}"
    return _count([found[o] < spectral[o] for o in rows]), text


SECTIONS: Mapping[str, tuple[Claim, ...]] = {
    "The loss": (
        Claim("A network trained on one task after another learns each new one worse.", NEW, lost),
        Claim("In the end it learns no better than a linear model.", NEW, linear_level),
        Claim("The order of the data does it: the same samples shuffled into one stream do no harm.",
              ("digits-permuted", CONTROL), sequence),
        Claim("A linear model does not lose plasticity.", NEW, linear_keeps),
    ),
    "What prevents and what only slows": (
        Claim("Layer normalisation does not prevent it.", NEW, eases("layernorm")),
        Claim("L2 regularisation slows it and does not stop it.", NEW, eases("l2")),
        Claim("Shrink and perturb eases it without solving it.", NEW, eases("shrink_perturb")),
        Claim("Continual backpropagation keeps the ability to learn.", NEW, keeps("cbp")),
        Claim("It is the only training-level method that does.", NEW, only_one),
        Claim("CReLU works in simple networks.", NEW, keeps("crelu")),
        Claim("Fourier features keep a near-constant level over the tasks.", NEW, fourier_flat),
        Claim("Spectral regularisation does better than L2.", NEW, spectral_beats_l2),
        Claim("C-CHAIN keeps the ability to learn.", NEW, keeps("cchain")),
    ),
    "Mechanisms and fingerprints": (
        Claim("Dead units accumulate over the tasks.", ("predicts",), moves("dead", True)),
        Claim("The effective rank of the weights falls.", ("predicts",), moves("effective_rank (relative)", False)),
        Claim("The largest singular value dominates more and more.", ("predicts",), moves("sigma_ratio", True)),
        Claim("The rank of the tangent kernel falls.", ("predicts",), moves("ntk_rank99 (relative)", False)),
        Claim("Churn rises over the tasks.", ("predicts",), moves("churn (relative)", True)),
        Claim("Churn is the sign of a loss of plasticity.", ("predicts",), churn_tells),
        Claim("In residual networks gradients show two to three times as many inactive units as activations.",
              ("grama-vs-dormant",), grama_sees_more),
        Claim("Resets guided by gradients do better than resets guided by activations.",
              ("grama-vs-dormant", *NEW), regrama_beats_redo),
    ),
    "Matched and mismatched remedies": (
        Claim("Dead units: ReGraMa repairs them.", ("matrix",), matched("dead units", "regrama")),
        Claim("Rank collapse: spectral regularisation repairs it.", ("matrix",), matched("rank collapse", "spectral")),
        Claim("NTK degeneration: C-CHAIN repairs it.", ("matrix",), matched("NTK degeneration", "cchain")),
        Claim("Continual backpropagation helps a rank collapse only indirectly, less than the matched remedy.",
              ("matrix",), indirect),
        Claim("Continual backpropagation repairs all three mechanisms.", ("matrix",), matched("", "cbp")),
    ),
}  # fmt: skip

HEAD = (
    "# Claims",
    "",
    "What is said of loss of plasticity, and what was measured here. Claims follow the article this library was",
    "built to check and the papers it cites, in our words. Every figure is made from the committed results, each",
    "with its command: [results](README.md). A verdict is that of a rule in `docs/pages_claims.py`, not of taste.",
    "",
    "**Scale.** Small networks (two hidden layers of 64 to 128 units), 8 × 8 digits and 28 × 28 MNIST, 20 to 150",
    "tasks, method settings as `supple bench` has them and not tuned for each protocol. The published runs are 10",
    "to 1,000 times longer. *Does not hold here* means here.",
    "",
)


def claims() -> dict[str, str]:
    """The page of claims, where all that it rests on was computed."""
    needed = ("results/matrix/records.json", "results/predicts/study.json", f"results/{CONTROL}/demo.json")
    if not NEW or not all((ROOT / path).exists() for path in needed):
        return {}
    data = Data()
    lines = [NOTICE, "", *HEAD]
    for title, section in SECTIONS.items():
        lines += [f"## {title}", "", "| claim | verdict | measured | where |", "|---|---|---|---|"]
        for claim in section:
            verdict, text = claim.judge(data)
            where = ", ".join(f"[{p}]({p}.md)" for p in claim.pages)
            lines.append(f"| {claim.text} | **{verdict}** | {text} | {where} |")
        lines.append("")
    return {"results/claims.md": "\n".join(lines)}
