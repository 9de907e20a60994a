"""TorchRL: one hook for its Trainer that observes a network and carries interventions.

    from supple.integrations.torchrl import SuppleHook
    SuppleHook(actor_network, optimizer, loss_fn).register(trainer)

Only the Trainer's own registration is used, so nothing of TorchRL is imported here. A loop of one's own needs no hook:
attach `supple.Monitor` and interventions to the network and the optimizer as anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import InputError
from supple.integrations._watch import attach, state_of, take_up

STATE_VERSION = 1


class SuppleHook:
    """Attach a `supple.Monitor` and interventions at the first collected batch (stage ``batch_process``).

    TorchRL steps the optimizer after its own gradient clipping, so gradients seen here are clipped already. The state
    is saved and loaded with the Trainer's. An asynchronous collector hands no batch over: attach by hand there.

    Args:
        network: the module that maps tensors to tensors (inside a ``TensorDictModule``: its ``.module``).
        optimizer: the one that trains it.
        loss_fn: ``loss_fn(outputs, targets)`` on the probe; one-hot actions fit ``nn.functional.cross_entropy``.
        inputs, targets: keys of the probe in the batch.
        probe_size: samples kept from the first batch, evenly over it.
        every, instruments, sinks, forward: as in `supple.Monitor`.
        interventions: attached with the monitor, listed in ``handles``.

    Raises:
        InputError: fewer than 2 samples, a key that the first batch does not have.

    >>> import torch
    >>> net = nn.Linear(4, 2)
    >>> hook = SuppleHook(net, torch.optim.SGD(net.parameters(), lr=0.1), nn.functional.cross_entropy)
    >>> hook.monitor is None  # until the first batch
    True
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        loss_fn: Callable[[Any, Tensor], Tensor],
        *,
        inputs: Any = "observation",
        targets: Any = "action",
        probe_size: int = 256,
        every: int | Callable[[int], bool] = 500,
        instruments: str = "economy",
        sinks: Sequence[Any] = (),
        forward: Callable[[Any, Any], Any] | None = None,
        interventions: Sequence[Any] = (),
    ) -> None:
        if probe_size < 2:
            raise InputError("a probe needs at least 2 samples", found=probe_size)
        self.network, self.optimizer, self.loss_fn, self.forward = network, optimizer, loss_fn, forward
        self.keys, self.probe_size = (inputs, targets), probe_size
        self.every, self.instruments, self.sinks = every, instruments, tuple(sinks)
        self.interventions = tuple(interventions)
        self.monitor: Any = None
        self.handles: list[Any] = []
        self._saved: dict[str, Any] | None = None

    def register(self, trainer: Any, name: str = "supple") -> None:
        """Register at the trainer, for its batches and its checkpoints."""
        trainer.register_module(name, self)
        trainer.register_op("batch_process", self)

    def __call__(self, batch: Any) -> None:
        """Take the probe from the first batch; the batch itself is not changed."""
        if self.monitor is None:
            self._attach(self._probe(batch))

    def task(self, name: str, batch: Any = None) -> None:
        """Announce a task; a batch of it (as collected) renews the probe and keeps the old one."""
        if self.monitor is None:
            raise InputError("nothing has been observed yet", do="train with this hook registered first")
        self.monitor.task(name, None if batch is None else self._probe(batch))
        for handle in self.handles:
            handle.task(name)

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self.handles:
            handle.detach()
        if self.monitor is not None:
            self.monitor.detach()

    def state_dict(self) -> dict[str, Any]:
        """State of the monitor and the handles; empty before the first batch."""
        if self.monitor is None:
            return {}
        return {"version": STATE_VERSION, **state_of(self.monitor, self.handles)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; taken up at once, or at the first batch."""
        if not state:
            return
        if state.get("version") != STATE_VERSION or len(state["handles"]) != len(self.interventions):
            raise InputError("this is not a state of this hook", found=state.get("version"))
        if self.monitor is None:
            self._saved = dict(state)
        else:
            take_up(state, self.monitor, self.handles)

    def _probe(self, batch: Any) -> tuple[Tensor, Tensor]:
        flat = batch.reshape(-1)
        found = [flat.get(key, None) for key in self.keys]
        for key, item in zip(self.keys, found, strict=True):
            if item is None:
                raise InputError("the batch has no such key", found=key, do=f"one of {list(batch.keys())}")
        rows = even_rows(len(found[0]), self.probe_size)
        x, y = (item.detach()[rows] for item in found)
        # one-hot targets of a classification come as integers or booleans
        return x, y.float() if y.dim() > 1 and not y.is_floating_point() else y

    def _attach(self, probe: tuple[Tensor, Tensor]) -> None:
        import supple

        monitor = supple.Monitor(
            self.network,
            self.optimizer,
            probe=probe,
            loss_fn=self.loss_fn,
            every=self.every,
            instruments=self.instruments,
            forward=self.forward,
            sinks=self.sinks,
        )
        self.handles = attach(
            monitor, self.interventions, self.network, self.optimizer, probe[0], self._saved
        )
        self.monitor, self._saved = monitor, None


def even_rows(n: int, most: int) -> Tensor:
    """Indices of at most ``most`` of n samples, evenly and without a draw.

    >>> even_rows(5, 3).tolist()
    [0, 2, 4]
    """
    return torch.linspace(0, n - 1, min(n, most)).long()
