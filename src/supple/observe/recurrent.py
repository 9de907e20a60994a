"""The weights of recurrent modules as matrices: one per gate, since a stacked one has no spectrum of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from supple.observe.views import LayerView
from supple.topology.graph import Layer
from supple.topology.taps import Taps, plain_name

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
#: gates in the order in which torch stacks their rows, by their number
GATES = {1: ("",), 3: ("r", "z", "n"), 4: ("i", "f", "g", "o")}


def recurrent_views(model: nn.Module, parameters: Mapping[str, Tensor], known: set[str]) -> list[LayerView]:
    """A view per gate of each recurrent weight (LSTM, GRU, RNN and their cells) that is not in ``known``.

    Named ``path.weight_hh_l0#f``; they have weights alone, no units.
    """
    return [
        LayerView(layer, module, parameters, Taps(), {})
        for path, module in model.named_modules()
        if isinstance(module, RECURRENT)
        for layer in _blocks(plain_name(path), module, known)
    ]


def _blocks(path: str, module: nn.Module, known: set[str]) -> Iterator[Layer]:
    for short, parameter in module.named_parameters(recurse=False):
        name = f"{path}.{short}" if path else short
        if not short.startswith("weight_") or name in known:
            continue
        # a projection (weight_hr) has no gates
        count = 1 if short.startswith("weight_hr") else parameter.shape[0] // int(module.hidden_size)  # type: ignore[arg-type]
        rows = parameter.shape[0] // count
        for i, gate in enumerate(GATES.get(count, ("",))):
            yield Layer(
                name=f"{name}#{gate}" if gate else name,
                module=path,
                kind="recurrent",
                weight=name,
                bias=None,
                units=rows,
                rows=np.arange(i * rows, (i + 1) * rows),
                fan_in=parameter.shape[1],
                part=gate,
                trainable=parameter.requires_grad,
            )
