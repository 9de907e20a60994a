"""Small networks with one structural trait each; the labels in `tests.zoo` were written from this text by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune


class FunctionalMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu_(self.b(torch.tanh(self.a(x)))))


class SliceWrites(nn.Module):
    """Two layers fill one buffer in place, in swapped order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 5)
        h[:, 2:] = self.a(x)
        h[:, :2] = self.b(x)
        return self.c(h.relu_())


class NHWC(nn.Module):
    """Channels last before flattening: unit c is read by columns c, c + C, c + 2C, …"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.gelu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


class PostResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.conv4, self.bn4 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down = nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)
        h = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        x = F.relu(h + self.down(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3, padding=1)
        self.bn3, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        return self.head(self.bn3(x).relu().mean((2, 3)))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(5), nn.Conv2d(5, 2, 3, padding=1)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = torch.cat([a, self.conv1(F.relu(self.bn1(a)))], 1)
        c = torch.cat([b, self.conv2(F.relu(self.bn2(b)))], 1)
        return self.head(F.relu(c).mean((2, 3)))


class Grouped(nn.Module):
    """Two groups, a channel shuffle, a depthwise and a pointwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.g = nn.Conv2d(4, 6, 3, groups=2)
        self.d = nn.Conv2d(6, 6, 3, groups=6)
        self.p = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.g(F.relu(self.a(x))))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.p(F.relu6(self.d(x)))


class TinyUNet(nn.Module):
    """A skip by concatenation, a transposed convolution, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.mid = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.out = nn.Conv2d(5, 2, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = F.silu(self.down(x))
        b = F.silu(self.mid(F.max_pool2d(a, 2)))
        return {"image": self.out(torch.cat([F.silu(self.up(b)), a], 1))}


class TinyGPT(nn.Module):
    """Pre-norm, fused qkv, tied head, learned positions: width 4, 2 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(7, 4), nn.Embedding(6, 4)
        self.ln1, self.qkv, self.proj = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.ln2, self.fc, self.out = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)
        self.lnf, self.head = nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        n, t = ids.shape
        x = self.wte(ids) + self.wpe(torch.arange(t, device=ids.device))
        q, k, v = self.qkv(self.ln1(x)).split(4, dim=-1)
        q, k, v = (u.view(n, t, 2, 2).transpose(1, 2) for u in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(n, t, 4))
        x = x + self.out(F.gelu(self.fc(self.ln2(x))))
        return self.head(self.lnf(x))


class RMSNorm(nn.Module):
    """Written by hand, as language models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Llama(nn.Module):
    """Grouped queries (4 heads on 2), rotary positions, gated MLP; width 8, heads of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.n1, self.n2, self.nf = RMSNorm(8), RMSNorm(8), RMSNorm(8)
        self.q, self.k = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)
        self.v, self.o = nn.Linear(8, 4, bias=False), nn.Linear(8, 8, bias=False)
        self.gate, self.up = nn.Linear(8, 6, bias=False), nn.Linear(8, 6, bias=False)
        self.down, self.head = nn.Linear(6, 8, bias=False), nn.Linear(8, 9, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], device=x.device)[:, None].float()
        half = torch.cat([-x[..., 1:], x[..., :1]], -1)
        return x * angle.cos() + half * angle.sin()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        n, t, _ = x.shape
        h = self.n1(x)
        q = self.rotate(self.q(h).view(n, t, 4, 2).transpose(1, 2))
        k = self.rotate(self.k(h).view(n, t, 2, 2).transpose(1, 2))
        v = self.v(h).view(n, t, 2, 2).transpose(1, 2)
        k, v = (u[:, :, None].expand(n, 2, 2, t, 2).reshape(n, 4, t, 2) for u in (k, v))
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(2)
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))
        y = scores.softmax(-1) @ v
        x = x + self.o(y.transpose(1, 2).reshape(n, t, 8))
        h = self.n2(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(self.nf(x))


class Attention(nn.Module):
    """nn.MultiheadAttention, with its weights asked for (the unfused way) or not (the fused way)."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need = need_weights
        self.inp, self.mha = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        return self.head(self.mha(h, h, h, need_weights=self.need)[0])


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mid, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.mid(F.relu(self.mid(F.relu(self.inp(x)))))))


class ConcatReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.cat([F.relu(h), F.relu(-h)], -1))


class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.stack([h.sin(), h.cos()], -1).flatten(1))


class Branch(nn.Module):
    """What it computes depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.p, self.q = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.p(h) if h.sum() > -1 else self.q(h)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.b = nn.Linear(3, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)
        self.c = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(self.lstm(self.a(x).relu())[0][:, -1])))


class Reparametrised(nn.Module):
    """weight_norm, spectral_norm and a pruned layer before a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
        self.b = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5))
        self.c = prune.l1_unstructured(nn.Linear(5, 4), "weight", 0.25)
        self.d = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


class TransposedLinear(nn.Module):
    """A bare (in, out) matrix with its own bias, then a packed gate; after GPT-2's Conv1D."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.zeros(8))
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = (x @ self.weight + self.shift).chunk(2, -1)
        return self.out(value * torch.sigmoid(gate))


class PostNormMLP(nn.Module):
    """A norm after the activation; a norm by hand with scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.b, self.out = nn.Linear(4, 5), nn.Linear(5, 2)
        self.scale, self.shift = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.bn(F.relu(self.a(x))))
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True) + 1e-5).sqrt()
        return self.out(F.leaky_relu(h * self.scale + self.shift))
