"""Follow the units of each layer to the first nonlinearity: tags on tensor views, one light dispatch mode.

A tag says which units of which layer call sit where along one axis of a tensor. It survives norms, dropout,
pooling, sums and reshapes that keep the unit axis; the first nonlinearity ends it and its value is kept.

How units are counted. A unit is a row of the producing layer. Sin/cos pairs (Fourier features) and the
two halves of CReLU are two responses of one unit; `Flow.post` puts them side by side on a last axis. In
a gated unit the value is read after the product; a fused ``glu`` shows the product for value and gate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from supple.topology.moves import MOVES, Piece, Source, Tag

_NONLINEAR = """
relu leaky_relu gelu tanh sigmoid silu mish elu celu softplus hardtanh hardsigmoid hardswish
hardshrink softshrink threshold clamp clamp_min clamp_max log_sigmoid_forward _prelu_kernel
rrelu_with_noise sin cos abs exp erf sinc atan asinh
"""
NONLINEAR = frozenset(_NONLINEAR.split())
#: operations after which every unit still sits at its place along the unit axis
_KEEPING = """
add sub rsub mul div neg lerp addcmul clone contiguous detach alias _to_copy lift_fresh copy
native_dropout native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
_batch_norm_with_update _batch_norm_no_update cudnn_batch_norm miopen_batch_norm native_layer_norm
native_group_norm _fused_rms_norm max_pool2d_with_indices max_pool3d_with_indices avg_pool2d
avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest2d
upsample_bilinear2d constant_pad_nd masked_fill
"""
KEEPING = frozenset(_KEEPING.split())
#: computed for their statistics (hand-written norms), or without effect on values: no reason to end a search
_SILENT = """
pow mean var var_mean std rsqrt sqrt sum linalg_vector_norm amax max min empty_like
"""
SILENT = frozenset(_SILENT.split())


@dataclass(frozen=True, slots=True)
class Response:
    """The value of some units after their first nonlinearity."""

    piece: Piece
    tensor: Tensor
    dim: int
    op: str


def in_backward() -> bool:
    """True inside a backward pass: a forward that runs there is a recomputation (checkpointing)."""
    return torch._C._current_graph_task_id() != -1


class Flow(TorchDispatchMode):
    """Carries tags through one eager forward pass; `responses` and `reasons` are the result."""

    def __init__(self) -> None:
        super().__init__()
        self.active = True
        self._entered = False
        self.responses: dict[Source, list[Response]] = {}
        self.reasons: dict[Source, str] = {}
        self._tags: dict[tuple[Any, ...], tuple[StorageWeakRef, Tag]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler at the first operation, which takes seconds, only to keep this mode
        # from being compiled; `supple.topology.taps.eager` sees to that
        return False

    def start(self, output: Tensor, source: Source, dim: int) -> None:
        """Tag a layer's output: all its units lie along ``dim``."""
        self._put(output, Tag(dim, (Piece(source, 0, 0, output.shape[dim]),)))

    def resume(self) -> None:
        """Search from here on (a forward pass of the network begins)."""
        self.active = not in_backward()

    def forget(self) -> None:
        """End the search (the forward pass of the network is over)."""
        self._tags.clear()
        self.active = False

    def __enter__(self) -> Flow:
        self._entered = True
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        # once only: `Taps.end_forward` may have left before the end of the block
        if self._entered:
            self._entered = False
            super().__exit__(exc_type, exc_val, exc_tb)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # the state before the call: an in-place operation overwrites its input's tag
        watching = self.active and bool(self._tags) and not in_backward()
        tagged = [(i, t, tag) for i, t in _tensors(args) if (tag := self._get(t))] if watching else []
        keys = {i: _key(t) for i, t, _ in tagged}
        out = func(*args, **(kwargs or {}))
        if tagged:
            name = func.overloadpacket.__name__
            name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
            for key in {keys[i] for i, t, _ in tagged if any(t is o for _, o in _tensors((out,)))}:
                self._tags.pop(key, None)
            self._step(name, args, kwargs or {}, tagged, out)
        return out

    def _step(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tagged: list, out: Any) -> None:
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if name in NONLINEAR:
            self._respond(name, tagged[0][2], first)
        elif name == "glu":
            self._glu(tagged[0][2], first)
        elif name == "mul" and self._gate(args, tagged, first):
            return
        elif name in KEEPING:
            self._keep(name, args, tagged, first)
        elif name in MOVES:
            self._move(name, args, kwargs, tagged, out)
        else:
            self._lose(tagged, f"read by {name} before any nonlinearity", name in SILENT)

    # -- the four things that can happen to a tag ------------------------------------------------
    def _respond(self, op: str, tag: Tag, out: Tensor) -> None:
        for piece in tag.pieces:
            known = self.responses.setdefault(piece.source, [])
            if _accepts([r for r in known if _overlap(r.piece, piece)], piece, op):
                value = out.detach().narrow(tag.dim, piece.at, piece.length).clone()
                known.append(Response(piece, value, tag.dim, op))
        self._put(out, Tag(tag.dim, ()))

    def _glu(self, tag: Tag, out: Tensor) -> None:
        half = out.shape[tag.dim]
        pieces = []
        for p in tag.pieces:
            head = max(0, min(p.length, half - p.at))
            if head:
                pieces.append(replace(p, length=head))
            if head < p.length:
                pieces.append(
                    replace(p, unit=p.unit + head, at=max(p.at, half) - half, length=p.length - head)
                )
        self._respond("glu", Tag(tag.dim, tuple(pieces)), out)

    def _gate(self, args: tuple[Any, ...], tagged: list, out: Tensor) -> bool:
        """A product of two tagged values of equal shape is a gate: the first nonlinearity of both."""
        if len(tagged) < 2 or tagged[0][1] is tagged[1][1]:
            return False
        (_, a, tag_a), (_, b, tag_b) = tagged[:2]
        same = a.shape == b.shape == out.shape and _key(a) != _key(b)
        if not same or not (tag_a.pieces or tag_b.pieces):
            return False
        for tag in (tag_a, tag_b):
            self._respond("gate", tag, out)
        return True

    def _keep(self, name: str, args: tuple[Any, ...], tagged: list, out: Any) -> None:
        if not isinstance(out, Tensor):
            return
        dim, pieces = None, []
        for _, tensor, tag in tagged:
            at = tag.dim + out.ndim - tensor.ndim
            if out.shape[at] != tensor.shape[tag.dim] or (dim is not None and dim != at):
                continue
            dim = at
            pieces += [p for p in tag.pieces if p not in pieces]
        if dim is None:
            self._lose(tagged, f"spread by {name} before any nonlinearity", False)
            return
        if name == "neg" or (name in ("mul", "div") and any(_negative(a) for a in args)):
            pieces = [replace(p, sign=-p.sign) for p in pieces]
        self._put(out, Tag(dim, tuple(pieces)))

    def _move(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tagged: list, out: Any) -> None:
        for value, tag in MOVES[name](args, kwargs, tagged, out):
            if tag is None:
                self._lose(tagged, f"its units are rearranged by {name} before any nonlinearity", False)
            else:
                self._put(value, tag)

    def _lose(self, tagged: list, reason: str, silent: bool) -> None:
        if not silent:
            for piece in (p for _, _, tag in tagged for p in tag.pieces):
                self.reasons.setdefault(piece.source, reason)

    # -- the table of tags -----------------------------------------------------------------------
    def _get(self, tensor: Tensor) -> Tag | None:
        entry = self._tags.get(_key(tensor))
        return None if entry is None else entry[1]

    def _put(self, tensor: Any, tag: Tag) -> None:
        if isinstance(tensor, Tensor) and _plain(tensor):
            # the weak reference keeps the address of a freed storage from being given to another tensor
            self._tags[_key(tensor)] = (StorageWeakRef(tensor.untyped_storage()), tag)


def _plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not is_traceable_wrapper_subclass(tensor)


def _key(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor.untyped_storage()._cdata,
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
    )


def _tensors(args: Any) -> list[tuple[int, Tensor]]:
    """Plain tensors among the arguments, lists opened, with the number of the argument."""
    found = []
    for i, item in enumerate(args):
        for leaf in item if isinstance(item, (tuple, list)) else (item,):
            if isinstance(leaf, Tensor) and _plain(leaf):
                found.append((i, leaf))
    return found


def _negative(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0


def _overlap(a: Piece, b: Piece) -> bool:
    return a.unit < b.unit + b.length and b.unit < a.unit + a.length


def _accepts(known: list[Response], piece: Piece, op: str) -> bool:
    """The first response of a unit, or the second half of a sin/cos or CReLU pair."""
    if not known:
        return True
    if len(known) > 1 or (known[0].piece.unit, known[0].piece.length) != (piece.unit, piece.length):
        return False
    pair = {known[0].op, op}
    return pair == {"sin", "cos"} or (len(pair) == 1 and known[0].piece.sign == -piece.sign)
