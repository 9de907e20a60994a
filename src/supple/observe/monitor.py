"""Measure a network while it trains: optimizer step hooks, a probe pass when due, nothing wrapped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import AttachError, InputError
from supple.observe.baselines import INITIAL, TWIN, Baseline
from supple.observe.batch import check_batch
from supple.observe.copies import unwrap
from supple.observe.instruments import select
from supple.observe.lags import ChurnWatch
from supple.observe.ledger import Ledger, Sink
from supple.observe.probe import LossFn, Observation, observe
from supple.observe.reference import Reference, resolve
from supple.observe.steps import GradientWatch, StepWatch
from supple.observe.tasks import TaskProbes
from supple.records import Record, Records
from supple.stepping import bare, closure_of, skips
from supple.topology.graph import Topology
from supple.topology.inputs import Forward

if TYPE_CHECKING:
    from supple.diagnose import DiagnosisReport

STATE_VERSION = 2
STATE_KEYS = {"version", "step", "initial_state", "ledger", "tasks", "churn"}
Every = int | Callable[[int], bool]


class Monitor:
    """Watch a run: every ``every`` optimizer steps one probe pass, and what the step itself shows.

    It hooks the optimizer (one or several; the first one's steps are the clock) and never wraps it; the
    training loop does not change, and training is bitwise the same with and without it. The first look is
    taken when it is attached (step 0), so that a probe or a loss that does not fit is refused at once. The
    weights of that moment are kept on the CPU as the reference of later diagnoses, unless another one is
    given.

    When due, rows of the step itself come too: ``gradient_norm`` (variant ``"training"``: the gradient as
    the optimizer gets it, after clipping) and ``update_ratio`` (|change| / |weight| of that step, per
    layer and pooled). Where ``churn`` is among the instruments, also the churn of the run itself on the probe:
    over the last k steps (variants ``lag=k``) and since the monitor was attached (``initial``). Tasks told by
    `task` add ``task_loss``, ``task_accuracy`` and ``forgetting``.

    Args:
        model, optimizer: the ones that are trained.
        probe: ``(inputs, targets)``, held out.
        loss_fn: ``loss_fn(outputs, targets)`` -> scalar.
        every: number of steps, or a callable step -> bool (step counts completed steps, from 1; a function of
            the step alone, as lags ask it ahead).
        instruments: a bundle or names, see `supple.observe.observe`.
        reference: a healthy network; default: the weights at this moment.
        path: a JSON-lines file that receives every row; without it only the last ``keep`` rows exist.
        forward: ``forward(model, inputs)`` for unusual calls.
        keep: rows in memory.
        keep_tasks: probes of earlier tasks that are kept to measure forgetting (the oldest and the newest).
        sinks: objects with ``log(values, step)``.
        lags: numbers of steps over which the churn of the run is told; one forward pass on the probe for each
            and look.
        gradients_every: a schedule of its own for the norms of the training gradient (``gradient_norm``, variant
            ``training``, per weight and pooled), which need no probe pass; 1 for every step.

    Raises:
        InputError: a probe, loss, schedule or instrument that cannot be used.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> batch = (torch.randn(32, 4), torch.randint(3, (32,)))
    >>> with Monitor(net, optimizer, probe=batch, loss_fn=nn.functional.cross_entropy, every=2) as monitor:
    ...     for _ in range(4):
    ...         optimizer.zero_grad()
    ...         nn.functional.cross_entropy(net(batch[0]), batch[1]).backward()
    ...         _ = optimizer.step()
    >>> [r.step for r in monitor.records.select(instrument="loss")]
    [0, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        probe: tuple[Any, Any],
        loss_fn: LossFn,
        every: Every = 100,
        instruments: str | Sequence[str] = "economy",
        reference: Any = None,
        path: str | Path | None = None,
        forward: Forward | None = None,
        keep: int = 20_000,
        keep_tasks: int = 10,
        sinks: Sequence[Sink] = (),
        lags: Sequence[int] = (1,),
        gradients_every: Every | None = None,
    ) -> None:
        self.model, self.optimizers = model, _optimizers(optimizer)
        check_every(every, "every")
        if gradients_every is not None:
            check_every(gradients_every, "gradients_every")
        self.every, self.loss_fn, self.forward = every, loss_fn, forward
        self.instruments = instruments if isinstance(instruments, str) else tuple(instruments)
        watched = any(item.name == "churn" for item in select(self.instruments))
        self._churn = ChurnWatch(model, forward, lags) if watched else None
        check_batch(probe, strict=True)
        self.step = 0
        self.attached = True
        self.arrays: dict[str, Tensor] = {}  # of the latest measurement
        self.topology: Topology | None = None
        self.initial_state = {
            k: v.detach().cpu().clone() for k, v in _tensors(unwrap(model).state_dict()).items()
        }
        self._given_reference = reference is not None
        self.reference: Reference | None = resolve(reference, model) or self._initial_reference()
        self._baselines = self._told_against()
        self._ledger = Ledger(path, keep, sinks)
        self._tasks = TaskProbes(probe, keep_tasks)
        several = len(self.optimizers) > 1
        self._watches = [
            StepWatch(model, item, f"optimizer{i}" if several else "")
            for i, item in enumerate(self.optimizers)
        ]
        self.gradients_every = gradients_every
        self._gradients = [
            GradientWatch(model, item, f"optimizer{i}" if several else "")
            for i, item in enumerate(self.optimizers if gradients_every is not None else [])
        ]
        self._asked: tuple[int, set[int]] = (
            0,
            set(),
        )  # the step whose gradients are told, by which optimizers
        self._pending: set[int] = set()  # numbers of the optimizers whose next step is to be looked at
        self._removers: list[Any] = []
        self._measure()
        for item in self.optimizers:
            self._removers.append(item.register_step_pre_hook(self._before))
            self._removers.append(item.register_step_post_hook(self._after))

    # -- what it collected ----------------------------------------------------------------------
    @property
    def records(self) -> Records:
        """The recent rows, at most ``keep``."""
        return Records(self._ledger.ring)

    @property
    def history(self) -> Records:
        """Every row: from ``path`` where one was given, else the rows still in memory."""
        return self._ledger.all()

    @property
    def probe(self) -> tuple[Any, Any]:
        """The probe of the current task."""
        return self._tasks.current

    @property
    def earlier(self) -> list[tuple[str, tuple[Any, Any]]]:
        """Name and probe of the earlier tasks that are kept."""
        return self._tasks.earlier

    # -- what a user calls ----------------------------------------------------------------------
    def task(self, name: str, probe: tuple[Any, Any] | None = None) -> None:
        """Announce a new task; a new probe replaces the current one, which is kept to measure forgetting.

        The finished task's probe is evaluated at once: later rows ``task_loss`` and ``task_accuracy``
        (``variant`` is the name of the task whose probe it is) compare with it.
        """
        self._require_attached()
        if probe is not None:
            check_batch(probe, strict=True)
        if self._tasks.name:
            rows = self._tasks.evaluate(self.model, self.loss_fn, self.forward, ends=True)
            self._ledger.add(self._stamp(rows), self.step)
        self._tasks.begin(name, probe)
        if probe is not None and self._churn is not None:
            self._churn.restart()
            self._churn.keep(self.step, self.probe[0], self._due)

    def measure(self) -> Records:
        """Take a look now, whatever the schedule says."""
        self._require_attached()
        return self._measure()

    def diagnose(self, budget: float | None = None) -> DiagnosisReport:
        """Diagnose the network with the history, the reference and the earlier probes of this run."""
        from supple import api

        return api.diagnose(
            self.model,
            self.probe,
            self.loss_fn,
            optimizer=self.optimizers,
            reference=self.reference,
            history=self,
            forward=self.forward,
            budget=budget,
            earlier=self.earlier,
        )

    def detach(self) -> None:
        """Remove every hook; calling it twice is harmless. Rows stay."""
        for remover in self._removers:
            remover.remove()
        self._removers.clear()
        for watch in self._watches:
            watch.forget()
        self.attached = False

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """All that later rows depend on: versioned, tensors and plain types."""
        return {
            "version": STATE_VERSION,
            "step": self.step,
            "initial_state": dict(self.initial_state),
            "ledger": self._ledger.state_dict(),
            "tasks": self._tasks.state_dict(),
            "churn": {} if self._churn is None else self._churn.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; rows on disk that are newer than the state are cut off."""
        if state.get("version") != STATE_VERSION:
            raise InputError("this is not a state of a Monitor of this version", found=state.get("version"))
        if set(state) != STATE_KEYS:
            wrong = sorted(set(state) ^ STATE_KEYS)
            raise InputError("unknown or missing key(s) in the state of the monitor", found=wrong)
        own, new = self.initial_state, state["initial_state"]
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in new.items()}:
            raise InputError("the state belongs to another model", found="other parameter names or shapes")
        self.step = int(state["step"])
        self.initial_state = dict(new)
        if not self._given_reference:
            self.reference = self._initial_reference()
        self._baselines = self._told_against()
        self._ledger.load_state_dict(state["ledger"])
        self._tasks.load_state_dict(state["tasks"])
        if self._churn is not None and state["churn"]:
            self._churn.load_state_dict(state["churn"])

    # -- hooks ----------------------------------------------------------------------------------
    def _due(self, step: int) -> bool:
        return _is_due(self.every, step)

    def _number(self, optimizer: Optimizer) -> int:
        return next(i for i, item in enumerate(self.optimizers) if item is optimizer)

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        number = self._number(optimizer)
        if number == 0 and self._due(self.step + 1):
            self._pending = set(range(len(self.optimizers)))
        closure = closure_of(args, kwargs)
        if number in self._pending:
            self._watches[number].before(closure is not None)
        if number == 0 and _is_due(self.gradients_every, self.step + 1):
            self._asked = (self.step + 1, set(range(len(self._gradients))))
        step, numbers = self._asked
        if number in numbers:
            numbers.discard(number)
            if closure is None and not skips(optimizer):
                rows = self._gradients[number].rows(self.topology, step, self._tasks.name)
                if number in self._pending:  # the look at the step has the pooled one
                    rows = [r for r in rows if r.layer != "*"]
                self._ledger.add(rows, step)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        number = self._number(optimizer)
        if skips(optimizer):
            self._watches[number].forget()
            return
        if number == 0:
            self.step += 1
        if number in self._pending:
            self._pending.discard(number)
            self._ledger.add(self._stamp(self._watches[number].after(self.topology)), self.step)
            if number == 0:
                self._measure()
        elif number == 0 and self._churn is not None:
            self._churn.keep(self.step, self.probe[0], self._due)

    def _measure(self) -> Records:
        seen = observe(
            self.model,
            self.probe,
            self.loss_fn,
            optimizer=self.optimizers,
            instruments=self.instruments,
            reference=self.reference,
            topology=self.topology,
            forward=self.forward,
            step=self.step,
            task=self._tasks.name,
            baselines=self._baselines,
        )
        self.topology, self.arrays = seen.topology, seen.arrays
        rows = [*seen.records, *self._stamp([*self._churn_rows(seen), *self._told_tasks()])]
        self._ledger.add(rows, self.step)
        return Records(rows)

    def _told_tasks(self) -> list[Record]:
        return self._tasks.evaluate(self.model, self.loss_fn, self.forward)

    def _churn_rows(self, seen: Observation) -> list[Record]:
        if self._churn is None:
            return []
        watch, inputs = self._churn, self.probe[0]

        def initial() -> Tensor | None:
            reference = self._initial_reference()
            return None if reference is None else watch.outputs_of(reference.twin(), inputs)

        rows = watch.rows(self.step, seen.outputs, self.probe[1], initial)
        watch.keep(self.step, inputs, self._due, seen.outputs)
        return rows

    def _stamp(self, rows: Sequence[Record]) -> list[Record]:
        return [dataclasses.replace(r, step=self.step, task=self._tasks.name) for r in rows]

    def _initial_reference(self) -> Reference | None:
        return resolve(self.initial_state, self.model, kind="initial")

    def _told_against(self) -> list[Baseline]:
        """What weight growth is told against: the state at attachment, and the reference that was given."""
        initial = self._initial_reference()
        pairs = [(INITIAL, initial), (TWIN, self.reference if self._given_reference else None)]
        return [Baseline.of(name, found) for name, found in pairs if found is not None]

    def _require_attached(self) -> None:
        if not self.attached:
            raise AttachError("the monitor is detached", do="make a new Monitor")


def check_every(every: Any, name: str) -> None:
    """Refuse what says no steps."""
    if not callable(every) and (not isinstance(every, int) or every < 1):
        raise InputError(f"{name} is a number of steps >= 1 or a callable step -> bool", found=repr(every))


def _is_due(every: Every | None, step: int) -> bool:
    return False if every is None else bool(every(step)) if callable(every) else step % every == 0


def _optimizers(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    items = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    wrong = [type(x).__name__ for x in items if not isinstance(x, Optimizer)]
    if wrong or not items:
        raise InputError("optimizer must be a torch.optim.Optimizer or several", found=wrong or "none")
    return [bare(item) for item in items]


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}
