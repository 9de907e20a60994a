"""Networks initialised by key."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from supple.streams import generator


def keyed(build: Callable[[], nn.Module], seed: int, *key: str | int) -> nn.Module:
    """Build a network from a key: the global random state neither matters nor moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, *key).initial_seed())
        return build()
