"""Which part of a consumer's weight reads which units, and the shapes to multiply it by."""

from __future__ import annotations

import torch
from torch import Tensor

from supple.interventions.slices import Slice, along
from supple.topology.graph import Edge, Layer


def shaped(values: Tensor, dim: int, dims: int, where: Slice) -> Tensor:
    """(m,) one value for each position of the slice, shaped to multiply what ``where.at`` picks."""
    if where.cells is not None:  # two axes were picked as one
        return values.view(-1, *([1] * (dims - 2)))
    return values.view(*([1] * dim), -1, *([1] * (dims - dim - 1)))


def transfer_refusal(consumer: Layer, edge: Edge) -> str | None:
    """Why a mean contribution cannot move into the bias of this consumer, or None."""
    if consumer.bias is None:
        return f"{consumer.name!r} has no bias"
    if edge.rows is not None or consumer.part:
        return f"{consumer.name!r} reads its inputs in groups or is one block of a packed weight"
    return None


def edge_slice(edge: Edge, units: Tensor) -> Slice:
    """The part of the consumer's weight that reads these units."""
    picked = torch.isin(torch.from_numpy(edge.units), units)
    columns = torch.from_numpy(edge.columns)[picked]
    if edge.rows is None:
        return along(edge.dim, columns[columns >= 0])
    rows = torch.from_numpy(edge.rows)[picked]
    pairs = torch.broadcast_tensors(rows[:, :, None], columns[:, None, :])
    keep = (pairs[0] >= 0) & (pairs[1] >= 0)
    first, second = (pairs[0][keep], pairs[1][keep])
    return Slice(0, first, second) if edge.dim == 1 else Slice(0, second, first)
