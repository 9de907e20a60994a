"""How often the outputs use each parameter, read off the autograd graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor


def parameter_uses(outputs: Tensor) -> tuple[Counter[int], dict[Any, None]]:
    """(id of parameter -> number of operations that read it, every node of the graph).

    A layer's hook sees its own calls only. Where the graph reads a parameter more often than the hooks saw
    (a tied weight, a packed projection, ``F.linear(x, layer.weight)``), the hooks do not have all of it.
    """
    uses: Counter[int] = Counter()
    nodes: dict[Any, None] = {outputs.grad_fn: None}
    pending: list[Any] = [outputs.grad_fn]
    while pending:
        node = pending.pop()
        for child, _ in node.next_functions:
            if child is None:
                continue
            leaf = getattr(child, "variable", None)
            if leaf is not None:
                uses[id(leaf)] += 1
            if child not in nodes:
                nodes[child] = None
                pending.append(child)
    return uses, nodes
