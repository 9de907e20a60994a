"""Illness by construction, and the surgical repair of each; both work on any network of the lab.

A *gate* is the module whose bias decides when a unit fires: the norm before the activation where there is
one, else the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from supple.bench.lab.networks import Encoder
from supple.models.gpt import FeedForward
from supple.models.resnet import BasicBlock

Pair = tuple[nn.Module, nn.Module]  # layer, gate


def gates(net: nn.Module) -> list[Pair]:
    """Hidden layers in order with their gates; in a residual block the units inside the branch only."""
    if isinstance(net, Encoder):  # attention has no gates
        hidden = [block.up for block in net.mlp if isinstance(block, FeedForward)]
        return [(net.embed, net.embed), *((up, up) for up in hidden)]
    found: list[Pair] = []
    inside: set[nn.Module] = set()
    for module in net.modules():
        if isinstance(module, BasicBlock):
            inside |= set(module.modules()) - {module}
            found.append(_pair(module.conv1, module.norm1))
        elif module not in inside and isinstance(module, nn.Linear | nn.Conv2d):
            found.append((module, module))
        elif module not in inside and isinstance(module, nn.LayerNorm | nn.BatchNorm2d) and found:
            found[-1] = (found[-1][0], module)
    return found[:-1]  # the head has no units


def _pair(layer: nn.Module, norm: nn.Module) -> Pair:
    return layer, layer if isinstance(norm, nn.Identity) else norm


def weight(layer: nn.Module) -> Tensor:
    found = layer.weight
    assert isinstance(found, Tensor)
    return found


def bias(gate: nn.Module) -> Tensor:
    found = gate.bias
    assert isinstance(found, Tensor)
    return found


@torch.no_grad()
def hurt_(net: nn.Module, ill: str, severity: float) -> None:
    """Make the network ill in place: ``dead`` share of units, ``rank`` decay, ``common`` bias, ``ordered`` gain,
    ``grown`` and ``saturated`` factor, ``cloned`` share of units."""
    pairs = gates(net)
    if ill == "common":
        bias(pairs[0][1]).add_(severity * _signs(pairs[0][1], alternate=isinstance(net, Encoder)))
        return
    for index, (layer, gate) in enumerate(pairs):
        w = weight(layer)
        count = int(len(w) * severity) if severity < 1 else 0
        if ill == "dead":
            bias(gate)[:count] = -50.0
        elif ill == "rank" and index:
            _spectrum_(w, lambda s: (1 - severity) ** torch.arange(len(s), dtype=s.dtype))
        elif ill in ("grown", "saturated"):
            w.mul_(severity)
        elif ill == "ordered":  # depth forgets: every layer brings two inputs closer together
            w.mul_(
                severity * 3**-0.5
            )  # He's law has gain sqrt(2) for ReLU, that is sqrt(3) too much in a uniform law
            _spread_(bias(gate), w)
        elif ill == "cloned":
            w[1 : count + 1] = w[:1]
            bias(gate)[1 : count + 1] = bias(gate)[:1]


def _signs(gate: nn.Module, alternate: bool) -> Tensor:
    """+1 everywhere, or in turn +1 and -1: a norm behind the layer takes a common shift away."""
    ones = torch.ones_like(bias(gate))
    if alternate:
        ones[1::2] = -1
    return ones


def _spread_(b: Tensor, w: Tensor) -> None:
    """Biases of standard deviation one half, drawn from a key that the weights give."""
    g = torch.Generator().manual_seed(int(w.flatten()[0].item() * 1e6) & 0x7FFFFFFF)
    b.copy_(0.5 * torch.randn(b.shape, generator=g))


def _spectrum_(w: Tensor, shape: Callable[[Tensor], Tensor]) -> None:
    """Give a matrix another spectrum: singular vectors and Frobenius norm are kept."""
    u, s, v = torch.linalg.svd(w.flatten(1).to(_wide(w)), full_matrices=False)
    new = shape(s)
    w.copy_((u * (new * s.norm() / new.norm()) @ v).reshape(w.shape))


def _wide(w: Tensor) -> torch.dtype:
    """The precision of decompositions: there is none in bfloat16."""
    return torch.promote_types(w.dtype, torch.float32)


def signals(net: nn.Module, gate: nn.Module, x: Tensor) -> Tensor:
    """(units, everything else) what the gate puts out."""
    out: list[Tensor] = []
    handle = gate.register_forward_hook(lambda _m, _i, o: out.append(o.detach()))
    mode = net.training
    try:
        with torch.no_grad():
            net.eval()(x)
    finally:
        handle.remove()
        net.train(mode)
    channels = 1 if out[0].dim() != 3 else 2  # tokens come before channels
    return out[0].movedim(channels, 0).flatten(1)


@torch.no_grad()
def repair_(net: nn.Module, ill: str, healthy: nn.Module, x: Tensor) -> None:
    """The surgical repair of one illness in place, told by what the units do and not by who was hurt.

    dead: units that never fire get the row of a fresh network; rank: all singular values equal; common: every
    living unit's mean becomes zero, layer after layer; ordered: that, and the size of a fresh network's weights;
    grown, saturated: sigma_1 back to the fresh network's; cloned: copies of an earlier unit get fresh rows.
    """
    for index, ((layer, gate), (other, other_gate)) in enumerate(
        zip(gates(net), gates(healthy), strict=True)
    ):
        w, fresh = weight(layer), weight(other)
        if ill == "rank" and index:
            _spectrum_(w, torch.ones_like)
        elif ill in ("common", "ordered"):
            seen = signals(net, gate, x)
            living = seen.amax(1) > (-torch.inf if _never_silent(net) else 0)
            bias(gate).sub_(seen.mean(1) * living)
            if ill == "ordered":
                w.mul_(fresh.norm() / w.norm())
        elif ill in ("grown", "saturated"):
            norms = [torch.linalg.matrix_norm(m.flatten(1).to(_wide(m)), 2) for m in (w, fresh)]
            w.mul_((norms[1] / norms[0]).clamp(max=1.0))
        elif ill in ("dead", "cloned"):
            ids = signals(net, gate, x).amax(1) <= 0 if ill == "dead" else _copies(w)
            w[ids] = fresh[ids]
            bias(gate)[ids] = bias(other_gate)[ids]


def _never_silent(net: nn.Module) -> bool:
    """Whether a unit that is negative on every input still acts: a leaky unit, tanh, GELU."""
    return isinstance(net, Encoder) or any(isinstance(m, nn.LeakyReLU | nn.Tanh) for m in net.modules())


def _copies(w: Tensor) -> Tensor:
    """Which units point the same way (cosine above 0.95) as an earlier one."""
    rows = nn.functional.normalize(w.flatten(1), dim=1)
    return ((rows @ rows.T).tril(-1) > 0.95).any(1)
