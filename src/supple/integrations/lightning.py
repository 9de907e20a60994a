"""Lightning: one callback that observes a run (extra ``lightning``).

    trainer = lightning.Trainer(callbacks=[SuppleCallback(probe=(x, y), loss_fn=loss_fn)])

Lightning steps its optimizers with a closure that recomputes the gradients, so an intervention attached
to them refuses by name; add ``handle.penalty()`` to the loss in ``training_step`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from supple.errors import InputError
from supple.integrations._need import need

_base: Any = need("lightning.pytorch", "lightning").Callback


class SuppleCallback(_base):  # type: ignore[misc]
    """Attach a `supple.Monitor` to a Lightning run.

    Args:
        probe: ``(inputs, targets)``.
        loss_fn: ``loss_fn(outputs, targets)``.
        every: optimizer steps between two measurements.
        instruments: the bundle, as in `supple.Monitor`.
        sinks: trackers with ``log(values, step)``.
    """

    def __init__(
        self,
        probe: tuple[Any, Tensor],
        loss_fn: Callable[..., Tensor],
        every: int | Callable[[int], bool] = 100,
        *,
        instruments: str = "economy",
        sinks: Sequence[Any] = (),
    ) -> None:
        self.probe, self.loss_fn, self.every = probe, loss_fn, every
        self.instruments, self.sinks = instruments, tuple(sinks)
        self.monitor: Any = None
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
        if self._saved:
            self.monitor.load_state_dict(self._saved)
            self._saved = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.monitor is not None:
            self.monitor.detach()

    def task(self, name: str) -> None:
        """Announce a task boundary."""
        if self.monitor is None:
            raise InputError("training has not started", do="call task() after trainer.fit has begun")
        self.monitor.task(name)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = dict(state) or None
