"""One small problem, in float64, that every penalty is tried on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn


@dataclass
class Problem:
    """A two-layer tanh network and a fixed list of batches."""

    batches: list[tuple[Tensor, Tensor]]
    dtype: torch.dtype = torch.float64

    def model(self, seed: int = 0) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).to(self.dtype)

    def numpy(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(x.double().numpy(), y.numpy()) for x, y in self.batches]


@pytest.fixture
def problem() -> Problem:
    g = torch.Generator().manual_seed(7)
    batches = [
        (torch.randn(8, 6, generator=g, dtype=torch.float64), torch.randint(0, 4, (8,), generator=g))
        for _ in range(300)
    ]
    return Problem(batches)
