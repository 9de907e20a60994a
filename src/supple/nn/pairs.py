"""Activations that answer with two features per unit: concatenated ReLU and deep Fourier features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from supple.errors import InputError

#: gain of a layer that reads pair features: their second moment is 1/2 of the pre-activation's
PAIR_GAIN = math.sqrt(2.0)


class CReLU(nn.Module):
    """[relu(z), relu(−z)] along the unit axis: twice as many features as units.

    Shang et al. 2016; against loss of plasticity: Abbas et al., arXiv 2303.07507. ‖CReLU(z)‖² = ‖z‖², and one
    half is active for every z ≠ 0, so a unit is dead only if z is always 0. The next layer has 2U inputs:
    halve U to keep its width (`convert_`, ``width="half"``), and initialise with `init_pairs_`.

    Args:
        dim: the unit axis: 1 for (N, U) and (N, U, H, W), -1 for (N, T, U).

    Shapes: (…, U, …) → (…, 2U, …).

    >>> CReLU()(torch.tensor([[1.0, -2.0]])).tolist()
    [[1.0, 0.0, 0.0, 2.0]]
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, -z], self.dim).relu()

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class DeepFourier(nn.Module):
    """[sin z, cos z] of the same pre-activation, along the unit axis: twice as many features as units.

    Lewandowski, Schuurmans, Machado, arXiv 2410.20634, ICLR 2025 (no official code found). At every z one of
    the two is close to linear; the gradient of the pair, (cos z, −sin z), has norm 1 everywhere, although
    each half has zeros. Second moment of each feature: 1/2 (mean over z of the pair, exactly).

    **The initialisation decides.** With weights N(0, 2 / fan_in), fan_in counted after the pairing, forward
    and backward variance are kept; with PyTorch's default (a sixth of that variance) a deep network
    collapses onto cos ≈ 1 at birth. Use `init_pairs_` (`convert_` does). The init of the authors is not
    verified. Sin and cos cost about fifteen times a ReLU of that size, set off by the halved product.

    Args:
        dim: the unit axis: 1 for (N, U) and (N, U, H, W), -1 for (N, T, U).

    Shapes: (…, U, …) → (…, 2U, …).

    >>> DeepFourier()(torch.zeros(1, 2)).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.sin(), z.cos()], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


@torch.no_grad()
def init_pairs_(
    layer: nn.Module, gain: float = PAIR_GAIN, generator: torch.Generator | None = None
) -> nn.Module:
    """Weights N(0, gain² / fan_in), bias 0, where fan_in counts the features that the layer really reads.

    gain √2 is right for a layer that reads CReLU or Fourier pairs, whose features have half the second moment
    of the pre-activations. For the first layer, which reads inputs of unit second moment, use gain 1: the
    pre-activations then have the same variance in every layer.

    Args:
        layer: Linear or convolution, already with its final number of inputs.
        gain: see above.
        generator: of the draw; the global one by default, as in PyTorch's own constructors.

    Returns:
        The layer.

    Raises:
        InputError: a module without a weight matrix.

    >>> layer = init_pairs_(nn.Linear(2000, 50), generator=torch.Generator().manual_seed(0))
    >>> round(layer.weight.std().item() * 2000**0.5, 1)
    1.4
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        raise InputError("init_pairs_ needs a layer with a weight matrix", found=type(layer).__name__)
    fan_in = weight[0].numel()
    weight.normal_(0.0, gain / math.sqrt(max(fan_in, 1)), generator=generator)
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        bias.zero_()
    return layer
