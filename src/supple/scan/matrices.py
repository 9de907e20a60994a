"""Which matrices a checkpoint holds: convolutions unfolded, packed projections and expert stacks split.

What is measured is never guessed silently: a tensor that is no weight matrix, or whose layout is not known,
is listed with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from supple.scan.sources import Entry

#: storage formats whose rounding hides small singular values, with the spacing of their numbers at 1
COARSE = {"BF16": 2.0**-7, "bfloat16": 2.0**-7, "F16": 2.0**-10, "float16": 2.0**-10}
EMBEDDING_TABLE = "an embedding table (ask for embeddings to include it)"
#: up to this short side the whole spectrum costs little more than an estimate
EXACT_SIDE = 256
PLAIN = {"F64", "F32", "float64", "float32", *COARSE}
_EMBEDDING = re.compile(r"(^|\.)(wte|wpe|embed_tokens|word_embeddings|position_embeddings|tok_embeddings)\.")
_EXPERTS = re.compile(r"(^|[._])experts?([._]|$)")
# Contiguous blocks of rows (torch, timm, MPT, Phi-3); GPT-2 keeps them as columns.
_PACKED_ROWS = re.compile(r"(in_proj_weight|(^|\.)qkv(_proj)?\.weight|(^|\.)Wqkv\.weight)$")
_PACKED_COLUMNS = re.compile(r"(^|\.)c_attn\.weight$")
_GATE_UP = re.compile(r"(^|\.)gate_up_proj\.weight$")
_INTERLEAVED = re.compile(r"(query_key_value|c_qkv)\.weight$")


@dataclass(frozen=True)
class Matrix:
    """One matrix to measure: its layer, the part of it, the values (out, in), the storage format.

    ``shape`` is that of the matrix where ``values`` is a smaller one with the same singular values; ``estimate`` asks
    for the estimated path, whatever the scan asked for.
    """

    layer: str
    part: str
    values: Tensor
    dtype: str
    note: str = ""
    shape: tuple[int, ...] = ()
    estimate: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        """(out, in) of the matrix itself."""
        return self.shape or tuple(self.values.shape)


@dataclass(frozen=True)
class Skipped:
    """A tensor that is not measured, and why."""

    layer: str
    reason: str


def why_not(entry: Entry, embeddings: bool) -> str | None:
    """The reason not to measure a tensor, or None."""
    if entry.odd:
        return entry.odd
    if len(entry.shape) < 2 or len(entry.shape) > 5:
        return f"{len(entry.shape)} dimensions: no weight matrix"
    if math.prod(entry.shape) == 0:
        return "no values"
    if min(entry.shape[0], math.prod(entry.shape[1:])) < 2:
        return "a single row or column has one singular value"
    if entry.dtype not in PLAIN:
        return f"stored as {entry.dtype}: quantised or integer values have no spectrum of their own"
    if not embeddings and _EMBEDDING.search(entry.name):
        return EMBEDDING_TABLE
    return None


def tied(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Name -> the entry under which its values are measured, of tensors that are another one of the same file.

    An embedding table stands for the head that is tied to it, as in files that keep one of them; else the first does.
    """
    places: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        if entry.place and why_not(entry, embeddings=True) is None:
            places.setdefault(entry.place, []).append(entry)
    found = {}
    for same in places.values():
        kept = next((e for e in same if _EMBEDDING.search(e.name)), same[0])
        found.update({e.name: kept for e in same if e is not kept})
    return found


def is_stack(entry: Entry) -> bool:
    """Whether a tensor holds the matrices of experts one behind another."""
    return _is_stack(entry.name, len(entry.shape))


def _is_stack(name: str, dimensions: int) -> bool:
    return dimensions == 3 and _EXPERTS.search(name) is not None


def split(name: str, values: Tensor, dtype: str, config: dict[str, Any], note: str = "") -> Iterator[Matrix]:
    """The matrices inside one tensor, as (out, in); ``note`` is said of each."""
    layer = name.removesuffix(".weight")
    if _is_stack(name, values.ndim):
        for i, expert in enumerate(values):
            yield Matrix(layer, f"expert {i}", expert, dtype, note)
        return
    if values.ndim > 2:
        unfolded = "kernel unfolded to (out, in*k)"
        yield Matrix(layer, "", values.reshape(values.shape[0], -1), dtype, _both(unfolded, note))
        return
    if _PACKED_COLUMNS.search(name) and values.shape[1] == 3 * values.shape[0]:
        values = values.T
    sizes = _packed_sizes(name, values, config)
    if sizes is not None:
        for part, block in zip(sizes, values.split(list(sizes.values())), strict=True):
            yield Matrix(layer, part, block, dtype, note)
        return
    whole = "packed projection in an interleaved layout, measured whole" if _INTERLEAVED.search(name) else ""
    yield Matrix(layer, "", values, dtype, _both(whole, note))


def _both(first: str, second: str) -> str:
    return "; ".join(n for n in (first, second) if n)


def _packed_sizes(name: str, values: Tensor, config: dict[str, Any]) -> dict[str, int] | None:
    rows, columns = values.shape
    if _GATE_UP.search(name) and rows % 2 == 0:
        return {"gate": rows // 2, "up": rows // 2}
    if not (_PACKED_ROWS.search(name) or _PACKED_COLUMNS.search(name)):
        return None
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads + 2 * kv_heads > 0:
        head, rest = divmod(rows, heads + 2 * kv_heads)
        if rest == 0 and head > 0:
            return {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
    if rows == 3 * columns:
        return {"q": columns, "k": columns, "v": columns}
    return None
