"""From a prescription to a change of the network: read first, checked in full, then applied or refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from supple.diagnose.copies import recipe
from supple.diagnose.inputs import check_model
from supple.diagnose.types import DiagnosisReport, PrescriptionLine
from supple.errors import AttachError, InputError, SuppleError
from supple.interventions.base import Intervention
from supple.interventions.engine import plan_reset
from supple.interventions.handle import Handle, Optimizers, optimizer_list
from supple.interventions.registry import create
from supple.interventions.reset_plan import ResetPlan
from supple.observe.copies import clean_copy, unwrap
from supple.observe.guard import rng_guard
from supple.status import Mechanism
from supple.topology.inputs import shrink

if TYPE_CHECKING:
    from supple.topology.graph import Topology

SCORES = "grama_scores/"


@dataclass(frozen=True)
class PlanStep:
    """One line of the prescription as an act: "reset", "attach", or "refused" with the reason."""

    line: PrescriptionLine
    action: str
    text: str
    intervention: Intervention | None = None
    reset: ResetPlan | None = None


@dataclass
class Plan:
    """What would be done to this model and optimizer. Nothing has been written; `apply_` does it."""

    model: nn.Module
    optimizer: Optimizers
    steps: tuple[PlanStep, ...]
    inputs: Any = field(default=None, repr=False)
    applied: bool = False

    @property
    def refused(self) -> tuple[PlanStep, ...]:
        """Lines that cannot be carried out on this network, each with its reason."""
        return tuple(s for s in self.steps if s.action == "refused")

    def __str__(self) -> str:
        if not self.steps:
            return "Plan: nothing to do."
        from supple.diagnose.text import wrap

        head = "Plan (applied)" if self.applied else "Plan (nothing is written until apply_())"
        lines = [head]
        for number, step in enumerate(self.steps, 1):
            lines += wrap(f"{step.action}: {step.text}", f" {number}. ")
        return "\n".join(lines)

    def apply_(self) -> list[Handle]:
        """Carry out every step that is not refused, or none: handles of what was attached.

        Attachments come first and are withdrawn if anything fails; a reset is checked as a whole before its
        first write. A second call is refused.
        """
        if self.applied:
            raise AttachError("this plan has been applied already", do="make a new plan from a new diagnosis")
        handles: list[Handle] = []
        done = False
        try:
            for step in self.steps:
                if step.intervention is not None and step.action == "attach":
                    handles.append(step.intervention.attach(self.model, self.optimizer, inputs=self.inputs))
            for step in self.steps:
                if step.reset is not None:
                    step.reset.apply_()
            done = True
        finally:
            if not done:
                for handle in handles:
                    handle.detach()
        self.applied = True
        return handles


def plan(model: nn.Module, optimizer: Optimizers, report: DiagnosisReport) -> Plan:
    """Turn the primary lines of a report into checked steps; what needs a new network is refused here.

    Raises:
        InputError: the report was made for a network with other layers; no module, no report, or an optimizer
            that does not train this model.
    """
    check_model(model, "a plan")
    held = {id(p) for item in optimizer_list(optimizer) for g in item.param_groups for p in g["params"]}
    if not held & {id(p) for p in model.parameters()}:
        raise InputError(
            "the optimizer holds no parameter of this model",
            where="optimizer",
            do="pass the optimizer that trains it",
        )
    if not isinstance(report, DiagnosisReport):
        raise InputError("a plan needs the report of a diagnosis", found=type(report).__name__)
    _check_same(model, report)
    steps: list[PlanStep] = []
    for line in report.prescription.lines:
        if line.kind == "architectural":
            if line.primary:
                steps.append(_refused(line, f"{line.intervention} {line.warning or 'needs a new network'}"))
            continue
        if line.primary:
            steps += _live_steps(model, optimizer, report, line)
    inputs = None if report.inputs is None else shrink(report.inputs, 8)
    return Plan(model, optimizer, tuple(steps), inputs)


def _check_same(model: nn.Module, report: DiagnosisReport) -> None:
    known = {name.removeprefix("_orig_mod.") for name, _ in model.named_modules(remove_duplicate=False)}
    parameters = {
        name.removeprefix("_orig_mod.") for name, _ in model.named_parameters(remove_duplicate=False)
    }
    strangers = [
        c.name for c in report.coverage.layers if c.name.split("#")[0] not in known | parameters and c.name
    ]
    if strangers:
        raise InputError(
            "the report was made for another network",
            found=f"no layer {', '.join(strangers[:5])}",
            do="diagnose this network and plan from that report",
        )


def _refused(line: PrescriptionLine, why: str) -> PlanStep:
    return PlanStep(line, "refused", why)


def _live_steps(
    model: nn.Module, optimizer: Optimizers, report: DiagnosisReport, line: PrescriptionLine
) -> list[PlanStep]:
    try:
        intervention = create(line.intervention, **line.settings)
    except SuppleError as error:
        return [_refused(line, str(error))]
    refusal = _rehearsed(model, optimizer, report, create(line.intervention, **line.settings))
    settings = ", ".join(f"{k}={v!r}" for k, v in line.settings.items())
    attach = PlanStep(line, "attach", f"{line.intervention}({settings}); {line.kind}", intervention)
    if refusal:
        attach = _refused(line, refusal)
    if line.mechanism is not Mechanism.DEAD_UNITS:
        return [attach]
    return [*_reset_steps(model, optimizer, report, line), attach]


def _rehearsed(
    model: nn.Module, optimizer: Optimizers, report: DiagnosisReport, intervention: Intervention
) -> str:
    """Why it cannot be attached here, found by attaching it to a copy; empty where it can."""
    network = clean_copy(model)
    inputs = None if report.inputs is None else shrink(report.inputs, 8)
    with rng_guard():
        try:
            intervention.attach(
                network, recipe(unwrap(model), optimizer).build(network), inputs=inputs
            ).detach()
        except SuppleError as error:
            return str(error)
    return ""


def _reset_steps(
    model: nn.Module, optimizer: Optimizers, report: DiagnosisReport, line: PrescriptionLine
) -> list[PlanStep]:
    """The one-off reset of the units that the diagnosis found without gradient."""
    if report.topology is None:
        text = "the one-off reset needs the topology, which a stored report does not hold: diagnose again"
        return [_refused(line, text)]
    tau = float(line.settings.get("tau", 0.1))
    chosen, barred = select_units(report, report.topology, tau)
    steps = [_refused(line, f"reset in {name}: {why}") for name, why in barred.items()]
    if not chosen:
        return steps
    try:
        made = plan_reset(model, optimizer, report.topology, chosen, seed=0, step=0)
    except SuppleError as error:
        return [*steps, _refused(line, f"reset: {error}")]
    counts = ", ".join(f"{len(units)} in {name}" for name, units in chosen.items())
    text = f"re-initialise now the units whose GraMa is at most {tau} of the layer mean: {counts}"
    return [*steps, PlanStep(line, "reset", text, None, made)]


def select_units(
    report: DiagnosisReport, topology: Topology, tau: float
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Units to be re-born by layer (score <= tau of the layer mean), and layers that forbid it, with why."""
    chosen: dict[str, Tensor] = {}
    barred: dict[str, str] = {}
    for key, scores in report.arrays.items():
        name = key.removeprefix(SCORES)
        if not key.startswith(SCORES) or name not in topology.layers:
            continue
        units = torch.nonzero(scores <= tau).flatten()
        if not len(units):
            continue
        refusal = topology.reset_refusal(name)
        if refusal is None:
            chosen[name] = units
        elif name in report.finding(Mechanism.DEAD_UNITS).layers:
            barred[name] = refusal
    return chosen, barred
