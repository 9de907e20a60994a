"""The part of a parameter that a reset touches: whole rows, whole columns, or single cells."""

from __future__ import annotations

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


def along(dim: int, index: Sequence[int] | Any) -> Slice:
    """All entries with one of these positions along ``dim``, duplicates removed, ascending."""
    return Slice(dim, torch.unique(torch.as_tensor(index, dtype=torch.int64)))
