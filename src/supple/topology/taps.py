"""Read the activations of a live network: before and after the nonlinearity, and the gradient before it."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.layouts import is_linear
from supple.topology.flow import Flow, Response, in_backward
from supple.topology.moves import Source

NEVER_CALLED = "its forward was not called in this pass (unused, or its parent reads the weights directly)"
HIDDEN = "its pre-activations never leave the module that owns the weight"
NO_NONLINEARITY = "reaches the output of the network, or ends, without a nonlinearity"
_EAGER: contextvars.ContextVar[bool] = contextvars.ContextVar("eager", default=False)
_CONV_RANK = {
    **dict.fromkeys((nn.Conv1d, nn.ConvTranspose1d), 1),
    **dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d), 2),
    **dict.fromkeys((nn.Conv3d, nn.ConvTranspose3d), 3),
}


@dataclass(frozen=True, slots=True)
class Tap:
    """One value of one layer call, a detached copy; units lie along ``unit_dim``, samples along axis 0."""

    tensor: Tensor
    unit_dim: int
    op: str = ""  # the nonlinearity, for values after it


class Taps:
    """What `tap` collected; every list has one entry per call of the layer."""

    def __init__(self) -> None:
        self.pre: dict[str, list[Tap]] = {}
        self.pre_grad: dict[str, list[Tensor | None]] = {}
        self.units: dict[str, int] = {}
        self.unseen: dict[str, str] = {}  # layers that gave no value at all, and why
        self.flow = Flow()

    def end_forward(self) -> None:
        """Let what follows (the loss, the backward pass) run without the overhead of the search.

        Only at the level of the ``with`` block itself, not inside a hook or another context.
        """
        self.flow.forget()
        self.flow.__exit__(None, None, None)

    def clear(self) -> None:
        """Forget the values of a pass that is about to be repeated."""
        for collected in (self.pre, self.pre_grad, self.flow.responses, self.flow.reasons):
            collected.clear()

    @property
    def post(self) -> dict[str, list[Tap]]:
        """Values after the first nonlinearity; a layer for which it was not found in every call is absent."""
        return {name: taps for name in self.pre if (taps := self.post_of(name))}

    @property
    def missing(self) -> dict[str, str]:
        """Layers absent from `post`, each with the reason."""
        return {name: reason for name in (*self.unseen, *self.pre) if (reason := self.reason_of(name))}

    def post_of(self, name: str) -> list[Tap]:
        """The values of one layer after the nonlinearity, one per call; empty where `reason_of` tells why."""
        taps = [self._assemble((name, i)) for i in range(len(self.pre.get(name, [])))]
        found = [t for t in taps if isinstance(t, Tap)]
        return found if len(found) == len(taps) else []

    def reason_of(self, name: str) -> str:
        """Why one layer is absent from `post`; empty where it is not."""
        if name in self.unseen:
            return self.unseen[name]
        results = [self._assemble((name, i)) for i in range(len(self.pre.get(name, [])))]
        return next((r for r in results if isinstance(r, str)), "" if results else HIDDEN)

    def _assemble(self, source: Source) -> Tap | str:
        """Join the responses of all units of one call, or say why that is not possible."""
        units = self.units[source[0]]
        groups: dict[int, list[Response]] = {}
        for response in self.flow.responses.get(source, []):
            groups.setdefault(response.piece.unit, []).append(response)
        ordered = [groups[u] for u in sorted(groups)]
        seen = sum(g[0].piece.length for g in ordered)
        if seen < units:
            reason = self.flow.reasons.get(source, NO_NONLINEARITY)
            return (
                reason if seen == 0 else f"only {seen} of {units} units meet a nonlinearity; others: {reason}"
            )
        if len({(len(g), g[0].dim, g[0].tensor.ndim) for g in ordered}) > 1:
            return "its units meet nonlinearities of different form"
        # a pair (sin and cos, CReLU) is two responses of one unit: they become two more positions
        parts = [torch.stack([r.tensor for r in g], -1) if len(g) > 1 else g[0].tensor for g in ordered]
        op = "+".join(dict.fromkeys(r.op for g in ordered for r in g))
        return Tap(torch.cat(parts, ordered[0][0].dim) if len(parts) > 1 else parts[0], ordered[0][0].dim, op)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled models eagerly and attention layers module by module, so that hooks fire.

    >>> with eager():
    ...     torch.nn.Linear(2, 2)(torch.ones(1, 2)).shape
    torch.Size([1, 2])
    """
    if _EAGER.get():
        yield
        return
    fast = torch.backends.mha.get_fastpath_enabled()
    token = _EAGER.set(True)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # importing dynamo costs a second, and without it nothing is compiled
        compiled = "torch._dynamo" in sys.modules
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        _EAGER.reset(token)


