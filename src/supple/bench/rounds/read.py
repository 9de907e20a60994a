"""What the rounds say: end loss against fresh models, steps to a fixed loss, memory, ranks, units, kernel, churn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from supple.bench.lab.run import lines
from supple.bench.rounds.measure import BLOCK, SHARES
from supple.bench.rounds.run import RECORDS
from supple.bench.statistics import Estimate, Paired, mean, paired
from supple.diagnose.types import number, plain
from supple.errors import InputError

Record = Mapping[str, Any]
END = 2  # blocks at the end of a round that are its end loss
#: the fresh arm that an arm is held against
REFERENCE = {"forgetting": "forgetting_fresh", "forgetting_fresh": "forgetting_fresh"}
PARTS = ("q", "k", "v", "o", "gate", "up", "down")
#: what is read off the fixed probe after every round; records from before it was measured have none
PROBE = ("dead", "dormant", "cloned", "ntk_rank99", "ntk_effective_rank", "churn", "churn_relative")


def end_losses(record: Record) -> list[float]:
    """Mean loss of the last blocks of each round; NaN of a round that broke."""
    return [fmean(number(b) for b in r["blocks"][-END:]) for r in record["rounds"]]


def steps_to(record: Record, targets: Sequence[float]) -> list[float]:
    """Steps of each round until a block's loss is at or under the target; NaN where that does not come."""
    found = []
    for row, target in zip(record["rounds"], targets, strict=False):
        at = next((i for i, b in enumerate(row["blocks"]) if number(b) <= target), None)
        found.append(math.nan if at is None else float((at + 1) * BLOCK))
    return found


def steps_to_share(record: Record, share: float) -> list[float]:
    """Steps of each round to a share of the entropy of single tokens; NaN where that does not come, or was not kept."""
    return [number(r.get("steps_to", {}).get(f"{share:g}")) for r in record["rounds"]]


def third(values: Sequence[float], last: bool) -> float:
    """Mean of the first or last third of the rounds after the first one, in which all models are new."""
    rest = list(values[1:])
    if not rest:
        return math.nan
    size = max(1, len(rest) // 3)
    return fmean(rest[-size:] if last else rest[:size])


def refused(records: Sequence[Record]) -> dict[str, str]:
    """Arm -> why the network could not be given it."""
    return {r["arm"]: r["refused"] for r in records if "refused" in r}


def table(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Arm -> figures over seeds: gap to fresh early and late, its change, steps, memory, ranks, probe."""
    by_arm: dict[str, dict[int, Record]] = {}
    for r in records:
        if r["rounds"]:
            by_arm.setdefault(r["arm"], {})[r["seed"]] = r
    return {arm: _row(arm, runs, by_arm.get(REFERENCE.get(arm, "fresh"), {})) for arm, runs in by_arm.items()}


def _row(arm: str, runs: Mapping[int, Record], fresh: Mapping[int, Record]) -> dict[str, Any]:
    seeds = [s for s in runs if s in fresh]
    if not seeds:
        raise InputError("an arm has no fresh models to be held against", found=arm)
    mine, targets = [runs[s] for s in seeds], [end_losses(fresh[s]) for s in seeds]
    gaps = [_minus(end_losses(r), t) for r, t in zip(mine, targets, strict=True)]
    early, late = ([third(g, end) for g in gaps] for end in (False, True))
    steps = [steps_to(r, t) for r, t in zip(mine, targets, strict=True)]
    row = {
        "end loss, last third": _mean([third(end_losses(r), True) for r in mine]),
        "minus fresh, first third": _mean(early),
        "minus fresh, last third": _mean(late),
        "change": _paired(late, early),
        "rounds at fresh's loss": fmean(fmean(math.isfinite(v) for v in s[1:] or s) for s in steps),
        "steps to fresh's loss": _thirds(mine, steps),
        "loss on the first language": _ends(mine, lambda r: r["first_language"]),
        "ranks": {p: _ends(mine, lambda r, p=p: _ranks(r).get(p)) for p in PARTS if p in _ranks(mine[0]["rounds"][0])},
        "seeds": len(seeds),
    }  # fmt: skip
    if "accuracy" in mine[0]["rounds"][0]:
        accuracy = [[x["accuracy"] for x in r["rounds"]] for r in mine]
        row["accuracy"] = [fmean(third(a, end) for a in accuracy) for end in (False, True)]
    kept = [r for r in mine if "steps_to" in r["rounds"][0]]
    if kept:
        row["steps to a share"] = {
            f"{s:g}": {
                **_thirds(kept, found := [steps_to_share(r, s) for r in kept]),
                "rounds that reach it": fmean(math.isfinite(v) for f in found for v in f[1:] or f),
            }
            for s in SHARES
        }
        row["probe"] = {p: _ends(kept, lambda r, p=p: r["probe"].get(p)) for p in PROBE}
    return row


def _ranks(row: Mapping[str, Any]) -> Mapping[str, float]:
    """Of the weights as they compute: those of an adapter that is not merged are kept under a name of their own."""
    return row.get("ranks_adapted", row["ranks"])


def _ends(records: Sequence[Record], of: Any) -> list[float]:
    """[round 0, last round], means over the records."""
    return [fmean(number(of(r["rounds"][i])) for r in records) for i in (0, -1)]


def _thirds(records: Sequence[Record], steps: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Steps in the first and last third of the rounds; what was not reached counts as the whole round."""
    full = [r.get("steps", len(r["rounds"][0]["blocks"]) * BLOCK) for r in records]
    counted = [[f if math.isnan(v) else v for v in s] for f, s in zip(full, steps, strict=True)]
    early, late = ([third(c, end) for c in counted] for end in (False, True))
    return {"first third": _mean(early), "last third": _mean(late), "change": _paired(late, early)}


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=False)]


def _mean(values: Sequence[float]) -> Estimate | None:
    return mean(values) if all(map(math.isfinite, values)) else None


def _paired(a: Sequence[float], b: Sequence[float]) -> Paired | None:
    return paired(a, b) if all(map(math.isfinite, (*a, *b))) else None


def records_of(folder: Path, name: str = RECORDS) -> list[Record]:
    """The records of a folder, in the file of that name."""
    records = lines(folder / name)
    if not records:
        raise InputError("there are no records here", where=str(folder))
    return list(records)


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """What the records say, in plain types."""
    from supple.bench.rounds.words import verdict

    found = table(records)
    said = verdict(found, records) if "full" in found else None
    rows = {arm: _plain(row) for arm, row in found.items()}
    return {"verdict": said, "table": rows, "refused": refused(records), "records": list(records)}


def _plain(value: Any) -> Any:
    """Estimates as mappings; the rest as `plain` has it."""
    if isinstance(value, Estimate | Paired):
        return {k: _plain(v) for k, v in vars(value).items()}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return plain(value)
