"""What the kernel needs of each call of a layer: its input, its output, and where the samples are.

Shape letters: N samples, T positions, I fan-in, O outputs, B cotangents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

_MATRIX = (nn.Linear, nn.Conv1d, nn.Conv2d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORM = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, *_BATCH_NORM)
_CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.GroupNorm, *_BATCH_NORM)


@dataclass(eq=False)
class Call:
    """One call of a layer. ``layout`` says how its rows split into samples and positions."""

    module: nn.Module
    input: Tensor
    output: Tensor  # before whatever may write over it
    layout: str | None = None
    samples: int = 0

    def rows(self, tensor: Tensor, features: int) -> Tensor:
        """(B, lead..., features...) -> (B, N, T, features...) by the layout."""
        lead = tensor.shape[1 : tensor.dim() - features]
        rest = tensor.shape[tensor.dim() - features :]
        n = self.samples
        if self.layout == "first":
            return tensor.reshape(len(tensor), n, -1, *rest)
        if self.layout == "second":
            return tensor.transpose(1, 2).reshape(len(tensor), n, -1, *rest)
        moved = tensor.reshape(len(tensor), lead[0] // n, n, *lead[1:], *rest).transpose(1, 2)
        return moved.reshape(len(tensor), n, -1, *rest)

    def grads(self, g: Tensor) -> Tensor:
        """(B, *output.shape) -> (B, N, T, O); (B, N, T, normalized shape...) for LayerNorm and RMSNorm."""
        return self.rows(self._features_last(g), self._feature_axes())

    def inputs(self) -> Tensor:
        """(N, T, I) of a matrix layer; (N, T) indices of an embedding; (N, T, O) of a norm, normalised."""
        x = self.input[None]
        if isinstance(self.module, nn.Embedding):
            return self.rows(x, 0)[0]
        if isinstance(self.module, _NORM):
            return self.grads(_normalised(self.module, self.input)[None])[0]
        if isinstance(self.module, nn.Linear):
            return self.rows(x, 1)[0]
        return self.rows(_patches(self.module, self.input)[None], 1)[0]

    def _features_last(self, g: Tensor) -> Tensor:
        """(B, batch, O, space...) -> (B, batch, T, O) for layers with the channels first."""
        if isinstance(self.module, _CHANNELS_FIRST):
            return g.flatten(3).movedim(2, -1) if g.dim() > 3 else g[:, :, None]
        return g

    def _feature_axes(self) -> int:
        return len(self.module.normalized_shape) if isinstance(self.module, (nn.LayerNorm, nn.RMSNorm)) else 1

    def layouts(self, n: int) -> list[str]:
        """Ways in which the rows may hold n samples, the usual one first."""
        if isinstance(self.module, (nn.Conv1d, nn.Conv2d)) and self.output.dim() < self.module.weight.dim():
            return []  # a single sample without its axis
        lead = self._features_last(self.output[None]).shape[1:]
        lead = lead[: len(lead) - self._feature_axes()]
        if not lead or lead[0] % n:
            return ["second"] if len(lead) > 1 and lead[1] == n else []
        usual = ["first"]
        if len(lead) > 1 and lead[1] == n:
            usual.append("second")
        if lead[0] > n:
            usual.append("strided")
        return usual


class Recorder:
    """Forward hooks on every layer the kernel knows; outputs are kept out of reach of in-place writes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[Call] = []
        self._recording = False
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        self._recording = True
        for module in self.model.modules():
            if is_known(module) and any(p.requires_grad for p in module.parameters(recurse=False)):
                # first in line: before a user's hook changes the output
                self._handles.append(module.register_forward_hook(self._hook, prepend=True, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._recording = False
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        # activation checkpointing runs the layer again in the backward pass: not a call of its own
        if not self._recording or not output.requires_grad:
            return None
        x = args[0] if args else kwargs["input"]
        self.calls.append(Call(module, x.detach(), output))
        # an in-place activation writes over the copy: the gradient at `output` stays the one before it
        return output.clone()


def is_known(module: nn.Module) -> bool:
    """True for a layer whose per-sample gradient is known from its input and the gradient at its output.

    A subclass with a forward of its own, or a weight that is computed (weight norm, pruning), is not.
    """
    kind = next((k for k in (*_MATRIX, *_NORM, nn.Embedding) if isinstance(module, k)), None)
    if kind is None or type(module).forward is not kind.forward or hasattr(module, "parametrizations"):
        return False
    if not all(name in module._parameters for name in ("weight", "bias") if hasattr(module, name)):
        return False
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.scale_grad_by_freq
    return not isinstance(module, _BATCH_NORM) or module.running_mean is not None


def settle_layouts(
    calls: Sequence[Call], before: Sequence[Tensor], after: Sequence[Tensor], scale: Tensor
) -> None:
    """Give each call the first layout under which sample i's gradients scale by s_i; None where none does."""
    n = len(scale)
    for one, g, scaled in zip(calls, before, after, strict=True):
        one.samples = n
        tolerance = min(1e3 * torch.finfo(g.dtype).eps, 0.05)
        for layout in one.layouts(n):
            one.layout = layout
            a, b = one.grads(g)[0], one.grads(scaled)[0]
            expected = a * scale.to(a.dtype).view(n, *[1] * (a.dim() - 1))
            if bool((b - expected).norm() <= tolerance * expected.norm()):
                break
        else:
            one.layout = None


def _patches(conv: nn.Module, x: Tensor) -> Tensor:
    """(batch, channels, space...) -> (batch, T, channels * taps) as the convolution reads it."""
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d))
    pads: list[int] = []
    for size, dilation, padding in zip(
        reversed(conv.kernel_size), reversed(conv.dilation), reversed(_padding(conv)), strict=True
    ):
        total = dilation * (size - 1)
        pads += [total // 2, total - total // 2] if padding < 0 else [padding, padding]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = nnf.pad(x, pads, mode=mode)
    kernel, dilation, stride = conv.kernel_size, conv.dilation, conv.stride
    if x.dim() == 3:
        x, kernel, dilation, stride = x[:, :, None], (1, *kernel), (1, *dilation), (1, *stride)
    return nnf.unfold(x, kernel, dilation=dilation, stride=stride).mT


def _padding(conv: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """Padding per axis; -1 stands for "same"."""
    if isinstance(conv.padding, str):
        return (0 if conv.padding == "valid" else -1,) * len(conv.kernel_size)
    return tuple(int(p) for p in conv.padding)


def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm's output before its scale and shift."""
    if isinstance(norm, nn.LayerNorm):
        return nnf.layer_norm(x, norm.normalized_shape, None, None, norm.eps)
    if isinstance(norm, nn.RMSNorm):
        return nnf.rms_norm(x, norm.normalized_shape, None, norm.eps)
    if isinstance(norm, nn.GroupNorm):
        return nnf.group_norm(x, norm.num_groups, None, None, norm.eps)
    assert isinstance(norm, _BATCH_NORM)
    return nnf.batch_norm(x, norm.running_mean, norm.running_var, None, None, False, 0.0, norm.eps)
