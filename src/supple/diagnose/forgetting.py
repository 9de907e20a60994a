"""Has it forgotten earlier tasks? Read off the history of a monitor, or measured on earlier probes.

Forgetting is not loss of plasticity: a network may have forgotten everything and still learn like a
fresh one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from supple.diagnose.thresholds import FORGOTTEN
from supple.diagnose.types import Evidence, Finding
from supple.errors import InputError
from supple.observe.batch import as_classes, check_batch, main_output, run_loss, user_code
from supple.records import Record, Records
from supple.status import Mechanism, Status
from supple.topology.inputs import Forward, call

HOW = (
    "no earlier task is known: call monitor.task(name, probe=...) during training and pass history=monitor, "
    "or pass earlier=[(name, (inputs, targets)), ...]"
)
INSTRUMENTS = ("task_accuracy", "task_loss")
FORM = "an earlier task is (name, (inputs, targets)), or (name, (inputs, targets), best value)"
ASSUMED = "assumes that it had been learned to 100 %: pass (name, batch, best) to say better"


@dataclass(frozen=True)
class Recall:
    """One earlier task: its value now, at its best, and what a network knows that never learned it."""

    name: str
    now: float
    best: float
    naive: float
    higher_is_better: bool
    samples: int
    note: str

    @property
    def lost(self) -> float:
        """Share of what was learned that is gone: (best - now) / (best - naive); NaN where there is none."""
        gained = (self.best - self.naive) if self.higher_is_better else (self.naive - self.best)
        gone = (self.best - self.now) if self.higher_is_better else (self.now - self.best)
        return gone / gained if gained > 0 else math.nan


def forgetting(recalls: Sequence[Recall], reason: str = HOW) -> Finding:
    """The verdict over all earlier tasks: PRESENT where a tenth of what was learned is gone on average."""
    if not recalls:
        return Finding(Mechanism.FORGETTING, Status.NOT_MEASURED, reason=reason)
    if any(not math.isfinite(r.now) for r in recalls):
        bad = ", ".join(r.name for r in recalls if not math.isfinite(r.now))
        return Finding(Mechanism.FORGETTING, Status.INVALID, reason=f"NaN or Inf on {bad}")
    usable = [r for r in recalls if math.isfinite(r.lost)]
    if not usable:
        reason = "on no earlier task is it known that anything had been learned"
        return Finding(Mechanism.FORGETTING, Status.NOT_MEASURED, reason=reason)
    losses = [r.lost for r in usable]
    mean = sum(losses) / len(losses)
    error = max(_error(r) for r in usable) / math.sqrt(len(usable))
    lo, hi = mean - 1.96 * error, mean + 1.96 * error
    limit = FORGOTTEN.value
    status = Status.PRESENT if lo > limit else Status.ABSENT if hi < limit else Status.INCONCLUSIVE
    rows = [Evidence("share of learning forgotten", mean, lo, hi, 0.0, limit, len(usable), "samples: tasks")]
    rows += [
        Evidence("now", r.now, reference=r.best, samples=r.samples, layer=r.name, note=r.note, decides=False)
        for r in usable
    ]
    severity = min(1.0, max(0.0, mean))
    text = f"{mean:.0%} of what it had learned on {len(usable)} earlier task(s) is gone"
    if any(r.note == ASSUMED for r in usable):
        text += f"; this {ASSUMED}"
    advice = "replay earlier data, or regularise towards the old solution; plasticity is a separate question"
    return Finding(
        Mechanism.FORGETTING,
        status,
        severity,
        (),
        tuple(rows),
        advice if status is Status.PRESENT else "",
        text,
    )


def _error(r: Recall) -> float:
    gained = abs(r.best - r.naive)
    if not r.higher_is_better or r.samples == 0:
        return 0.05
    p = min(max(r.now, 0.0), 1.0)
    return math.sqrt((p * (1 - p) + 0.25 / r.samples) / r.samples) / gained


def from_records(rows: Iterable[Record] | Records) -> list[Recall]:
    """Recalls from ``task_accuracy`` (else ``task_loss``) rows; the variant names the earlier task.

    Best is the best value the run has seen on that task. What a network knows that never learned it is the
    first loss seen on it, and for accuracies 0, which makes forgetting look smaller, not larger.
    """
    table = [r for r in rows if r.instrument in INSTRUMENTS]
    for instrument in INSTRUMENTS:
        chosen = [r for r in table if r.instrument == instrument]
        if chosen:
            return _recalls(chosen, higher=instrument == "task_accuracy")
    return []


def _recalls(rows: list[Record], higher: bool) -> list[Recall]:
    series: dict[str, list[Record]] = {}
    for row in rows:
        series.setdefault(row.variant or row.task, []).append(row)
    best_of = max if higher else min
    current = rows[-1].task  # the task under way is not an earlier one
    found = []
    for name, steps in series.items():
        if name == current or len(steps) < 2:
            continue
        values = [s.value for s in steps if math.isfinite(s.value)]
        if not values:
            continue
        naive = 0.0 if higher else values[0]
        note = f"best of {len(values)} measurements in the run"
        found.append(Recall(name, steps[-1].value, best_of(values), naive, higher, steps[-1].samples, note))
    return found


def from_probes(
    model: nn.Module,
    earlier: Sequence[tuple[Any, ...]],
    loss_fn: Callable[[Any, Any], Any],
    twin: nn.Module | None,
    forward: Forward | None = None,
) -> tuple[list[Recall], str]:
    """Recalls measured now on earlier probes: ``(name, (inputs, targets))`` or with its best value as third.

    The best value is the accuracy (for classes) or the loss reached then. Without it the training accuracy
    of a network that has learned the task is assumed to be 1, which the note says; losses need it.
    """
    found: list[Recall] = []
    for name, (inputs, targets), *best in _checked(earlier):
        now, higher = measure(model, inputs, targets, loss_fn, forward)
        naive = measure(twin, inputs, targets, loss_fn, forward)[0] if twin is not None else math.nan
        if math.isnan(naive):
            naive = 1.0 / max(int(targets.max()) + 1, 2) if higher else math.nan
        if best:
            found.append(
                Recall(str(name), now, float(best[0]), naive, higher, len(targets), "best value given")
            )
        elif higher:
            note = ASSUMED
            found.append(Recall(str(name), now, 1.0, naive, higher, len(targets), note))
    missing = "" if found else "earlier tasks with a loss need their best value: (name, batch, best)"
    return found, missing


def _checked(earlier: Any) -> list[tuple[Any, ...]]:
    """Each entry as (name, (inputs, targets)) or with its best value, its batch checked.

    Raises:
        InputError: another form, an empty batch, a best value that is no finite number.
    """
    if isinstance(earlier, str) or not isinstance(earlier, Sequence):
        raise InputError(FORM, found=type(earlier).__name__, where="earlier")
    checked: list[tuple[Any, ...]] = []
    for number, entry in enumerate(earlier):
        where = f"earlier[{number}]"
        if not isinstance(entry, tuple | list) or len(entry) not in (2, 3) or not isinstance(entry[0], str):
            raise InputError(FORM, found=type(entry).__name__, where=where)
        try:
            batch = check_batch(entry[1])
        except InputError as error:
            raise InputError(error.what, found=error.found, where=where, do=error.do) from error
        best = tuple(entry[2:])
        if best and not (isinstance(best[0], int | float) and math.isfinite(best[0])):
            raise InputError(
                "the best value of an earlier task is a number", found=repr(best[0]), where=where
            )
        checked.append((entry[0], (batch.inputs, batch.targets), *best))
    return checked


def measure(
    model: nn.Module, inputs: Any, targets: Any, loss_fn: Callable[[Any, Any], Any], forward: Forward | None
) -> tuple[float, bool]:
    """Accuracy where outputs and targets have the shapes of a classification, else the loss."""
    with torch.no_grad():
        with user_code(
            "the model fails on the inputs of an earlier task",
            where="earlier",
            do="check the shapes and types of that batch, or pass forward=",
        ):
            outputs = call(model, inputs, forward)
        found = as_classes(main_output(outputs), targets)
        if found is None:
            return float(run_loss(loss_fn, outputs, targets)), False
        logits, classes = found
        if not bool(logits.isfinite().all()):
            return math.nan, True
        hit: Tensor = (logits.argmax(-1) == classes).float()
        return float(hit.mean()), True