def plain_name(name: str) -> str:
    """A module path without the wrapper that ``torch.compile`` puts around modules.

    >>> plain_name("_orig_mod.net.0")
    'net.0'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def layer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that own a weight matrix (a parameter ``weight`` with at least two axes, norms apart), by path.

    >>> list(layer_modules(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))))
    ['0', '2']
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        shape = weight_shape(module)
        if shape is not None and len(shape) >= 2 and not isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            found.setdefault(plain_name(name), module)
    return found


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of a module's weight, without computing it: a parametrisation may change buffers on access."""
    parametrised = module._modules.get("parametrizations")
    held = dict(module._parameters)
    if isinstance(parametrised, nn.ModuleDict) and "weight" in parametrised:
        # weight_norm keeps a scale (original0) and a direction of the full shape (original1)
        held.update({f"weight_{k}": p for k, p in parametrised["weight"].named_parameters(recurse=False)})
    for name in ("weight", "weight_orig", "weight_v", "weight_original", "weight_original1"):
        weight = held.get(name)
        if isinstance(weight, Tensor) and not isinstance(weight, nn.UninitializedParameter):
            return tuple(weight.shape)
    return None


def unit_axis(module: nn.Module, output: Tensor, given: Tensor | None = None) -> int | None:
    """The axis of a layer's output along which its units lie, None where no axis has their number.

    ``given`` is what the layer read: it tells x @ W, with W (inputs, outputs), from a layer with rows of units.
    """
    for kind, rank in _CONV_RANK.items():
        if isinstance(module, kind):
            return output.ndim - rank - 1
    if is_linear(module) or isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.Bilinear)):
        return output.ndim - 1
    shape = weight_shape(module) or (-1,)
    if given is not None and given.ndim and output.ndim and len(shape) == 2:
        ends = (given.shape[-1], output.shape[-1])
        if ends in (shape, shape[::-1]):
            return output.ndim - 1
    rows = shape[0]
    return next((d for d in (output.ndim - 1, 1) if d < output.ndim and output.shape[d] == rows), None)


@contextlib.contextmanager
def tap(model: nn.Module, layers: Iterable[str] | None = None, gradients: bool = True) -> Iterator[Taps]:
    """Collect the values before and after each layer's nonlinearity, and the gradient before it.

    ``taps.pre[name]``, ``taps.post[name]``: a `Tap` per call, detached copies, so that in-place activations
    and residual sums cannot change them. ``taps.pre_grad[name]``: dL/d(pre-activation) per call once a
    backward pass has run (None before, or where nothing required a gradient); the latest pass counts.
    The gradient is taken at the output of the layer itself, before norms. `supple.topology.flow` says
    how the nonlinearity is found and how units are counted; ``taps.missing`` says why a layer has none.

    Compiled models run eagerly inside. Every hook is gone on exit, also when the forward pass raises.

    Args:
        model: any module.
        layers: paths of modules with a weight matrix (``"path#part"`` means its module); all when None.
            Bare parameters and packed modules (LSTM, MultiheadAttention) let none be read: `missing`.
        gradients: whether to hook the gradients.

    Raises:
        InputError: a name in ``layers`` is neither a module nor a parameter of the model.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    >>> with tap(model) as taps:
    ...     model(torch.randn(8, 3)).sum().backward()
    >>> taps.post["0"][0].op, tuple(taps.pre_grad["0"][0].shape), "2" in taps.post
    ('relu', (8, 4), False)
    """
    known = layer_modules(model)
    chosen = (
        list(known) if layers is None else list(dict.fromkeys(plain_name(n).split("#")[0] for n in layers))
    )
    inside = {plain_name(n) for n, _ in (*model.named_modules(), *model.named_parameters())}
    for name in chosen:
        if name not in known and name not in inside:
            raise InputError(
                f"no layer {name!r} to tap",
                found="neither a module nor a parameter at this path",
                do=f"choose from {', '.join(known)}",
            )
    taps = Taps()
    taps.unseen = {name: NEVER_CALLED if name in known else HIDDEN for name in chosen}
    with contextlib.ExitStack() as stack:
        for name in set(chosen) & set(known):
            hook = _LayerHook(name, taps, gradients)
            stack.callback(known[name].register_forward_hook(hook, with_kwargs=True).remove)
        stack.callback(model.register_forward_pre_hook(lambda *_: taps.flow.resume()).remove)
        stack.callback(model.register_forward_hook(lambda *_: taps.flow.forget(), always_call=True).remove)
        stack.enter_context(eager())
        stack.enter_context(taps.flow)
        yield taps


class _LayerHook:
    """Forward hook of one layer: copy the output, tag it, hook its gradient."""

    def __init__(self, name: str, taps: Taps, gradients: bool) -> None:
        self.name, self.taps, self.gradients = name, taps, gradients

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        taps, name = self.taps, self.name
        if in_backward():
            # re-entrant checkpointing: the first pass had no graph, the gradient arrives through this one
            if self.gradients and taps.pre_grad.get(name) == [None]:
                self._watch(output, 0)
            return
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        dim = unit_axis(module, output, given) if isinstance(output, Tensor) else None
        if dim is None or not output.is_floating_point():
            taps.unseen[name] = "its output is not a real tensor with an axis of its units"
            return
        taps.unseen.pop(name, None)
        calls = taps.pre.setdefault(name, [])
        calls.append(Tap(output.detach().clone(), dim))
        taps.units[name] = output.shape[dim]
        taps.pre_grad.setdefault(name, []).append(None)
        taps.flow.start(output, (name, len(calls) - 1), dim)
        if self.gradients:
            self._watch(output, len(calls) - 1)

    def _watch(self, output: Any, call: int) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            store = self.taps.pre_grad[self.name]

            def keep(grad: Tensor) -> None:
                # a copy: autograd accumulates into its own buffers
                store[call] = grad.detach().clone()

            output.register_hook(keep)
