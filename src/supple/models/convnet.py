"""The small convolutional network of the protocols."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.models.mlp import NORMS, check_norm, make_activation

#: norms of a convolution's channels, by name
CHANNEL_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "batch": nn.BatchNorm2d,
}


class ConvNet(nn.Module):
    """Convolutions with 2×2 max-pooling, then hidden linear layers and a head.

    The default is the network of Continual ImageNet (Dohare et al. 2024): 32 (5×5), 64 (3×3), 128 (3×3)
    channels, 128-128 hidden units. Convolutions are unpadded, as there. PyTorch's initialisation.

    Args:
        channels: image channels.
        size: side of the square images.
        outputs: width of the head.
        widths, kernels: per convolution.
        hidden: linear layers before the head.
        norm: before every activation: "layer" (over channels and places of one image), "batch" or False.
        dropout: the rate behind every activation.

    >>> ConvNet(3, 32, 2)(torch.zeros(4, 3, 32, 32)).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        channels: int,
        size: int,
        outputs: int,
        *,
        widths: Sequence[int] = (32, 64, 128),
        kernels: Sequence[int] = (5, 3, 3),
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        norm: bool | str = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kind = check_norm(norm)
        features: OrderedDict[str, nn.Module] = OrderedDict()
        seen = channels
        for i, (width, kernel) in enumerate(zip(widths, kernels, strict=True), 1):
            act, factor = make_activation(activation)
            features[f"conv{i}"] = nn.Conv2d(seen, width // factor, kernel)
            if kind:
                features[f"norm{i}"] = CHANNEL_NORMS[kind](width // factor)
            features[f"act{i}"] = act
            if dropout:
                features[f"drop{i}"] = nn.Dropout(dropout)
            features[f"pool{i}"] = nn.MaxPool2d(2)
            seen, size = width, (size - kernel + 1) // 2
            if size < 1:
                raise InputError("the images are too small for this many convolutions", where=f"conv{i}")
        self.features = nn.Sequential(features)
        head: OrderedDict[str, nn.Module] = OrderedDict()
        seen *= size * size
        for i, width in enumerate(hidden, 1):
            act, factor = make_activation(activation)
            head[f"fc{i}"] = nn.Linear(seen, width // factor)
            if kind:
                head[f"norm{i}"] = NORMS[kind](width // factor)
            head[f"act{i}"] = act
            if dropout:
                head[f"drop{i}"] = nn.Dropout(dropout)
            seen = width
        head["head"] = nn.Linear(seen, outputs)
        self.classifier = nn.Sequential(head)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))
