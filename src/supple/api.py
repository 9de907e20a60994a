"""The facade: the calls that join rooms, so that the rooms need not know one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from supple.observe import Monitor

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supple.diagnose import DiagnosisReport, Plan, Trainability, Trial
    from supple.interventions import Intervention
    from supple.interventions.handle import Optimizers
    from supple.records import Records
    from supple.scan import ScanReport
    from supple.topology import Coverage

__all__ = ["Monitor", "coverage", "diagnose", "ntk", "plan", "scan", "trainability", "trial"]

LossFn = Callable[..., Any]


def diagnose(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss_fn: LossFn,
    *,
    optimizer: Optimizers | None = None,
    reference: Any = None,
    history: Records | Any = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    budget: float | None = None,
    earlier: Sequence[tuple[Any, ...]] = (),
) -> DiagnosisReport:
    """One look at a network: is there loss of plasticity, by which mechanism, where, and what fits.

    Nothing of the training state changes and no hook stays behind.

    Args:
        model: any ``nn.Module``.
        batch: ``(inputs, targets)``, held out; inputs are a tensor, a tuple (``model(*inputs)``) or a
            mapping (``model(**inputs)``).
        loss_fn: ``loss_fn(outputs, targets)`` -> scalar.
        optimizer: the one in use; its class and settings train the copies of step 0.
        reference: what a healthy network is: a factory, an initial or round-0 ``state_dict``, or
            ``"reset"`` (weaker). Without one, plasticity is not measured.
        history: a `Monitor`, or its records; gives drift, task switches and forgetting.
        forward: ``forward(model, inputs)`` where the call is not one of the forms above.
        budget: seconds for step 0 (default 30); 0 leaves step 0 out, and the report says so.
        earlier: ``(name, (inputs, targets))`` of earlier tasks, to tell forgetting; with the best accuracy or loss
            reached then as a third entry (without it 100 % accuracy is assumed, and said).

    Returns:
        A report with ``findings``, ``coverage``, ``prescription``; print it, or `to_dict`, `to_json`,
        `to_html`.

    Raises:
        InputError: shapes that do not fit, an empty batch, a model without trainable layer, a reference that is the
            network itself, a monitor of a network with other layers.

    >>> import torch, supple
    >>> _ = torch.manual_seed(0)
    >>> net = supple.models.MLP((8, 16, 3))
    >>> batch = (torch.randn(64, 8), torch.randint(3, (64,)))
    >>> report = supple.diagnose(net, batch, torch.nn.functional.cross_entropy, budget=0)
    >>> str(report.finding("plasticity_loss").status)
    'not_measured'
    """
    from supple.diagnose import run

    _refuse_mistaken(model, reference, history)
    return run(
        model,
        batch,
        loss_fn,
        optimizer=optimizer,
        reference=reference,
        history=history,
        forward=forward,
        budget=budget,
        earlier=earlier,
    )


def _refuse_mistaken(model: Any, reference: Any, history: Any = None) -> None:
    """A reference that is the network itself, or the monitor of a network with other parameters."""
    from torch import nn

    from supple.errors import InputError
    from supple.observe import refuse_itself
    from supple.observe.copies import unwrap

    if not isinstance(model, nn.Module):
        return  # the call itself says so
    refuse_itself(reference, model)
    if not isinstance(history, Monitor):
        return
    own, other = (
        {k: tuple(p.shape) for k, p in unwrap(m).named_parameters()} for m in (model, history.model)
    )
    if own != other:
        odd = sorted(k for k in {**own, **other} if own.get(k) != other.get(k))
        raise InputError(
            "the history is that of another network",
            found=f"{len(odd)} parameter(s) differ: {', '.join(odd[:3])}",
            where="history",
            do="pass the Monitor of this model",
        )


def trainability(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss_fn: LossFn,
    *,
    reference: Any,
    optimizer: Optimizers | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    budget: float = 30.0,
    task: tuple[Any, Any] | None = None,
) -> Trainability:
    """How well the network learns something new from here, against fresh twins: step 0 of `diagnose` alone.

    Copies of the network and of twins learn the same fresh tasks: random labels or values on the probe's inputs,
    or the ``task`` given. ``ratio`` is what the network learns over what its twins learn, with a 95 % interval
    ``lo``, ``hi``; ``status`` is PRESENT where the ratio is below 0.935 and ``hi`` below 0.97. See
    `supple.diagnose.trainability.trainability` for the score.

    Args:
        model, batch, loss_fn, optimizer, reference, forward: as `diagnose`.
        budget: seconds.
        task: ``(inputs, targets)`` of the next task.

    Raises:
        InputError: a batch or reference that does not fit.

    >>> import torch, supple
    >>> _ = torch.manual_seed(0)
    >>> build = lambda: supple.models.MLP((8, 16, 3))
    >>> batch = (torch.randn(64, 8), torch.randint(3, (64,)))
    >>> seen = supple.trainability(build(), batch, torch.nn.functional.cross_entropy, reference=build, budget=0)
    >>> str(seen.status), seen.reason
    ('not_measured', 'step 0 was left out (budget=0)')
    """
    from supple.diagnose.trainability import trainability as run
    from supple.observe import check_batch, resolve
    from supple.observe.copies import unwrap

    _refuse_mistaken(model, reference)
    network = unwrap(model)
    for item in (batch,) if task is None else (batch, task):
        check_batch(item, strict=True)
    healthy = resolve(reference, network)
    twin = None if healthy is None else healthy.twin
    return run(
        network, batch, loss_fn, twin=twin, optimizer=optimizer, forward=forward, budget=budget, task=task
    )


def plan(model: nn.Module, optimizer: Optimizers, report: DiagnosisReport) -> Plan:
    """What the report prescribes, checked against this model and optimizer; nothing is written yet.

    ``print(plan)`` reads it, ``plan.apply_()`` carries it out (all of it or nothing) and returns the
    handles of the standing interventions.
    """
    from supple.diagnose import plan as run

    return run(model, optimizer, report)


def trial(
    model: nn.Module,
    optimizer: Optimizers,
    batch: tuple[Any, Any],
    loss_fn: LossFn,
    *,
    reference: Any = None,
    candidates: Iterable[Intervention | str] | None = None,
    budget: float | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Trial:
    """Measure what each candidate would do, on copies, over fresh probe tasks.

    The candidates default to the prescription, the famous but mismatched fix, nothing, and a fresh
    restart. The result ranks them with paired intervals; a measured answer outranks the table.
    """
    from supple.diagnose import trial as run

    _refuse_mistaken(model, reference)
    return run(
        model,
        optimizer,
        batch,
        loss_fn,
        reference=reference,
        candidates=candidates,
        budget=budget,
        forward=forward,
    )


def scan(paths: Any, **options: Any) -> ScanReport:
    """Spectra and ranks of weights on disk, one checkpoint or a series of rounds; see `supple.scan.scan`."""
    from supple.scan import scan as run

    return run(paths, **options)


def ntk(
    model: nn.Module,
    inputs: Any,
    kind: str = "trace",
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Tensor:
    """The empirical neural tangent kernel; see `supple.observe.kernel.ntk`."""
    from supple.observe.kernel import ntk as run

    return run(model, inputs, kind=kind, forward=forward)


def coverage(
    model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] | None = None
) -> Coverage:
    """Every parameterised layer of the model as seen or not seen, and why not."""
    from supple.topology import trace

    return trace(model, inputs, forward=forward).coverage
