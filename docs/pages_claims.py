"""The claims page: what the field says of loss of plasticity, and what was measured here, with a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from claims_data import CONTROL, LONG, NEW, Data, Verdict
from claims_judges import (
    churn_tells,
    eases,
    fourier_flat,
    grama_sees_more,
    indirect,
    keeps,
    linear_keeps,
    linear_level,
    long_course,
    lost,
    matched,
    matching_pays,
    moves,
    only_one,
    regrama_beats_redo,
    sequence,
    spectral_beats_l2,
)
from page import NOTICE, ROOT


@dataclass(frozen=True)
class Claim:
    """A sentence that can be tested, where it was tested, and the judgement made from the committed figures."""

    text: str
    pages: tuple[str, ...]
    judge: Callable[[Data], Verdict]


SECTIONS: Mapping[str, tuple[Claim, ...]] = {
    "The loss": (
        Claim("A network trained on one task after another learns each new one worse.", NEW, lost),
        Claim("In the end it learns no better than a linear model.", NEW, linear_level),
        Claim("The order of the data does it: the same samples shuffled into one stream do no harm.",
              ("digits-permuted", CONTROL), sequence),
        Claim("A linear model does not lose plasticity.", NEW, linear_keeps),
        Claim("A plain network falls over thousands of tasks.", (LONG,), long_course("plain", True)),
    ),
    "What prevents and what only slows": (
        Claim("Layer normalisation does not prevent it.", NEW, eases("layernorm")),
        Claim("L2 regularisation slows it and does not stop it.", NEW, eases("l2")),
        Claim("Shrink and perturb eases it without solving it.", NEW, eases("shrink_perturb")),
        Claim("Continual backpropagation keeps the ability to learn.", NEW, keeps("cbp")),
        Claim("It keeps it over 5,000 tasks.", (LONG,), long_course("cbp", False)),
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
        Claim("Measure the mechanism first: the matched remedy does better than the famous one and than nothing.",
              ("trials",), matching_pays),
    ),
}  # fmt: skip

HEAD = (
    "# Claims",
    "",
    "What is said of loss of plasticity, and what was measured here. Claims follow the article this library was",
    "built to check and the papers it cites, in our words. Every figure is made from the committed results, each",
    "with its command: [results](README.md). A verdict is that of a rule in `docs/claims_judges.py`, not of taste.",
    "",
    "**Scale.** Small networks (two hidden layers of 64 to 128 units), 8 × 8 digits and 28 × 28 MNIST, 20 to 150",
    "tasks, method settings as `supple bench` has them and not tuned for each protocol. The published runs are 10",
    "to 1,000 times longer. *Does not hold here* means here.",
    "",
)


def claims() -> dict[str, str]:
    """The page of claims, where all that it rests on was computed."""
    needed = (
        "results/matrix/records.json", "results/predicts/study.json", f"results/{CONTROL}/demo.json",
        "results/trials/records.json", f"results/{LONG}/long.json",
    )  # fmt: skip
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
