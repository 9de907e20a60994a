"""A small denoising U-Net for images (Ronneberger et al. 2015; Ho et al. 2020), told the noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with group norm and silu; the noise level is added between them."""

    def __init__(self, inputs: int, outputs: int, level: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(min(8, inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.level = nn.Linear(level, outputs)
        self.norm2 = nn.GroupNorm(min(8, outputs), outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.level(level)[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h))) + self.shortcut(x)


class UNet(nn.Module):
    """Predicts the noise in an image at a level t in [0, 1]: (B, C, H, W), (B,) -> (B, C, H, W).

    Each further width halves the image; H and W must be divisible by 2^(widths - 1).

    >>> net = UNet(1, widths=(8, 16))
    >>> net(torch.zeros(2, 1, 8, 8), torch.rand(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, channels: int, widths: Sequence[int] = (32, 64), level: int = 32) -> None:
        super().__init__()
        self.features = level
        self.embed = nn.Sequential(nn.Linear(level, level), nn.SiLU(), nn.Linear(level, level))
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            ResidualBlock(a, b, level) for a, b in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.middle = ResidualBlock(widths[-1], widths[-1], level)
        self.up = nn.ModuleList(
            ResidualBlock(a + b, b, level)
            for a, b in zip((widths[-1], *reversed(widths[1:])), reversed(widths), strict=True)
        )
        self.norm = nn.GroupNorm(min(8, widths[0]), widths[0])
        self.head = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = self.embed(_waves(t, self.features))
        h = self.stem(x)
        skips = []
        for i, block in enumerate(self.down):
            h = block(h, level)
            skips.append(h)
            if i < len(self.down) - 1:
                h = F.avg_pool2d(h, 2)
        h = self.middle(h, level)
        for i, block in enumerate(self.up):
            if i > 0:
                h = F.interpolate(h, scale_factor=2.0)
            h = block(torch.cat([h, skips[-1 - i]], dim=1), level)
        return self.head(F.silu(self.norm(h)))


def _waves(t: Tensor, size: int) -> Tensor:
    """Sine and cosine of t at ``size``/2 frequencies from 1 to 1000: (B,) -> (B, size)."""
    rates = torch.exp(torch.linspace(0.0, math.log(1000.0), size // 2, device=t.device, dtype=t.dtype))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
