"""The part of a parameter that a reset touches: whole rows, whole columns, or single cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """Entries ``index`` along ``dim`` of a tensor, or, with ``cells``, the pairs (index, cells) of dims 0, 1.

    >>> Slice(1, torch.tensor([2, 0])).at
    (slice(None, None, None), tensor([2, 0]))
    """

    dim: int
    index: Tensor  # (m,) int64
    cells: Tensor | None = None  # (m,) int64, along dim 1 while ``index`` runs along dim 0

    @property
    def at(self) -> tuple[Any, ...]:
        """The index tuple: ``tensor[slice.at]``."""
        if self.cells is not None:
            return (self.index, self.cells)
        return (slice(None),) * self.dim + (self.index,)

    def to(self, device: torch.device) -> Slice:
        cells = None if self.cells is None else self.cells.to(device)
        return Slice(self.dim, self.index.to(device), cells)


#: why a norm is refused whose entries `flat_slice` cannot name
NO_SLICE = "the entries of a norm that belong to a unit are no slice of its scale"


def flat_slice(shape: Sequence[int], flat: Tensor) -> Slice | None:
    """The slice that holds these distinct positions of a contiguous tensor and no others, None if there is none.

    >>> flat_slice((1, 4, 1, 1), torch.tensor([1, 3])), flat_slice((2, 2, 3), torch.tensor([6, 7, 8, 9, 10, 11])).index
    (Slice(dim=1, index=tensor([1, 3]), cells=None), tensor([1]))
    """
    coordinates = torch.unravel_index(flat, tuple(shape))
    for dim, size in enumerate(shape):
        index = torch.unique(coordinates[dim])
        if len(flat) * size == len(index) * math.prod(shape):
            return Slice(dim, index)
    return Slice(0, *coordinates) if len(shape) == 2 else None


def along(dim: int, index: Sequence[int] | Any) -> Slice:
    """All entries with one of these positions along ``dim``, duplicates removed, ascending."""
    return Slice(dim, torch.unique(torch.as_tensor(index, dtype=torch.int64)))
