"""The states of environments hold arrays; checkpoints hold tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def plain(tree: Any) -> Any:
    """Arrays as tensors and tuples as lists, at any depth: what a checkpoint holds."""
    if isinstance(tree, Mapping):
        return {k: plain(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(v) for v in tree]
    return torch.tensor(tree) if isinstance(tree, np.ndarray) else tree


def arrays(tree: Any) -> Any:
    """Tensors as arrays, at any depth: what an environment's state holds."""
    if isinstance(tree, Mapping):
        return {k: arrays(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [arrays(v) for v in tree]
    return tree.numpy().copy() if isinstance(tree, Tensor) else tree
