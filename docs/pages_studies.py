"""The pages of the studies: dormant share against GraMa, and which instrument foretells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from page import NOTICE, ROOT, cell, origin, read
from pages_agents import agents_page


def studies() -> dict[str, str]:
    """The pages of the studies with committed answers."""
    pages = {
        "grama-vs-dormant": grama_page,
        "predicts": predicts_page,
        "rl-gym": agents_page,
        "rl-minatar": agents_page,
    }
    found = sorted((ROOT / "results").glob("*/study.json"))
    return {f"results/{p.parent.name}.md": pages[p.parent.name](p) for p in found}


def grama_page(path: Path) -> str:
    """`grama-vs-dormant`: three tables and what they say of the claim."""
    data = read(path)
    name, answer = path.parent.name, data["answer"]
    lines = [
        NOTICE,
        "",
        f"# {name}",
        "",
        *STUDY_HEAD,
        f"{answer['seeds']} seeds, mean with 95 % t interval.",
        "",
    ]
    lines += ["## Inactive units of the worn networks", ""]
    lines += [
        "| network | τ | dormant | GraMa | GraMa / dormant | GraMa only | dormant only |",
        "|---|---|" + "---|" * 5,
    ]
    for row in answer["comparisons"]:
        cells = " | ".join(_told(row[k]) for k in ("dormant", "grama", "ratio", "missed", "extra"))
        lines.append(f"| {row['network']} | {row['tau']:g} | {cells} |")
    lines += [
        "",
        *STUDY_WORDS,
        *(_verdict(row) for row in answer["comparisons"]),
        "",
        "## Repairs",
        "",
        "| network | metric | plain | fresh | ReDo | ReGraMa | ReGraMa − ReDo |",
    ]
    lines.append("|---|---|" + "---|" * 5)
    for row in answer["repairs"]:
        levels = " | ".join(cell(row["levels"][m]) for m in ("plain", "fresh", "redo", "regrama"))
        lines.append(f"| {row['network']} | {row['metric']} | {levels} | {cell(row['gain']['difference'])} |")
    lines += [
        "",
        "Level over the last tenth of the tasks, each batch before its update; the difference is paired over",
        "seeds.",
        "",
    ]
    lines += ["## By layer, τ = 0.1", "", "| network | layer | dormant | GraMa |", "|---|---|---|---|"]
    lines += [
        f"| {r['network']} | `{r['layer']}` | {r['dormant']:.3f} | {r['grama']:.3f} |"
        for r in answer["layers"] if max(r["dormant"], r["grama"]) > 0
    ]  # fmt: skip
    lines += ["", "Layers without an inactive unit are left out.", "", *origin(data)]
    return "\n".join(lines)


PREDICTS_HEAD = (
    "# predicts",
    "",
    "Does an instrument foretell how well the next task will be learned? Spearman's rank correlation of its value",
    "at the end of task t with the online accuracy of task t + 1. *Within streams*: over the tasks of a run, mean",
    "over runs; an instrument that only rises with time correlates there with a level that only falls. *Across",
    "methods*: over methods and seeds at one task, mean over tasks; there time explains nothing. Intervals are 95",
    "%, bootstrap. Strength is the smaller of the two absolute correlations, 0 where the signs differ. `loss` and",
    "`accuracy` are levels of learning themselves, so that they rank high is no discovery. *Bundle* is the smallest",
    "bundle of instruments that measures it; what only `full` or training copies would measure was not run.",
    "",
    "Two protocols on an MLP and 8 × 8 images: what ranks high here need not elsewhere.",
    "",
)


def predicts_page(path: Path) -> str:
    """`predicts`: instruments, strongest first, with their course in the plain network."""
    data = read(path)
    answer = data["answer"]
    lines = [NOTICE, "", *PREDICTS_HEAD, f"{answer['runs']} runs.", ""]
    protocols = sorted({p for row in answer["ranking"] for p in row["course"]})
    heads = [
        "instrument",
        "bundle",
        "strength",
        "within streams",
        "across methods",
        *(f"plain, {p}" for p in protocols),
    ]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in answer["ranking"]:
        courses = [row["course"].get(p) for p in protocols]
        ends = [f"{c[0]:.3g} → {c[1]:.3g}" if c else "–" for c in courses]
        cells = [f"`{row['instrument']}`", _bundle(row["instrument"]), f"{row['strength']:.2f}",
                 cell(row["within"]), cell(row["across"])]  # fmt: skip
        lines.append("| " + " | ".join([*cells, *ends]) + " |")
    return "\n".join([*lines, "", *origin(data)])


def _bundle(measure: str) -> str:
    """The smallest bundle that measures it; none for what a run writes without instruments."""
    from supple.observe.instruments import available

    name = measure.partition(" ")[0]
    return next((i.cost for i in available().values() if name in i.records), "–")


def _verdict(row: dict[str, Any]) -> str:
    """What one ratio says of the claim, from its interval."""
    ratio, start = row["ratio"], f"* {row['network']}, τ = {row['tau']:g}:"
    if ratio is None or ratio["lo"] is None:
        return f"{start} hardly a unit is inactive by either measure, so the claim is not tested here."
    more = (
        "GraMa sees more"
        if ratio["lo"] > 1
        else "fewer"
        if ratio["hi"] < 1
        else "the two agree within the interval"
    )
    factor = "a factor of two or more is excluded" if ratio["hi"] < 2 else "a factor of two is not excluded"
    return f"{start} {more} ({ratio['value']:.2f} times as many units); {factor}."


def _told(entry: dict[str, float] | None) -> str:
    return "too few to tell" if entry is None else cell(entry)


STUDY_HEAD = (
    "The claim under test (Liu et al. 2025, arXiv 2505.24061, as it is often retold): in an MLP the dormant share",
    "and GraMa agree; in residual and diffusion networks GraMa finds two to three times as many inactive units,",
    "and ReGraMa repairs what ReDo does not. Each network is worn by a sequence of its own: two other classes of",
    "digits a task (`class-sequence`, `class-sequence-resnet`), another image domain a task (`image-domains`).",
    "Small networks, 8 × 8 images, Adam: what is found here need not hold for large ones.",
    "",
)
STUDY_WORDS = (
    "Shares of hidden units after the last task, on 256 samples of it: dormant by activations, GraMa by gradients",
    "before the nonlinearity. `GraMa only`: share of the units with little gradient that are not dormant;",
    "`dormant only`: share of the dormant units that do receive gradient. A quotient whose denominator is under 1",
    "% in some seed is not told.",
    "",
)
