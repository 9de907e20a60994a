"""Residual networks of basic blocks (He et al. 2016), in the small-image form."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), with a 1×1 shortcut where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, norm: bool = True) -> None:
        super().__init__()
        make = (lambda n: nn.BatchNorm2d(n)) if norm else (lambda n: nn.Identity())
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not norm)
        self.norm1 = make(outputs)
        self.act = nn.ReLU()  # a module, so that `supple.convert_` can replace it
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=not norm)
        self.norm2 = make(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=not norm), make(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3×3 stem without pooling, stages of basic blocks (each later stage halves the image), a linear head.

    >>> import torch
    >>> net = resnet18(outputs=100)
    >>> net(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 100])
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        outputs: int = 10,
        *,
        channels: int = 3,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=not norm)
        self.stem_norm: nn.Module = nn.BatchNorm2d(widths[0]) if norm else nn.Identity()
        stages = []
        seen = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(seen, width, stride, norm=norm))
                seen = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(seen, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.stem_norm(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


def resnet18(outputs: int = 10, *, channels: int = 3, norm: bool = True) -> ResNet:
    """ResNet-18 for 32×32 images: widths 64 to 512, two blocks each (11.2 M parameters for 10 classes)."""
    return ResNet(outputs=outputs, channels=channels, norm=norm)


def resnet8(outputs: int = 10, *, channels: int = 3, norm: bool = True) -> ResNet:
    """A small one: widths 16, 32, 64, one block each (78 k parameters).

    >>> sum(p.numel() for p in resnet8().parameters())
    78042
    """
    return ResNet((16, 32, 64), (1, 1, 1), outputs, channels=channels, norm=norm)
