"""Small networks of many kinds, each with a batch and a loss: (build, batch, loss_fn)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from supple.models import GPT, ResNet, UNet


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.c0, self.c1, self.c2 = (nn.Conv2d(i, 6, 3, padding=1) for i in (1, 6, 6))
        self.b, self.r, self.d = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.2)
        self.f = nn.Linear(6, 3)

    def forward(self, x):
        x = self.r(self.c0(x))
        h = self.c2(self.r(self.b(self.c1(x))))
        h += x
        return self.f(self.d(self.r(h).mean((2, 3))))


class Tokens(nn.Module):
    """A pre-norm block: embedding, fused q, k, v, gated MLP."""

    def __init__(self):
        super().__init__()
        self.e, self.n = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.qkv, self.o = nn.Linear(8, 24), nn.Linear(8, 8)
        self.g, self.u, self.p = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 11)

    def forward(self, ids):
        x = self.e(ids)
        b, t, c = x.shape
        q, k, v = (z.view(b, t, 2, c // 2).transpose(1, 2) for z in self.qkv(self.n(x)).split(c, -1))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))
        x = x + self.p(F.silu(self.g(self.n(x))) * self.u(self.n(x)))
        return self.head(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.f = nn.LSTM(5, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x):
        return self.f(self.rnn(x)[0][:, -1])


class Named(nn.Module):
    """A mapping in, a mapping out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, scale):
        return {"aux": x.sum(), "logits": self.b(torch.tanh(self.a(x * scale)))}


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.i, self.a, self.f = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.i(x))
        return self.f(F.relu(self.a(F.relu(self.a(h)))))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.i, self.f, self.reentrant = nn.Linear(5, 8), nn.Linear(8, 3), reentrant
        self.mid = nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.3))

    def forward(self, x):
        return self.f(checkpoint(self.mid, self.i(x), use_reentrant=self.reentrant))


class ActorCritic(nn.Module):
    """A policy and a value on a trunk of their own each."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.critic = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return {"logits": self.actor(x), "value": self.critic(x)}


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, one pre-norm block with fused q, k, v."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, stride=2)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.n1, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.n2, self.fc, self.out = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.nf, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, 8), x], 1) + self.place
        b, t, c = x.shape
        q, k, v = (z.view(b, t, 2, c // 2).transpose(1, 2) for z in self.qkv(self.n1(x)).chunk(3, -1))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))
        x = x + self.out(F.gelu(self.fc(self.n2(x))))
        return self.head(self.nf(x)[:, 0])


class Attending(nn.Module):
    """nn.MultiheadAttention between two layers."""

    def __init__(self):
        super().__init__()
        self.inp, self.mha = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.f = nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.inp(x))
        return self.f(self.mha(h, h, h, need_weights=False)[0].mean(1))


class HalfPrecision(nn.Module):
    """Runs under bf16 autocast, whoever calls it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 3)
        )

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


def convnet():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3),
        nn.ELU(), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def narrow_resnet18():
    return ResNet((4, 5, 6, 7), (2, 2, 2, 2), 3, channels=1)


def gpt():
    return GPT(11, dim=8, depth=1, heads=2, context=4, hidden=12, gated=True)


def denoiser():
    return UNet(1, widths=(8, 8), level=4)


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def grouped():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, groups=2), nn.GELU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3))


def frozen():
    net = mlp()
    net[0].requires_grad_(False)
    return net


def normed():
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(5, 8)), nn.BatchNorm1d(8), nn.Tanh(),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def token_loss(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def named_loss(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets)


def actor_critic_loss(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets) + outputs["value"].square().mean()


def noise_loss(outputs, targets):
    return F.mse_loss(outputs, targets)


def _rows(*shape):
    return torch.randn(32, *shape, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(32) % 3
IDS = torch.randint(11, (32, 4), generator=torch.Generator().manual_seed(2))

CASES = {
    "mlp": (mlp, (_rows(5), LABELS), F.cross_entropy),
    "residual": (Residual, (_rows(1, 5, 5), LABELS), F.cross_entropy),
    "tokens": (Tokens, (IDS, IDS.roll(1, 1)), token_loss),
    "recurrent": (Recurrent, (_rows(4, 5), LABELS), F.cross_entropy),
    "mapping": (Named, ({"x": _rows(5), "scale": torch.tensor(2.0)}, LABELS), named_loss),
    "shared": (Shared, (_rows(5), LABELS), F.cross_entropy),
    "reentrant": (lambda: Checkpointed(True), (_rows(5), LABELS), F.cross_entropy),
    "checkpointed": (lambda: Checkpointed(False), (_rows(5), LABELS), F.cross_entropy),
    "grouped": (grouped, (_rows(2, 6, 6), LABELS), F.cross_entropy),
    "encoder": (encoder, (_rows(3, 8), LABELS), F.cross_entropy),
    "frozen": (frozen, (_rows(5), LABELS), F.cross_entropy),
    "parametrised": (normed, (_rows(5), LABELS), F.cross_entropy),
    "convnet": (convnet, (_rows(2, 6, 6), LABELS), F.cross_entropy),
    "resnet18": (narrow_resnet18, (_rows(1, 8, 8), LABELS), F.cross_entropy),
    "gpt": (gpt, (IDS, IDS.roll(1, 1)), token_loss),
    "vit": (VisionTransformer, (_rows(1, 4, 4), LABELS), F.cross_entropy),
    "unet": (denoiser, ((_rows(1, 4, 4), LABELS / 3), _rows(1, 4, 4)), noise_loss),
    "attention": (Attending, (_rows(3, 8), LABELS), F.cross_entropy),
    "actor_critic": (ActorCritic, (_rows(5), LABELS), actor_critic_loss),
    "half": (HalfPrecision, (_rows(5), LABELS), F.cross_entropy),
    "compiled": (lambda: torch.compile(mlp(), backend="eager"), (_rows(5), LABELS), F.cross_entropy),
}

#: architectures that people train, in small
MODELS = ("convnet", "resnet18", "gpt", "vit", "unet", "attention", "actor_critic", "half")


def build(name):
    """(model, batch, loss_fn), the same weights at every call."""
    make, batch, loss_fn = CASES[name]
    torch.manual_seed(0)
    return make(), batch, loss_fn
