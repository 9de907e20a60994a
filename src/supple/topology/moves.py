"""Where a tag's units sit after an operation that only moves values: reshape, permute, split, slice, cat."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

Source: TypeAlias = tuple[str, int]  # layer name, number of the call


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` units of a source from ``unit`` on, sitting at ``at`` along the tensor's unit axis."""

    source: Source
    unit: int
    at: int
    length: int
    sign: int = 1


@dataclass(frozen=True, slots=True)
class Tag:
    """Units along axis ``dim``; no pieces: a value that has passed a nonlinearity (it may act as a gate)."""

    dim: int
    pieces: tuple[Piece, ...]


#: (args, kwargs, tagged inputs, output) -> [(output tensor, its tag, None where it was lost)]
Move: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any], list, Any], list[tuple[Any, Tag | None]]]


def _reshape(args: Any, kwargs: Any, tagged: list, out: Tensor) -> list[tuple[Any, Tag | None]]:
    _, tensor, tag = tagged[0]
    before, size = math.prod(tensor.shape[: tag.dim]), tensor.shape[tag.dim]
    seen = 1
    for dim, length in enumerate(out.shape):
        # the axis counts when what lies before it (and so what lies after it) has the same extent
        if seen == before and length == size:
            return [(out, Tag(dim, tag.pieces))]
        seen *= length
    return [(out, None)]


def _permute(args: Any, kwargs: Any, tagged: list, out: Tensor) -> list[tuple[Any, Tag | None]]:
    _, tensor, tag = tagged[0]
    order = [d % tensor.ndim for d in args[1]]
    return [(out, Tag(order.index(tag.dim), tag.pieces))]


def _transpose(args: Any, kwargs: Any, tagged: list, out: Tensor) -> list[tuple[Any, Tag | None]]:
    _, tensor, tag = tagged[0]
    a, b = (args[1] % tensor.ndim, args[2] % tensor.ndim) if len(args) > 2 else (0, tensor.ndim - 1)
    return [(out, Tag({a: b, b: a}.get(tag.dim, tag.dim), tag.pieces))]


def _cut(tag: Tag, dim: int, start: int, length: int) -> Tag:
    """The tag of ``tensor.narrow(dim, start, length)``."""
    if dim != tag.dim:
        return tag
    pieces = []
    for p in tag.pieces:
        low, high = max(p.at, start), min(p.at + p.length, start + length)
        if low < high:
            pieces.append(replace(p, unit=p.unit + low - p.at, at=low - start, length=high - low))
    return Tag(dim, tuple(pieces))


def _split(args: Any, kwargs: Any, tagged: list, out: list[Tensor]) -> list[tuple[Any, Tag | None]]:
    _, tensor, tag = tagged[0]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % tensor.ndim
    result: list[tuple[Any, Tag | None]] = []
    start = 0
    for part in out:
        result.append((part, _cut(tag, dim, start, part.shape[dim])))
        start += part.shape[dim]
    return result


def _slice(args: Any, kwargs: Any, tagged: list, out: Tensor) -> list[tuple[Any, Tag | None]]:
    _, tensor, tag = tagged[0]
    dim, start, _, step = (*args[1:], *(0, None, None, 1)[len(args) - 1 :])
    dim = dim % tensor.ndim
    if dim == tag.dim and step != 1:
        return [(out, None)]
    start = 0 if start is None else min(start + tensor.shape[dim] if start < 0 else start, tensor.shape[dim])
    return [(out, _cut(tag, dim, start, out.shape[dim]))]


def _cat(args: Any, kwargs: Any, tagged: list, out: Tensor) -> list[tuple[Any, Tag | None]]:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    pieces: list[Piece] = []
    start = 0
    by_id = {id(t): tag for _, t, tag in tagged}
    for part in args[0]:
        if (
            part.ndim != out.ndim
        ):  # an empty vector, which torch.cat takes as nothing: a cache before its first step
            continue
        tag = by_id.get(id(part))
        if tag is not None and tag.dim != dim:
            return [(out, None)]
        pieces += [replace(p, at=p.at + start) for p in tag.pieces] if tag else []
        start += part.shape[dim]
    return [(out, Tag(dim, tuple(pieces)))]


MOVES: dict[str, Move] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten"), _reshape),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "slice": _slice,
    "cat": _cat,
}
