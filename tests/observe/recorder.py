"""Record, with hooks of its own, what a network computes; the labels say by hand what belongs to which layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tests.reference.observed import Observed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NONLINEAR = {"relu", "relu_", "gelu", "silu", "elu", "tanh", "sigmoid"}
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)
#: number of the nonlinearity's call in the forward pass, one per call of the layer; or what computes the value
Where = list[int] | Callable[["Recorder"], Tensor]


@dataclass(frozen=True)
class Label:
    """What a case's text says: layer -> (nonlinearity, where its value is); outputs; packed weights; tables."""

    posts: dict[str, tuple[str, Where]] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    packed: frozenset[str] = frozenset()  # modules whose weight holds q, k, v
    tied: frozenset[str] = frozenset()  # measured under another name
    tables: frozenset[str] = frozenset()  # bare parameters that are added
    scales: tuple[str, ...] | None = None  # norms; None: those of the types above


class Recorder(TorchFunctionMode):
    """One forward and backward pass of a plain (not compiled) model in eval mode."""

    def __init__(self, model: nn.Module, run: Callable[[], Any]) -> None:
        super().__init__()
        self.acts: list[Tensor] = []
        self.pre: dict[str, list[Tensor]] = {}
        self.grads: dict[str, list[Tensor]] = {}
        self.model = model.eval()
        removers = [
            m.register_forward_hook(self._hook(n)) for n, m in model.named_modules() if _weight(m) is not None
        ]
        with self:
            loss = run()
        loss.backward()
        for remover in removers:
            remover.remove()
        self.parameter_grads = {
            n: p.grad.clone() for n, p in model.named_parameters(remove_duplicate=False) if p.grad is not None
        }
        model.zero_grad()
        model.train()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in NONLINEAR:
            self.acts.append(out.detach().clone())
        return out

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            call = len(self.pre.setdefault(name, []))
            self.pre[name].append(output.detach().clone())
            grads = self.grads.setdefault(name, [])
            grads.append(torch.zeros(0))
            output.register_hook(lambda grad: grads.__setitem__(call, grad.detach().clone()))

        return keep

    # -- what the reference reads ----------------------------------------------------------------
    def layers(self, label: Label) -> list[Observed]:
        """Every weight of the model as the labels name it."""
        found = []
        for name, module in self.model.named_modules():
            for short, weight in _matrices(module):
                if name in label.tied:
                    continue
                path = name if short in ("weight", "in_proj_weight") else f"{name}.{short}"
                parts = _parts(name, short, weight, label)
                for part, rows in parts.items():
                    found.append(self._layer(label, module, name, path, short, weight, part, rows))
        for name in label.tables:
            found.append(Observed(name, table=True, matrices=[_array(self.model.get_parameter(name))[0]]))
        return found

    def _layer(
        self, label: Label, module: nn.Module, name: str, path: str, short: str, weight: Tensor, part: str,
        rows: slice,
    ) -> Observed:  # fmt: skip
        grad = self.parameter_grads.get(f"{name}.{short}")
        recurrent = isinstance(module, nn.RNNBase)
        full = f"{path}#{part}" if part else path
        x = Observed(full, part, hidden=full not in label.outputs, table=isinstance(module, nn.Embedding))
        groups = int(getattr(module, "groups", 1))
        cut = _array(weight)[rows]
        x.matrices = [w.reshape(len(w), -1) for w in np.split(cut, groups)]
        if recurrent:
            return x
        if grad is not None:
            x.weight_grad = _array(grad)[rows]
        if self.grads.get(name):
            x.pre_grad = _responses(self.grads[name])[:, rows]
        if full in label.posts:
            x.op, where = label.posts[full]
            taken = [self.acts[i] for i in where] if isinstance(where, list) else [where(self)]
            x.post = _responses(taken)
        return x

    def scales(self, label: Label) -> dict[str, np.ndarray]:
        """Gradients of the scales of the norms."""
        names = label.scales
        if names is None:
            names = tuple(n for n, m in self.model.named_modules() if isinstance(m, NORMS))
        return {n: _array(self.parameter_grads[f"{n}.weight"]) for n in names}


def _weight(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.ndim > 1 else None


def _matrices(module: nn.Module) -> list[tuple[str, Tensor]]:
    if isinstance(module, nn.MultiheadAttention):
        return [("in_proj_weight", module.in_proj_weight)]
    if isinstance(module, nn.RNNBase):
        return [(n, p) for n, p in module.named_parameters() if n.startswith("weight")]
    weight = _weight(module)
    return [] if weight is None else [("weight", weight)]


def _parts(name: str, short: str, weight: Tensor, label: Label) -> dict[str, slice]:
    letters = ""
    if short == "in_proj_weight" or name in label.packed:
        letters = "qkv"
    elif short.startswith("weight_"):
        letters = "ifgo"
    if not letters:
        return {"": slice(None)}
    size = len(weight) // len(letters)
    return {letter: slice(i * size, (i + 1) * size) for i, letter in enumerate(letters)}


def _responses(values: list[Tensor]) -> np.ndarray:
    """(N, U, P): images have their units on axis 1, everything else on the last; calls add positions."""
    arrays = [_array(v) for v in values]
    arrays = [np.moveaxis(a, 1 if a.ndim == 4 else -1, 1) for a in arrays]
    return np.concatenate([a.reshape(a.shape[0], a.shape[1], -1) for a in arrays], -1)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
