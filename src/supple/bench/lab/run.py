"""Run the lab: one case, one record; what is recorded is not measured again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from supple.bench.lab.cases import EVALUATION, PRESETS, TRAIN, Case, Size, cases
from supple.bench.lab.ills import hurt_
from supple.bench.lab.score import present, summary
from supple.bench.lab.truth import RATE, Bench
from supple.bench.lab.wear import train_
from supple.bench.networks import keyed
from supple.diagnose.run import run as diagnose
from supple.diagnose.types import plain
from supple.errors import InputError
from supple.streams import digits, generator

RECORDS, TRUTHS = "lab.jsonl", "truth.jsonl"


def bench(size: Size, half: str) -> Bench:
    """The digits of one half: the first 800 for training, the rest for evaluation; 256 are the probe."""
    x, y = (torch.as_tensor(a) for a in digits())
    start = 0 if half == TRAIN else 800
    return Bench(size, x[start : start + 256], y[start : start + 256])


def network(case: Case, lab: Bench) -> nn.Module:
    """The network of a case: fresh from its key, trained where told, then made ill."""
    net = keyed(case.factory, case.seed, "lab", case.name)
    order = generator(case.seed, "lab-order", case.name)
    train_(net, case.wear or "ordinary", case.tasks, lab.x, lab.y, order)
    for ill, severity in case.ills:
        hurt_(net, ill, severity)
    return net


def truth(case: Case, lab: Bench) -> dict[str, Any]:
    """What is true of one network, whatever a diagnosis says."""
    built = [[i, s] for i, s in case.ills]
    record = {"case": case.name, "half": case.half, "family": case.family, "built": built, "worn": case.wear,
              "healthy_by_design": case.healthy, **lab.truth(network(case, lab), case)}  # fmt: skip
    return plain(record)


def verdicts(case: Case, lab: Bench) -> dict[str, Any]:
    """What the diagnosis says of one network."""
    net = network(case, lab)
    report = diagnose(
        net, (lab.x, lab.y), F.cross_entropy, reference=case.factory, budget=lab.size.budget,
        optimizer=torch.optim.Adam(net.parameters(), lr=RATE),
    )  # fmt: skip
    found = {
        str(f.mechanism): {
            "status": str(f.status),
            "severity": f.severity,
            "probability": f.probability,
            "reason": f.reason,
            "evidence": {f"{e.name}@{e.layer}": [e.value, e.reference] for e in f.evidence if e.decides},
        }
        for f in report.findings
    }
    return plain({"case": case.name, "verdicts": found})


def run_lab(
    folder: Path,
    preset: str = "small",
    halves: tuple[str, ...] = (TRAIN, EVALUATION),
    *,
    limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Judge every case of a preset that is not in ``folder`` yet; returns all records in it.

    Truth and verdicts lie in files of their own: with the verdicts' file gone, a changed diagnosis is judged anew
    and the truth, which takes most of the time, stays.

    Raises:
        InputError: an unknown preset.
    """
    begin(folder, "lab", preset, PRESETS)
    labs = {half: bench(PRESETS[preset], half) for half in halves}
    todo = [c for half in halves for c in cases(preset, half)][:limit]
    for name, measure in ((TRUTHS, truth), (RECORDS, verdicts)):
        known = {r["case"] for r in lines(folder / name)}
        left = {
            f"{measure.__name__} {c.name}": partial(measure, c, labs[c.half])
            for c in todo
            if c.name not in known
        }
        complete(folder / name, left, say)
    return read(folder)


T = TypeVar("T")


def begin(folder: Path, name: str, preset: str, presets: Mapping[str, T]) -> T:
    """The size of a preset, and the folder of its records; an unknown preset is refused before the folder is made."""
    if preset not in presets:
        raise InputError(f"unknown preset {preset!r} of {name}", do=f"choose one of {', '.join(presets)}")
    folder.mkdir(parents=True, exist_ok=True)
    return presets[preset]


def complete(
    path: Path, left: Mapping[str, Callable[[], dict[str, Any]]], say: Callable[[str], None]
) -> None:
    """Compute what is left, title by title, and append each record to ``path`` when it is there."""
    begun = time.monotonic()
    for index, (title, measure) in enumerate(left.items(), 1):
        record = plain(measure())
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        each = (time.monotonic() - begun) / index
        say(f"{index}/{len(left)} {title}, about {each * (len(left) - index):.0f} s left")


def read(folder: Path) -> list[dict[str, Any]]:
    """The cases of a folder that have a truth and a verdict, with the mechanisms that are true of each."""
    found = {row["case"]: row for row in lines(folder / RECORDS)}
    rows = [row for row in lines(folder / TRUTHS) if row["case"] in found]
    return [{**row, **found[row["case"]], "present": present(row)} for row in rows]


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that was cut off is dropped from it."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def halves(folder: Path) -> dict[str, dict[str, Any]]:
    """The summary of each half that has records."""
    rows = read(folder)
    found = {half: [r for r in rows if r["half"] == half] for half in (EVALUATION, TRAIN)}
    return {half: summary(part) for half, part in found.items() if part}
