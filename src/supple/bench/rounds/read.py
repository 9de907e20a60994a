"""What the rounds say: end loss against fresh models, steps to a fixed loss, memory, ranks, dead units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from supple.bench.lab.run import lines
from supple.bench.rounds.run import BLOCK, END, RECORDS
from supple.bench.statistics import Estimate, Paired, mean, paired
from supple.errors import InputError

Record = Mapping[str, Any]
#: the fresh arm that an arm is held against
REFERENCE = {"forgetting": "forgetting_fresh"}
PARTS = ("q", "k", "v", "o", "up", "down")


def end_losses(record: Record) -> list[float]:
    """Mean loss of the last blocks of each round; NaN of a round that broke."""
    return [fmean(b) if None not in (b := r["blocks"][-END:]) else math.nan for r in record["rounds"]]


def steps_to(record: Record, targets: Sequence[float]) -> list[float]:
    """Steps of each round until a block's loss is at or under the target; NaN where that does not come."""
    found = []
    for row, target in zip(record["rounds"], targets, strict=False):
        at = next((i for i, b in enumerate(row["blocks"]) if b is not None and b <= target), None)
        found.append(math.nan if at is None else float((at + 1) * BLOCK))
    return found


def third(values: Sequence[float], last: bool) -> float:
    """Mean of the first or last third of the rounds after the first one, in which all models are new."""
    rest = list(values[1:])
    size = max(1, len(rest) // 3)
    return fmean(rest[-size:] if last else rest[:size])


def table(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Arm -> figures over seeds: gap to fresh early and late, its change, steps, memory, ranks, units."""
    by_arm: dict[str, dict[int, Record]] = {}
    for r in records:
        by_arm.setdefault(r["arm"], {})[r["seed"]] = r
    out: dict[str, dict[str, Any]] = {}
    for arm, runs in by_arm.items():
        fresh = by_arm.get(REFERENCE.get(arm, "fresh"), {})
        seeds = [s for s in runs if s in fresh]
        if not seeds:
            raise InputError("an arm has no fresh models to be held against", found=arm)
        gaps = {s: _minus(end_losses(runs[s]), end_losses(fresh[s])) for s in seeds}
        early, late = ([third(gaps[s], end) for s in seeds] for end in (False, True))
        steps = [steps_to(runs[s], end_losses(fresh[s])) for s in seeds]
        out[arm] = {
            "end loss, last third": _mean([third(end_losses(runs[s]), True) for s in seeds]),
            "minus fresh, first third": _mean(early),
            "minus fresh, last third": _mean(late),
            "change": _paired(late, early),
            "rounds at fresh's loss": fmean(fmean(math.isfinite(v) for v in found[1:]) for found in steps),
            "loss on the first language": [
                fmean(runs[s]["rounds"][i]["first_language"] for s in seeds) for i in (0, -1)
            ],
            "ranks": {
                p: [fmean(runs[s]["rounds"][i]["ranks"][p] for s in seeds) for i in (0, -1)]
                for p in PARTS
                if p in runs[seeds[0]]["rounds"][0]["ranks"]
            },
            "seeds": len(seeds),
        }
    return out


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=False)]


def _mean(values: Sequence[float]) -> Estimate | None:
    return mean(values) if all(map(math.isfinite, values)) else None


def _paired(a: Sequence[float], b: Sequence[float]) -> Paired | None:
    return paired(a, b) if all(map(math.isfinite, (*a, *b))) else None


def verdict(found: Mapping[str, Any]) -> str:
    """One sentence: does the plain model lose plasticity at this scale?"""
    change = found["full"]["change"]
    late = found["full"]["minus fresh, last third"]
    if change is None or late is None:
        return "The plain model broke down: a loss is not finite."
    gap, moved = late, change.difference
    sign = "worse" if gap.value > 0 else "better"
    text = f"In the last third of the rounds full fine-tuning ends {abs(gap.value):.3f} nats {sign} than fresh models"
    if math.isnan(moved.lo):
        return text + "; one seed gives no interval."
    if moved.lo > 0:
        return f"{text}, and its head start shrinks ({moved.value:+.3f} [{moved.lo:+.3f}, {moved.hi:+.3f}])."
    return f"{text}; no clear change against the first third ({moved.value:+.3f} [{moved.lo:+.3f}, {moved.hi:+.3f}])."


def render(records: Sequence[Record]) -> str:
    """Markdown: the sentence and two tables."""
    found = table(records)
    text = [verdict(found), ""] if "full" in found else []
    heads = (
        "arm", "end loss, last third", "minus fresh, first third", "minus fresh, last third", "change",
        "rounds at fresh's loss", "first language",
    )  # fmt: skip
    text += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for arm, row in found.items():
        change = None if row["change"] is None else row["change"].difference
        cells = [_cell(row[heads[1]], ""), *(_cell(row[h]) for h in heads[2:4])]
        memory = " → ".join(f"{v:.2f}" for v in row["loss on the first language"])
        cells += [_cell(change), format(row["rounds at fresh's loss"], ".0%"), memory]
        text.append("| " + " | ".join([arm, *cells]) + " |")
    text += ["", "Effective rank over the number of directions, round 0 → last:", ""]
    text += ["| arm | " + " | ".join(PARTS) + " |", "|" + "---|" * (len(PARTS) + 1)]
    for arm, row in found.items():
        cells = [" → ".join(f"{v:.2f}" for v in row["ranks"].get(p, ())) or "–" for p in PARTS]
        text.append("| " + " | ".join([arm, *cells]) + " |")
    return "\n".join(text)


def _cell(e: Estimate | None, sign: str = "+") -> str:
    if e is None:
        return "not finite"
    form = f"{sign}.3f"
    return format(e.value, form) + ("" if e.samples < 2 else f" [{e.lo:{form}}, {e.hi:{form}}]")


def answer(folder: Path) -> tuple[str, dict[str, Any]]:
    """(text, plain types) of a folder of records."""
    records = lines(folder / RECORDS)
    if not records:
        raise InputError("there are no records here", where=str(folder))
    return render(records), {"records": records}
