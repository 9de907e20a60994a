"""The multilayer perceptron of the protocols."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.nn import CReLU, DeepFourier

#: name -> (module class, outputs per unit)
ACTIVATIONS: dict[str, tuple[type[nn.Module], int]] = {
    "relu": (nn.ReLU, 1),
    "leaky_relu": (nn.LeakyReLU, 1),
    "tanh": (nn.Tanh, 1),
    "sigmoid": (nn.Sigmoid, 1),
    "gelu": (nn.GELU, 1),
    "silu": (nn.SiLU, 1),
    "identity": (nn.Identity, 1),
    "crelu": (CReLU, 2),
    "fourier": (DeepFourier, 2),
}


#: norms before the activation, by name
NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


def check_norm(norm: bool | str) -> str:
    """The name of a norm, "" for none.

    >>> check_norm(True), check_norm("batch"), check_norm(False)
    ('layer', 'batch', '')
    """
    if norm not in (False, True, *NORMS):
        raise InputError(f"unknown norm {norm!r}", do=f"choose one of {', '.join(NORMS)}")
    return "layer" if norm is True else norm or ""


def make_activation(name: str) -> tuple[nn.Module, int]:
    """A new activation module, and how many outputs it has for each unit.

    >>> make_activation("leaky_relu")[0].negative_slope
    0.1
    """
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r}", do=f"choose one of {', '.join(ACTIVATIONS)}")
    cls, outputs = ACTIVATIONS[name]
    return (cls(0.1) if cls is nn.LeakyReLU else cls()), outputs


def he_uniform_(weight: Tensor) -> None:
    """Fill with U(-√(6/fan_in), √(6/fan_in)), in place (He et al. 2015, for ReLU)."""
    bound = math.sqrt(6.0 / weight[0].numel())
    with torch.no_grad():
        weight.uniform_(-bound, bound)


class MLP(nn.Sequential):
    """Linear layers ``fc1``, ``fc2``, … each with norm and activation, then ``head``.

    ``sizes`` are inputs, what each hidden layer shows to the next one, and outputs; an activation with
    two outputs per unit (``"crelu"``, ``"fourier"``) gets half as many units. Weights are He-uniform and
    biases zero, or PyTorch's default with ``init="default"``. ``norm`` is "layer" (True), "batch" or False,
    ``dropout`` the rate behind every activation. Two sizes make a linear model.

    >>> net = MLP((64, 64, 64, 10))
    >>> sum(p.numel() for p in net.parameters())
    8970
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "relu",
        *,
        norm: bool | str = False,
        init: str = "he_uniform",
        dropout: float = 0.0,
    ) -> None:
        kind = check_norm(norm)
        if len(sizes) < 2 or min(sizes) < 1 or init not in ("he_uniform", "default"):
            raise InputError(
                "an MLP needs at least two positive sizes, and init 'he_uniform' or 'default'",
                found=f"sizes {tuple(sizes)}, init {init!r}",
            )
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        width = sizes[0]
        for i, seen in enumerate(sizes[1:-1], 1):
            act, outputs = make_activation(activation)
            if seen % outputs:
                raise InputError(f"{activation} needs an even width", found=seen, where=f"fc{i}")
            parts[f"fc{i}"] = nn.Linear(width, seen // outputs)
            if kind:
                parts[f"norm{i}"] = NORMS[kind](seen // outputs)
            parts[f"act{i}"] = act
            if dropout:
                parts[f"drop{i}"] = nn.Dropout(dropout)
            width = seen
        parts["head"] = nn.Linear(width, sizes[-1])
        super().__init__(parts)
        if init == "he_uniform":
            for module in self:
                if isinstance(module, nn.Linear):
                    he_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
