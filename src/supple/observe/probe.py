"""One probe pass over a live network: eager, in eval mode, state restored; instruments read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import InputError, SuppleError, TopologyError
from supple.observe.baselines import TWIN, Baseline
from supple.observe.batch import Batch, all_finite, as_classes, check_batch, main_output, run_loss
from supple.observe.copies import unwrap
from supple.observe.guard import guard
from supple.observe.instruments import Instrument, select
from supple.observe.recurrent import recurrent_views
from supple.observe.reference import Reference, resolve
from supple.observe.views import NOT_TRACED, LayerView, layers_by_type
from supple.records import Record, Records
from supple.status import Status
from supple.stepping import bare
from supple.topology.graph import Topology
from supple.topology.inputs import Forward, call
from supple.topology.parameters import refuse_empty
from supple.topology.taps import Taps, eager, plain_name, tap

LossFn = Callable[[Any, Any], Any]
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError)


@dataclass
class Observation:
    """What one look gave. ``arrays`` holds spectra and unit scores under the names in ``Record.array``."""

    records: Records
    arrays: dict[str, Tensor]
    topology: Topology
    loss: float
    outputs: Any

    def value(self, instrument: str, layer: str = "*", variant: str = "") -> float:
        """The measured value of one row; NaN where there is none. Groups of a convolution are left out."""
        known = self.topology.layers.get(layer)
        part = layer.partition("#")[2] if known is None else known.part
        row = self.records.last(
            instrument=instrument, layer=layer, variant=variant, part=part, status="measured"
        )
        return float("nan") if row is None else row.value


@dataclass
class Probe:
    """The pass that instruments read, and the factory of their rows."""

    model: nn.Module
    batch: Batch
    loss_fn: LossFn
    forward: Forward | None
    optimizers: list[Optimizer]
    baselines: Sequence[Baseline]
    reference: Reference | None
    seed: int
    step: int = -1
    task: str = ""
    outputs: Any = None
    loss: Tensor | None = None
    taps: Taps = field(default_factory=Taps)
    grads: dict[str, Tensor | None] = field(default_factory=dict)
    topology: Topology | None = None
    problems: dict[str, str] = field(default_factory=dict)  # need -> why it is invalid
    arrays: dict[str, Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return self.batch.samples

    def spread(self, n: int) -> Tensor:
        """n sample numbers, evenly over the probe."""
        return torch.linspace(0, self.samples - 1, n).round().long()

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """By plain name, aliases of tied parameters included."""
        return {plain_name(n): p for n, p in self.model.named_parameters(remove_duplicate=False)}

    @cached_property
    def layers(self) -> list[LayerView]:
        """Every layer of the topology."""
        modules = {plain_name(n): m for n, m in self.model.named_modules(remove_duplicate=False)}
        found = self.topology.layers.values() if self.topology is not None else ()
        return [
            LayerView(x, modules.get(x.module, self.model), self.parameters, self.taps, self.grads)
            for x in found
        ]

    @cached_property
    def matrices(self) -> list[LayerView]:
        """The layers, and the weights of recurrent modules, of which the topology tells no units."""
        known = {v.layer.weight for v in self.layers}
        return [*self.layers, *recurrent_views(self.model, self.parameters, known)]

    @property
    def hidden(self) -> list[LayerView]:
        """Layers whose units are scored: no outputs, no tables."""
        return [v for v in self.layers if not v.layer.output and not v.table]

    @cached_property
    def output(self) -> Tensor | None:
        return main_output(self.outputs)

    @cached_property
    def classes(self) -> tuple[Tensor, Tensor] | None:
        """(logits (M, C), classes (M,)) of a classification, else None."""
        return as_classes(self.output, self.batch.targets)

    def record(
        self, name: str, value: Tensor | float, view: LayerView | None = None, **fields: Any
    ) -> Record:
        """A measured row, of a layer's view, of another path (``layer=``) or pooled.

        A value that is not finite becomes an INVALID row.
        """
        number = float(value)
        fields.setdefault("samples", self.samples)
        fields.setdefault("part", view.part if view else "")
        fields.setdefault("layer", view.name if view else "*")
        if number != number or number in (float("inf"), float("-inf")):
            fields.setdefault("status", str(Status.INVALID))
            fields["note"] = fields.get("note") or "the value is not finite"
        return Record(name, number, step=self.step, task=self.task, **fields)

    def unmeasured(self, name: str, reason: str, view: LayerView | None = None, **fields: Any) -> Record:
        """A row that says why there is no value."""
        fields.setdefault("status", str(Status.NOT_MEASURED))
        return self.record(name, float("nan"), view, note=reason, **fields)

    def keep(self, kind: str, view: LayerView | None, value: Tensor) -> str:
        """Store an array; its name goes into the record."""
        name = f"{kind}/{view.name}" if view else kind
        self.arrays[name] = value.detach().cpu()
        return name


def observe(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss_fn: LossFn,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    instruments: str | Sequence[str] = "standard",
    topology: Topology | None = None,
    forward: Forward | None = None,
    seed: int = 0,
    reference: Any = None,
    baselines: Sequence[Baseline] | None = None,
    step: int = -1,
    task: str = "",
) -> Observation:
    """Look at a network once and write down what the instruments show; nothing of its state changes.

    One forward and one backward pass in eval mode (what needs more makes copies). A value that cannot be
    had is a row with status ``"not_measured"`` or ``"invalid"`` and the reason in ``note``. NaN or Inf in
    the probe, the weights or the loss makes rows INVALID; a probe of the wrong form is an error.

    Args:
        model: any module; wrappers of ``torch.compile`` and DistributedDataParallel are looked through.
        batch: ``(inputs, targets)``, held out.
        loss_fn: ``loss_fn(outputs, targets)`` -> scalar.
        optimizer: the one in use, one or several; its class and settings make the step that churn is
            measured on.
        instruments: a bundle (``"economy"``, ``"standard"``, ``"full"``) or names.
        topology: of `supple.topology.trace`; traced here when absent. A network that cannot be traced is
            read by
            module types, and every pooled row then says so.
        forward: ``forward(model, inputs)`` where the call is neither of a tensor, a tuple nor a mapping.
        seed: keys what is drawn at random.
        step, task: written into every row.
        reference: a healthy network (see `supple.observe.reference.resolve`): adds weight growth against it, and
            gives the twins of ``trainability``.
        baselines: networks whose weight norms growth is told against, in place of the reference alone.

    Raises:
        InputError: a batch that is not a pair or is empty, a model that fails on it, a loss that is not a
            scalar.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> batch = (torch.randn(32, 4), torch.randint(3, (32,)))
    >>> seen = observe(net, batch, nn.functional.cross_entropy, instruments="economy")
    >>> 0 <= seen.value("dead") <= 1, seen.records.last(instrument="dead", layer="2").note
    (True, 'an output layer: its units are never scored')
    """
    model = unwrap(model)
    given = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    optimizers = [bare(item) for item in given]
    refuse_empty(model)
    checked = check_batch(batch)
    chosen = select(instruments)
    healthy = resolve(reference, model, seed)
    if baselines is None:
        baselines = [] if healthy is None else [Baseline.of(TWIN, healthy)]
    probe = Probe(model, checked, loss_fn, forward, optimizers, baselines, healthy, seed, step, task)
    gradients = any("gradients" in i.needs for i in chosen)
    with guard(model, optimizers, evaluate=True), eager():
        run_pass(probe, gradients)
        probe.topology = topology or _trace(probe)
        rows = [row for item in chosen for row in _measure(item, probe)]
    loss = float("nan") if probe.loss is None else probe.loss.item()
    return Observation(Records(rows), probe.arrays, probe.topology, loss, probe.outputs)


def run_pass(probe: Probe, gradients: bool) -> None:
    """Forward, loss and gradients; what went wrong in the numbers is told in ``probe.problems``."""
    if probe.batch.problem:
        probe.problems = dict.fromkeys(("outputs", "units", "gradients", "copy"), probe.batch.problem)
        return
    with tap(probe.model, gradients=gradients) as taps:
        probe.taps = taps
        try:
            outputs = call(probe.model, probe.batch.inputs, probe.forward)
        except torch.OutOfMemoryError:
            raise
        except _FAILURES as error:
            if isinstance(error, SuppleError):
                raise
            raise InputError(
                "the model fails on the probe inputs",
                found=f"{type(error).__name__}: {error}",
                do="check the shapes and types of the probe, or pass forward=",
            ) from error
        taps.end_forward()
        loss = run_loss(probe.loss_fn, outputs, probe.batch.targets)
        if not bool(loss.isfinite()):
            probe.problems["gradients"] = probe.problems["copy"] = f"the loss is {loss.item()}"
        elif gradients:
            _differentiate(probe, loss)
    probe.outputs, probe.loss = _detach(outputs), loss.detach()
    seen = probe.output
    if seen is not None and not all_finite(seen):
        for need in ("outputs", "gradients", "copy"):
            probe.problems.setdefault(need, "the outputs of the network hold NaN or Inf")


def _differentiate(probe: Probe, loss: Tensor) -> None:
    """Gradients of all trainable parameters without writing ``.grad`` or firing hooks that wait for it."""
    parameters = {id(p): p for p in probe.parameters.values() if p.requires_grad}
    if not loss.requires_grad:
        probe.problems["gradients"] = "the loss does not depend on a trainable parameter"
        return
    if not parameters:
        probe.problems["gradients"] = "every parameter of the model is frozen; what trains lies outside of it"
        return
    wanted = list(parameters.values())
    try:
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
    except RuntimeError as error:
        if ".grad()" not in str(error) or "heckpoint" not in str(error):
            raise
        if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in wanted):
            probe.problems["gradients"] = (
                "re-entrant checkpointing together with hooks that wait for gradients"
            )
            return
        # re-entrant checkpointing only supports backward(); the guard keeps the user's gradients apart
        probe.taps.clear()
        again = call(probe.model, probe.batch.inputs, probe.forward)
        run_loss(probe.loss_fn, again, probe.batch.targets).backward()
        found = tuple(p.grad for p in wanted)
    by_id = dict(zip(parameters, found, strict=True))
    probe.grads.update({name: by_id.get(id(p)) for name, p in probe.parameters.items()})


def _trace(probe: Probe) -> Topology:
    """The traced topology, or layers by module type where the trace is refused."""
    from supple.topology import trace

    try:
        return trace(probe.model, probe.batch.inputs, forward=probe.forward)
    except TopologyError as error:
        return layers_by_type(probe.model, probe.taps, probe.output, str(error))


def _measure(item: Instrument, probe: Probe) -> Iterator[Record]:
    invalid = next((probe.problems[n] for n in sorted(item.needs) if n in probe.problems), "")
    if invalid:
        yield from (probe.unmeasured(n, invalid, status=str(Status.INVALID)) for n in item.records)
    elif probe.samples < item.minimum and item.needs != {"weights"}:
        reason = f"needs at least {item.minimum} samples, the probe has {probe.samples}"
        yield from (probe.unmeasured(n, reason) for n in item.records)
    else:
        try:
            gap = _gap(probe, item) if item.needs & {"units", "weights", "gradients"} else ""
            yield from [_with_note(row, gap) for row in item.measure(probe)]
        except SuppleError as error:
            yield from (probe.unmeasured(n, str(error)) for n in item.records)


def _gap(probe: Probe, item: Instrument) -> str:
    """What pooled rows over layers leave out."""
    assert probe.topology is not None
    weights = item.needs == {"weights"}
    first = next((r.reason for r in probe.topology.refusals), "")
    if first and not probe.topology.edges and (first.startswith(NOT_TRACED) or not weights):
        return first
    read = {v.layer.module for v in probe.matrices} if weights else set()
    missed = [c.name for c in probe.topology.coverage.missed if c.name not in read]
    return f"not seen: {', '.join(missed[:3])}{' and others' if len(missed) > 3 else ''}" if missed else ""


def _with_note(row: Record, gap: str) -> Record:
    if not gap or row.layer != "*":
        return row
    return replace(row, note="; ".join(x for x in (row.note, gap) if x))


def _detach(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.detach()
    if isinstance(item, dict):
        return {k: _detach(v) for k, v in item.items()}
    if isinstance(item, (tuple, list)) and not hasattr(item, "_fields"):
        return type(item)(_detach(v) for v in item)
    return item
