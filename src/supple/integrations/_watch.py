"""What the callbacks of frameworks share: monitor and interventions are attached, saved and taken up together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

from supple.errors import InputError


def attach(
    monitor: Any,
    interventions: Sequence[Any],
    model: Any,
    optimizer: Any,
    inputs: Any,
    saved: Mapping[str, Any] | None = None,
) -> list[Any]:
    """The handles of all interventions beside a monitor that is attached already, in the state that was saved.

    Where one refuses, or the state does not fit, nothing stays attached, the monitor neither.
    """
    handles: list[Any] = []
    with ExitStack() as undo:
        undo.callback(monitor.detach)
        for intervention in interventions:
            handles.append(intervention.attach(model, optimizer, inputs=inputs))
            undo.callback(handles[-1].detach)
        if saved is not None:
            take_up(saved, monitor, handles)
        undo.pop_all()
    return handles


def state_of(monitor: Any, handles: Sequence[Any]) -> dict[str, Any]:
    """What `take_up` restores."""
    return {"monitor": monitor.state_dict(), "handles": [handle.state_dict() for handle in handles]}


def take_up(saved: Mapping[str, Any], monitor: Any, handles: Sequence[Any]) -> None:
    """Restore the handles and the monitor; another number of handles is refused before one is touched."""
    if len(saved["handles"]) != len(handles):
        raise InputError(
            "the state belongs to other interventions",
            found=[state["name"] for state in saved["handles"]] or "none",
            do=f"this callback has {[handle.intervention.name for handle in handles] or 'none'}",
        )
    for handle, state in zip(handles, saved["handles"], strict=True):
        handle.load_state_dict(state)
    monitor.load_state_dict(saved["monitor"])


class Watching:
    """The part of a callback that its user calls; ``starts`` names the call that begins the training."""

    starts: ClassVar[str]
    monitor: Any
    handles: list[Any]

    @property
    def records(self) -> Any:
        """The measurements so far."""
        return self._begun().records

    def task(self, name: str) -> None:
        """Announce a task boundary, or a new round of fine-tuning."""
        for item in (self._begun(), *self.handles):
            item.task(name)

    def detach(self) -> None:
        """Remove every hook."""
        for item in (self.monitor, *self.handles):
            if item is not None:
                item.detach()

    def _begun(self) -> Any:
        if self.monitor is None:
            raise InputError("nothing has been observed yet", do=f"call {self.starts} first")
        return self.monitor
