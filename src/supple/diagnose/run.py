"""One diagnosis from end to end: validate, observe, step 0, identify, locate, prescribe."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from supple.diagnose import forgetting as memory
from supple.diagnose.architecture import Architecture
from supple.diagnose.errors import sampling_errors
from supple.diagnose.fitted import probability
from supple.diagnose.identify import identify
from supple.diagnose.inputs import check_budget, check_model
from supple.diagnose.locate import locate
from supple.diagnose.panel import Panel
from supple.diagnose.prescribe import prescribe
from supple.diagnose.trainability import trainability
from supple.diagnose.types import DiagnosisReport, Finding
from supple.errors import InputError
from supple.interventions.handle import Optimizers, optimizer_list
from supple.observe.batch import check_batch
from supple.observe.copies import unwrap
from supple.observe.guard import guard
from supple.observe.probe import Observation, observe
from supple.observe.reference import Reference, resolve
from supple.records import Records
from supple.status import Mechanism, Status
from supple.topology.inputs import Forward

if TYPE_CHECKING:
    from supple.observe.batch import Batch

DEFAULT_BUDGET = 30.0
MOST_TWINS = 5
FEWEST_TWINS = 3  # one twin does not show how twins differ: convolutional ones do by a factor of four
FEW_SECONDS = 4.0  # up to the fewest, more twins are looked at only within this time
TWIN_SECONDS = 0.4  # and after them only within this one
EXPLANATIONS = (Mechanism.DEAD_UNITS, Mechanism.RANK_COLLAPSE, Mechanism.NTK_DEGENERATION)


def run(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss_fn: Callable[..., Any],
    *,
    optimizer: Optimizers | None = None,
    reference: Any = None,
    history: Any = None,
    forward: Forward | None = None,
    budget: float | None = None,
    earlier: Sequence[tuple[Any, ...]] | None = None,
) -> DiagnosisReport:
    """Diagnose a network; `supple.diagnose` is this function, see there for the arguments.

    The model, the optimizer and the random state come back bit for bit, and no hook stays. ``budget`` is the
    time of step 0 in seconds (None: 30; 0 leaves it out). ``history`` is a `Monitor` or its records; a
    monitor also lends its reference where none is given.

    Raises:
        InputError: a batch that is not a pair or is empty, a model without trainable parameters, a reference
            that does not fit.
    """
    started = time.monotonic()
    checked, rows, reference = _validate(model, batch, optimizer, history, reference, budget)
    with guard(model, optimizer):
        healthy = resolve(reference, model)
        # detached inputs for the looks, so that nothing of the caller's graph is reached
        pair = (checked.inputs, checked.targets)
        seen = observe(model, pair, loss_fn, optimizer=optimizer, forward=forward)
        panel = _panel(model, pair, loss_fn, checked, healthy, forward, seen)
        looked = time.monotonic() - started
        loss = _step_zero(model, pair, loss_fn, checked, healthy, optimizer, forward, budget)
        forgot = _forgetting(model, rows, earlier, loss_fn, healthy, forward)
        findings = (loss, forgot, *(_how_sure(_without_loss(f, loss)) for f in identify(panel)))
        architecture = Architecture.of(seen.topology)
        sources = locate(findings, panel, architecture, rows)
    return DiagnosisReport(
        findings=findings,
        coverage=seen.topology.coverage,
        prescription=prescribe(findings, architecture),
        records=seen.records,
        arrays=seen.arrays,
        sources=sources,
        meta=_meta(panel, healthy, checked, time.monotonic() - started, looked, loss),
        topology=seen.topology,
        inputs=checked.inputs,
    )


def _validate(
    model: Any, batch: Any, optimizer: Any, history: Any, reference: Any, budget: float | None
) -> tuple[Batch, Records, Any]:
    check_model(model, "a diagnosis")
    if budget is not None:
        check_budget(budget, zero="to leave step 0 out")
    checked = check_batch(batch)
    if optimizer is not None:
        optimizer_list(optimizer)
    if history is None:
        return checked, Records(), reference
    rows = history if isinstance(history, Records) else getattr(history, "history", None)
    if not isinstance(rows, Records):
        raise InputError(
            "history must be a Monitor or Records",
            found=type(history).__name__,
            do="pass the monitor of this network, or its records",
        )
    if reference is None:
        reference = getattr(history, "reference", None)
    return checked, rows, reference


def _panel(
    model: nn.Module,
    pair: tuple[Any, Any],
    loss_fn: Callable[..., Any],
    checked: Batch,
    healthy: Reference | None,
    forward: Forward | None,
    seen: Observation,
) -> Panel:
    """Look at as many twins as time and the kind of reference allow, on the same probe."""
    twins: list[Observation] = []
    begun = time.monotonic()
    most = 0 if healthy is None else MOST_TWINS if healthy.distinct else 1
    while healthy is not None and len(twins) < most:
        allowed = FEW_SECONDS if len(twins) < FEWEST_TWINS else TWIN_SECONDS
        if twins and time.monotonic() - begun > allowed * len(twins) / (len(twins) + 1):
            break
        twin = unwrap(healthy.twin(len(twins)))
        twins.append(observe(twin, pair, loss_fn, forward=forward, topology=seen.topology))
    errors = {} if checked.problem else sampling_errors(unwrap(model), pair, loss_fn, seen, forward)
    return Panel(seen, twins, checked.samples, errors)


def _step_zero(
    model: nn.Module,
    pair: tuple[Any, Any],
    loss_fn: Callable[..., Any],
    checked: Batch,
    healthy: Reference | None,
    optimizer: Optimizers | None,
    forward: Forward | None,
    budget: float | None,
) -> Finding:
    if checked.problem:
        return Finding(Mechanism.PLASTICITY_LOSS, Status.INVALID, reason=checked.problem)
    measured = trainability(
        unwrap(model),
        pair,
        loss_fn,
        twin=None if healthy is None else healthy.twin,
        optimizer=optimizer,
        forward=forward,
        budget=DEFAULT_BUDGET if budget is None else budget,
    )
    return measured.finding()


def _forgetting(
    model: nn.Module,
    rows: Records,
    earlier: Sequence[tuple[Any, ...]] | None,
    loss_fn: Callable[..., Any],
    healthy: Reference | None,
    forward: Forward | None,
) -> Finding:
    if earlier:
        with guard(model, evaluate=True):
            twin = None if healthy is None else unwrap(healthy.twin(0)).eval()
            found, missing = memory.from_probes(unwrap(model), earlier, loss_fn, twin, forward)
        return memory.forgetting(found, missing or memory.HOW)
    return memory.forgetting(memory.from_records(rows))


def _without_loss(finding: Finding, loss: Finding) -> Finding:
    """What looks ill while nothing of the learning is lost is not the cause of a loss: it is watched."""
    if loss.status is not Status.ABSENT or finding.status is not Status.PRESENT:
        return finding
    if finding.mechanism not in EXPLANATIONS:
        return finding
    reason = f"{finding.reason}; but it learns as well as its twin, so this does no harm yet"
    return dataclasses.replace(finding, status=Status.INCONCLUSIVE, reason=reason, advice="")


def _how_sure(finding: Finding) -> Finding:
    chance = probability(finding.mechanism, finding.status, finding.severity)
    return finding if chance is None else dataclasses.replace(finding, probability=chance)


def _meta(
    panel: Panel, healthy: Reference | None, checked: Batch, seconds: float, looked: float, loss: Finding
) -> dict[str, Any]:
    weak: list[str] = []
    compared = "nothing: without a reference no mechanism can be told from the way the network was built"
    if healthy is not None:
        compared = (
            f"{len(panel.twins)} twin(s) from the {healthy.kind} reference, {checked.samples} probe samples"
        )
        if healthy.strength == "weak":
            weak.append(
                "the reference resets parameters with PyTorch's defaults: a network that was initialised "
                "otherwise may look ill or healthy beside it; a factory is better"
            )
        if not healthy.distinct:
            weak.append("one stored state is the only twin: how twins differ is taken from the lab")
        elif len(panel.twins) > 1 and len({t.value("weight_norm") for t in panel.twins}) == 1:
            weak.append(
                "the reference built the same network every time (does it seed itself?): how twins differ is taken "
                "from the lab"
            )
    if checked.samples < 64:
        weak.append(f"only {checked.samples} probe samples")
    weak.append(
        "churn barely moves until a network is dead; sigma_1 / sum sigma cannot tell 10 directions from 88"
    )
    return {
        "compared_with": compared,
        "reference": None if healthy is None else healthy.kind,
        "reference_strength": None if healthy is None else healthy.strength,
        "twins": len(panel.twins),
        "samples": checked.samples,
        "seconds": round(seconds, 3),
        "seconds_without_step_0": round(looked, 3),
        "weak": weak,
    }
