"""Random generators keyed by what they are for, so that every rank and every resumed run draws the same."""

from __future__ import annotations

import hashlib

import torch


def key(seed: int, step: int, name: str) -> int:
    """A 63-bit key from (seed, step, name) by blake2b; equal in every process (``hash(str)`` is salted).

    >>> key(0, 10, "fc1") == key(0, 10, "fc1"), key(0, 10, "fc1") == key(0, 11, "fc1")
    (True, False)
    """
    text = f"{int(seed)}\x00{int(step)}\x00{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, step: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A `torch.Generator` seeded with `key`; the global random state is neither read nor moved.

    >>> a = torch.rand(2, generator=generator(0, 1, "fc1"))
    >>> torch.equal(a, torch.rand(2, generator=generator(0, 1, "fc1")))
    True
    """
    made = torch.Generator(device=device)
    made.manual_seed(key(seed, step, name))
    return made
