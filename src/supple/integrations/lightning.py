"""Lightning: one callback that observes a run and repairs it (extra ``lightning``).

    callback = SuppleCallback(probe=(x, y), loss_fn=loss_fn, interventions=[ReGraMa()])
    trainer = lightning.Trainer(callbacks=[callback])

Lightning computes the gradients inside ``optimizer.step(closure)``. Interventions of this callback act where it says
that they are ready, before its clipping; one that you attach yourself refuses such steps by name. The state of monitor
and interventions is part of Lightning's checkpoints. Without interventions the trained weights are bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from supple.errors import InputError
from supple.integrations._need import need

_base: Any = need("lightning.pytorch", "lightning").Callback


class SuppleCallback(_base):  # type: ignore[misc]
    """Attach a `supple.Monitor` and interventions to a Lightning run.

    Args:
        probe: ``(inputs, targets)``.
        loss_fn: ``loss_fn(outputs, targets)``.
        every: optimizer steps between two measurements.
        instruments: the bundle, as in `supple.Monitor`.
        interventions: attached at the start of training, detached at its end. They see the module as a whole, so
            its ``forward`` must be what ``training_step`` calls.
        sinks: trackers with ``log(values, step)``.

    Attributes ``monitor``, ``handles`` and ``records`` are readable during and after training.

    Raises (from ``trainer.fit``):
        AttachError: an optimizer that evaluates its closure more than once in a step (LBFGS).
        InputError: a checkpoint of other interventions.
    """

    def __init__(
        self,
        probe: tuple[Any, Tensor],
        loss_fn: Callable[..., Tensor],
        every: int | Callable[[int], bool] = 100,
        *,
        instruments: str = "economy",
        interventions: Sequence[Any] = (),
        sinks: Sequence[Any] = (),
    ) -> None:
        self.probe, self.loss_fn, self.every = probe, loss_fn, every
        self.instruments, self.interventions, self.sinks = instruments, tuple(interventions), tuple(sinks)
        self.monitor: Any = None
        self.handles: list[Any] = []
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        import supple

        self.monitor = supple.Monitor(
            pl_module,
            list(trainer.optimizers),
            probe=self.probe,
            loss_fn=self.loss_fn,
            every=self.every,
            instruments=self.instruments,
            sinks=self.sinks,
        )
        inputs = self.probe[0]
        self.handles = [
            i.attach(pl_module, list(trainer.optimizers), inputs=inputs) for i in self.interventions
        ]
        for handle in self.handles:
            handle.inside_closures()
        if self._saved is not None:
            self._load(self._saved)
            self._saved = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for handle in self.handles:
            handle.gradients_ready(optimizer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.detach()

    @property
    def records(self) -> Any:
        """The measurements so far."""
        if self.monitor is None:
            raise InputError("nothing has been observed yet", do="call trainer.fit() first")
        return self.monitor.records

    def task(self, name: str) -> None:
        """Announce a task boundary."""
        if self.monitor is None:
            raise InputError("training has not started", do="call task() after trainer.fit has begun")
        for item in (self.monitor, *self.handles):
            item.task(name)

    def detach(self) -> None:
        """Remove every hook."""
        for item in (self.monitor, *self.handles):
            if item is not None:
                item.detach()

    def state_dict(self) -> dict[str, Any]:
        if self.monitor is None:
            return {} if self._saved is None else self._saved
        return {"monitor": self.monitor.state_dict(), "handles": [h.state_dict() for h in self.handles]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = dict(state) or None

    def _load(self, state: dict[str, Any]) -> None:
        if len(state["handles"]) != len(self.handles):
            raise InputError(
                "the checkpoint has the state of other interventions",
                found=[h["name"] for h in state["handles"]] or "none",
                do=f"this callback has {[i.name for i in self.interventions] or 'none'}",
            )
        self.monitor.load_state_dict(state["monitor"])
        for handle, saved in zip(self.handles, state["handles"], strict=True):
            handle.load_state_dict(saved)
