"""The rounds in words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from supple.bench.rounds.measure import SHARES
from supple.bench.rounds.read import PARTS, PROBE, Record, refused, table
from supple.bench.statistics import Estimate
from supple.bench.tables import Cell, Table, markdown

HEADS = (
    "arm", "end loss, last third", "minus fresh, first third", "minus fresh, last third", "change",
    "rounds at fresh's loss", "loss of round 0",
)  # fmt: skip


def verdict(found: Mapping[str, Any], records: Sequence[Record] = ()) -> str:
    """Does the plain model lose plasticity at this scale? To lose it is to end worse than fresh models, late on."""
    fresh = "fresh models" if not _name(records, "model") else "the folder's model tuned anew"
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
    elif moved.hi < 0:
        text += f", and the difference moves in its favour over the rounds ({interval})."
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
    return markdown(parts(records))


def parts(records: Sequence[Record]) -> list[str | Table]:
    """The sentence, what the rounds were of, the tables, and the arms that were not run."""
    found = table(records)
    told: list[str | Table] = [verdict(found, records)] if "full" in found else []
    if data := _name(records, "data"):
        told.append(f"Texts: the domains of {data}.")
    if model := _name(records, "model"):
        told.append(f"Model: {model}; fresh arms begin every round with the folder's weights.")
    told += [_losses(found), _steps(found), _ranks(found)]
    if any("probe" in row for row in found.values()):
        told.append(_probe(found))
    return told + [f"{arm} was not run: {why}" for arm, why in refused(records).items()]


def _losses(found: Mapping[str, Any]) -> Table:
    """End losses against fresh models, memory, and the accuracy of classification."""
    classes = any("accuracy" in row for row in found.values())
    rows = []
    for arm, row in found.items():
        change = None if row["change"] is None else row["change"].difference
        cells = [_cell(row[HEADS[1]], ""), *(_cell(row[h]) for h in HEADS[2:4]), _cell(change)]
        share = row["rounds at fresh's loss"]
        cells += [Cell(f"{share:.0%}", value=share), _arrow(row["loss on the first language"])]
        rows.append([arm, *cells, *([_arrow(row.get("accuracy", ()))] if classes else [])])
    return Table("losses", (*HEADS, "accuracy, first → last third") if classes else HEADS, rows)


def _ranks(found: Mapping[str, Any]) -> Table:
    shown = [p for p in PARTS if any(p in row["ranks"] for row in found.values())]
    rows = [[arm, *(_arrow(row["ranks"].get(p, ())) for p in shown)] for arm, row in found.items()]
    lead = "Effective rank over the number of directions, round 0 → last:"
    return Table("effective ranks", ("arm", *shown), rows, lead)


def _probe(found: Mapping[str, Any]) -> Table:
    measured = {arm: row["probe"] for arm, row in found.items() if "probe" in row}
    rows = [[arm, *(_arrow(row[p], 3) for p in PROBE)] for arm, row in measured.items()]
    lead = "On a fixed probe of many texts, round 0 → last (units of the MLPs, kernel, churn of one step):"
    return Table("probe", ("arm", *(p.replace("_", " ") for p in PROBE)), rows, lead)


def _steps(found: Mapping[str, Any]) -> Table:
    """Steps to a fixed loss, first third → last third of the rounds."""
    shares = [f"{s:g}" for s in SHARES] if any("steps to a share" in r for r in found.values()) else []
    heads = ["arm", "fresh's end loss", "change", *(f"{float(s):.0%} of the entropy" for s in shares)]
    rows = []
    for arm, row in found.items():
        cells: list[Cell] = []
        for steps in (
            row["steps to fresh's loss"],
            *(row.get("steps to a share", {}).get(s) for s in shares),
        ):
            if steps is None:
                cells.append(Cell("–"))
                continue
            shown = _arrow([_value(steps["first third"]), _value(steps["last third"])], 0)
            if "rounds that reach it" in steps:
                share = steps["rounds that reach it"]
                cells.append(shown.extended(f" ({share:.0%} reach it)", reached=share))
            else:
                change = steps["change"]
                cells += [shown, _cell(None if change is None else change.difference, "+", 0)]
        rows.append([arm, *cells])
    lead = "Steps to a fixed loss, first → last third of the rounds; not reached counts as a whole round:"
    return Table("steps", heads, rows, lead)


def _name(records: Sequence[Record], of: str) -> str:
    """The model or the data that the records know of themselves."""
    return next((r[of]["name"] for r in records if r.get(of)), "")


def _value(e: Estimate | None) -> float:
    return math.nan if e is None else e.value


def _arrow(values: Sequence[float], digits: int = 2) -> Cell:
    text = " → ".join("–" if math.isnan(v) else f"{v:.{digits}f}" for v in values) or "–"
    return Cell(text, **dict(zip(("first", "last"), values, strict=False)))


def _cell(e: Estimate | None, sign: str = "+", digits: int = 3) -> Cell:
    return Cell("not finite") if e is None else Cell.of(e, f"{sign}.{digits}f")
