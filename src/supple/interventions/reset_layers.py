"""Which layers a reset method leaves out, and what to say where none is left."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from supple.errors import AttachError
from supple.topology.graph import Layer, Topology


def unwanted(topology: Topology, layer: Layer, kinds: tuple[str, ...]) -> str | None:
    """Why a layer that might be reset is left out by the choice of units, or None."""
    heads = next(
        (x.name for x in topology.layers.values() if any(layer.name == m for m, _ in x.members)), None
    )
    if heads is not None:
        return f"its units are re-born with their heads, as {heads}"
    inner = layer.stream is None and not layer.members
    return "units of this kind were not asked for" if inner and "inner" not in kinds else None


def way_out(topology: Topology, kinds: tuple[str, ...], reasons: Mapping[str, str]) -> str:
    """What to do where nothing can be reset, after the reasons."""
    if any("initialiser" in r or "overrides reset_parameters" in r for r in reasons.values()):
        return "pass initial=: the model's initial state_dict(), a law by name or a callable"
    if "heads" in kinds and not any(layer.members for layer in topology.layers.values()):
        why = "; ".join(f"{h.name}: {h.reason}" for h in topology.heads if h.reason)
        return f"ask for other units than heads: {why or 'no attention with weights of its own was seen'}"
    return "supple.coverage(model, inputs) lists what was seen; choose other layers= or units="


def refuse_compiled(model: nn.Module) -> None:
    """Hooks on a compiled wrapper may never fire."""
    if type(model).__name__ == "OptimizedModule":
        raise AttachError(
            "hooks added to a compiled model may never fire",
            found="a model wrapped by torch.compile",
            do="attach to the original model with inputs=..., then compile it",
        )
