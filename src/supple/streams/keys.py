"""Random numbers by key: what is drawn depends on what it is for, never on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator for one purpose, keyed by ``(seed, *key)``.

    Two keys give independent streams, the same key the same numbers in any process (BLAKE2b of the
    key, since Python's own ``hash`` of strings is salted per process).

    Args:
        seed: the seed of the stream or run.
        key: what the numbers are for, e.g. ``("order", 17, 0)``.

    >>> a, b = generator(0, "order", 3), generator(0, "order", 3)
    >>> bool((torch.randperm(5, generator=a) == torch.randperm(5, generator=b)).all())
    True
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
