"""The rounds in words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from supple.bench.rounds.measure import SHARES
from supple.bench.rounds.read import PARTS, PROBE, Record, refused, table
from supple.bench.statistics import Estimate

HEADS = (
    "arm", "end loss, last third", "minus fresh, first third", "minus fresh, last third", "change",
    "rounds at fresh's loss", "loss of round 0",
)  # fmt: skip


def verdict(found: Mapping[str, Any], records: Sequence[Record] = ()) -> str:
    """Does the plain model lose plasticity at this scale? To lose it is to end worse than fresh models, late on."""
    fresh = "fresh models" if not _model(records) else "the folder's model tuned anew"
    change = found["full"]["change"]
    late = found["full"]["minus fresh, last third"]
    if change is None or late is None:
        return "The plain model broke down, or there are too few rounds: a loss is not finite."
    gap, moved = late, change.difference
    sign = "worse" if gap.value > 0 else "better"
    text = (
        f"In the last third of the rounds full fine-tuning ends {abs(gap.value):.3f} nats {sign} than {fresh}"
    )
    if math.isnan(moved.lo):
        return text + "; one seed gives no interval, and no verdict on a loss of plasticity."
    interval = f"{moved.value:+.3f} [{moved.lo:+.3f}, {moved.hi:+.3f}]"
    if moved.lo > 0:
        text += f", and its head start shrinks ({interval})."
    else:
        text += f"; no clear change against the first third ({interval})."
    apart = f"difference to {fresh} {gap.value:+.3f} [{gap.lo:+.3f}, {gap.hi:+.3f}]"
    if gap.lo > 0:
        return f"There is a loss of plasticity at this scale: {apart}. {text}"
    if gap.hi < 0:
        return f"No loss of plasticity appears at this scale: {apart}. {text}"
    return f"Whether there is a loss of plasticity cannot be told from {gap.samples} seeds: {apart}. {text}"


def render(records: Sequence[Record]) -> str:
    """Markdown: the sentence and the tables."""
    found = table(records)
    text = [verdict(found, records), ""] if "full" in found else []
    if data := _data(records):
        text += [f"Texts: the domains of {data}.", ""]
    if model := _model(records):
        text += [f"Model: {model}; fresh arms begin every round with the folder's weights.", ""]
    classes = any("accuracy" in row for row in found.values())
    text += _heads((*HEADS, "accuracy, first → last third") if classes else HEADS)
    for arm, row in found.items():
        change = None if row["change"] is None else row["change"].difference
        cells = [_cell(row[HEADS[1]], ""), *(_cell(row[h]) for h in HEADS[2:4])]
        cells += [_cell(change), format(row["rounds at fresh's loss"], ".0%")]
        cells.append(_arrow(row["loss on the first language"]))
        text.append(_line(arm, *cells, *([_arrow(row.get("accuracy", ()))] if classes else [])))
    text += ["", *_steps(found)]
    parts = [p for p in PARTS if any(p in row["ranks"] for row in found.values())]
    text += [
        "",
        "Effective rank over the number of directions, round 0 → last:",
        "",
        *_heads(("arm", *parts)),
    ]
    text += [_line(arm, *(_arrow(row["ranks"].get(p, ())) for p in parts)) for arm, row in found.items()]
    measured = {arm: row["probe"] for arm, row in found.items() if "probe" in row}
    if measured:
        text += [
            "",
            "On a fixed probe of many texts, round 0 → last (units of the MLPs, kernel, churn of one step):",
            "",
            *_heads(("arm", *(p.replace("_", " ") for p in PROBE))),
        ]
        text += [_line(arm, *(_arrow(row[p], 3) for p in PROBE)) for arm, row in measured.items()]
    text += [f"\n{arm} was not run: {why}" for arm, why in refused(records).items()]
    return "\n".join(text)


def _steps(found: Mapping[str, Any]) -> list[str]:
    """Steps to a fixed loss, first third → last third of the rounds."""
    shares = [f"{s:g}" for s in SHARES] if any("steps to a share" in r for r in found.values()) else []
    heads = ["arm", "fresh's end loss", "change", *(f"{float(s):.0%} of the entropy" for s in shares)]
    text = [
        "Steps to a fixed loss, first → last third of the rounds; not reached counts as a whole round:",
        "", *_heads(heads),
    ]  # fmt: skip
    for arm, row in found.items():
        cells = []
        for steps in (
            row["steps to fresh's loss"],
            *(row.get("steps to a share", {}).get(s) for s in shares),
        ):
            if steps is None:
                cells.append("–")
                continue
            cells.append(_arrow([_value(steps["first third"]), _value(steps["last third"])], 0))
            if "rounds that reach it" not in steps:
                cells.append(
                    "not finite" if steps["change"] is None else _cell(steps["change"].difference, "+", 0)
                )
            else:
                cells[-1] += f" ({steps['rounds that reach it']:.0%} reach it)"
        text.append(_line(arm, *cells))
    return text


def _model(records: Sequence[Record]) -> str:
    return next((r["model"]["name"] for r in records if r.get("model")), "")


def _data(records: Sequence[Record]) -> str:
    return next((r["data"]["name"] for r in records if r.get("data")), "")


def _value(e: Estimate | None) -> float:
    return math.nan if e is None else e.value


def _heads(names: Sequence[str]) -> list[str]:
    return [_line(*names), "|" + "---|" * len(names)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _arrow(values: Sequence[float], digits: int = 2) -> str:
    return " → ".join("–" if math.isnan(v) else f"{v:.{digits}f}" for v in values) or "–"


def _cell(e: Estimate | None, sign: str = "+", digits: int = 3) -> str:
    if e is None:
        return "not finite"
    form = f"{sign}.{digits}f"
    return format(e.value, form) + ("" if e.samples < 2 else f" [{e.lo:{form}}, {e.hi:{form}}]")
