"""The one linear layer in wide use that keeps its matrix as (inputs, outputs): the Conv1D of GPT-2."""

from __future__ import annotations

import sys

from torch import Tensor, nn


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is ``transformers.pytorch_utils.Conv1D``: y = x W + b with W (inputs, outputs).

    Nothing is imported: where transformers is not loaded, no module can be one.

    >>> is_conv1d(nn.Linear(2, 3)), is_conv1d(nn.Conv1d(2, 3, 1))
    (False, False)
    """
    loaded = sys.modules.get("transformers.pytorch_utils")
    kind = getattr(loaded, "Conv1D", None)
    return isinstance(kind, type) and isinstance(module, kind)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, in either layout.

    >>> is_linear(nn.Linear(2, 3)), is_linear(nn.Embedding(2, 3))
    (True, False)
    """
    return isinstance(module, nn.Linear) or is_conv1d(module)


def linear_weight(module: nn.Module) -> Tensor:
    """The matrix (outputs, inputs) of a linear layer in either layout; a view where it is stored transposed.

    >>> linear_weight(nn.Linear(2, 3)).shape
    torch.Size([3, 2])
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if is_conv1d(module) else weight


def linear_size(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer in either layout.

    >>> linear_size(nn.Linear(2, 3))
    (2, 3)
    """
    if isinstance(
        module, nn.Linear
    ):  # its weight may be computed, and have another shape where it is sharded
        return module.in_features, module.out_features
    outputs, inputs = linear_weight(module).shape
    return inputs, outputs
