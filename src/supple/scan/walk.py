"""Through a checkpoint matrix by matrix: plain weights, adapters, adapters on their base, within a memory bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from supple.scan import lora
from supple.scan.matrices import EMBEDDING_TABLE, Matrix, Skipped, is_stack, split, tied, why_not
from supple.scan.memory import mib, need
from supple.scan.sources import Checkpoint, Entry


def matrices(
    checkpoint: Checkpoint,
    embeddings: bool = False,
    *,
    base: lora.Base | None = None,
    limit: int | None = None,
    estimate: bool = False,
) -> Iterator[Matrix | Skipped]:
    """Every weight matrix of a checkpoint, one tensor in memory at a time.

    Args:
        embeddings: embedding tables too.
        base: adapters are measured as the base's matrix with their product added, under its name; other
            tensors as they are.
        limit: bytes; a tensor whose measurement would take more is asked to be estimated where that fits, and is
            skipped with the reason otherwise, before it is read.
        estimate: whether the scan estimates large matrices anyway.

    Raises:
        InputError: an adapter that does not fit the base, before anything is measured.
    """
    pairs: dict[str, lora.Pair] = {}
    plain = [e for e in checkpoint if not lora.gather(pairs, e)]
    if not embeddings:
        for name in [n for n, p in pairs.items() if p.embedding]:
            del pairs[name]
            yield Skipped(name, EMBEDDING_TABLE)
    targets = {}
    if base is not None:
        targets = {n: lora.check_pair(p, base, checkpoint.adapter) for n, p in pairs.items()}
    twins = tied(plain)
    for entry in plain:
        reason = why_not(entry, embeddings)
        if (twin := twins.get(entry.name)) is not None:
            reason = f"tied to {twin.name}: {why_not(twin, embeddings) or 'measured once'}"
        if reason is None:
            allowed = _allowed(entry, limit, estimate)
            if isinstance(allowed, Skipped):
                yield allowed
            else:
                name = base.name_of(entry.name) if base is not None and pairs else entry.name
                for matrix in split(name, entry.load(), entry.dtype, checkpoint.config):
                    yield _told(matrix, allowed)
        elif len(entry.shape) >= 2:
            yield Skipped(entry.name, reason)
    if base is None:
        for pair in pairs.values():
            yield lora.product(pair, checkpoint.adapter)
        return
    sums = lora.base_sums(checkpoint) if pairs else {}
    for name, pair in pairs.items():
        allowed = _allowed(targets[name], limit, estimate, added=True)
        if isinstance(allowed, Skipped):
            yield allowed
            continue
        for matrix in lora.on_base(pair, base, targets[name], checkpoint.adapter, sums):
            yield _told(matrix, allowed)


def _allowed(entry: Entry, limit: int | None, estimate: bool, added: bool = False) -> Skipped | str:
    """A refusal for want of memory, or the reason to estimate (empty: as the scan asked)."""
    if limit is None:
        return ""
    stack = is_stack(entry)
    wanted = need(entry, estimate, stack, added)
    if wanted <= limit:
        return ""
    short = need(entry, True, stack, added)
    text = f"needs {mib(wanted)}, --memory allows {mib(limit)}"
    if estimate or short > limit or short >= wanted:
        return Skipped(entry.name, text)
    return f"estimated: the exact path {text}"


def _told(matrix: Matrix, why: str) -> Matrix:
    if not why:
        return matrix
    note = "; ".join(n for n in (matrix.note, why) if n)
    return dataclasses.replace(matrix, note=note, estimate=True)
