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

from supple.integrations._need import need
from supple.integrations._watch import Watching, attach, state_of

_base: Any = need("lightning.pytorch", "lightning").Callback


class SuppleCallback(Watching, _base):  # type: ignore[misc]
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

    starts = "trainer.fit()"

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

        monitor = supple.Monitor(
            pl_module,
            list(trainer.optimizers),
            probe=self.probe,
            loss_fn=self.loss_fn,
            every=self.every,
            instruments=self.instruments,
            sinks=self.sinks,
        )
        inputs, optimizers = self.probe[0], list(trainer.optimizers)
        self.handles = attach(monitor, self.interventions, pl_module, optimizers, inputs, self._saved)
        self.monitor = monitor
        self._saved = None
        for handle in self.handles:
            handle.inside_closures()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for handle in self.handles:
            handle.gradients_ready(optimizer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        if self.monitor is None:
            return {} if self._saved is None else self._saved
        return state_of(self.monitor, self.handles)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = dict(state) or None
