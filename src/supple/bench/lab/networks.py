"""The networks of the lab: all take the rows of the digits, (N, 64) -> (N, 10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from supple.models import MLP, ConvNet, ResNet
from supple.models.gpt import FeedForward, SelfAttention
from supple.models.mlp import he_uniform_

Factory = Callable[[], nn.Module]
IMAGE = (1, 8, 8)


class Images(nn.Module):
    """A network of images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.unflatten(1, IMAGE))


class Bf16(nn.Module):
    """A network with all weights in bfloat16; inputs and outputs stay in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.bfloat16()).float()


class Encoder(nn.Module):
    """A pre-norm transformer over the eight lines of a digit, two blocks, linear head over all lines."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Linear(8, dim)
        self.place = nn.Parameter(0.1 * torch.randn(8, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))
        self.attention = nn.ModuleList(SelfAttention(dim, 4) for _ in range(2))
        self.mlp = nn.ModuleList(FeedForward(dim, hidden, gated=False) for _ in range(2))
        self.head = nn.Linear(8 * dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.unflatten(1, (8, 8))) + self.place
        for i in range(2):
            h = h + self.attention[i](self.norms[2 * i](h))
            h = h + self.mlp[i](self.norms[2 * i + 1](h))
        return self.head(self.norms[4](h).flatten(1))


def mlp(
    widths: tuple[int, ...], activation: str = "relu", *, orthogonal: bool = False, **options: Any
) -> Factory:
    """Factory of an MLP; ``orthogonal``: hidden weights are orthogonal times sqrt(2)."""

    def build() -> nn.Module:
        net = MLP((64, *widths, 10), activation, **options)
        for layer in net if orthogonal else ():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, 2**0.5)
        return net

    return build


def sparse(widths: tuple[int, ...], kept: float = 0.2) -> Factory:
    """Factory of an MLP of whose hidden weights a share is kept, scaled up to the same variance."""

    def build() -> nn.Module:
        net = MLP((64, *widths, 10))
        for layer in list(net)[:-1]:
            if isinstance(layer, nn.Linear):
                with torch.no_grad():
                    layer.weight.mul_((torch.rand_like(layer.weight) < kept) / kept**0.5)
        return net

    return build


def conv(widths: tuple[int, int], hidden: int) -> Factory:
    return lambda: Images(_he(ConvNet(1, 8, 10, widths=widths, kernels=(3, 1), hidden=(hidden,))))


def resnet(widths: tuple[int, int], norm: bool) -> Factory:
    return lambda: Images(_he(ResNet(widths, (1, 1), channels=1, norm=norm)))


def _he(net: nn.Module) -> nn.Module:
    """He-uniform weights and zero biases: PyTorch's own law hardly learns in a short task."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            he_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def transformer(dim: int, hidden: int) -> Factory:
    return lambda: Encoder(dim, hidden)
