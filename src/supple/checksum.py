"""The checksum of a weight: how files that fit one base model know it again."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def checksum(weight: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes of a weight.

    >>> checksum(torch.ones(2, 2)) == checksum(torch.ones(4))
    False
    """
    data = weight.detach().cpu().contiguous()
    head = f"{data.dtype}{tuple(data.shape)}".encode()
    return hashlib.sha256(head + data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
