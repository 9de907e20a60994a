"""The networks of the protocols, by name, and how they are initialised: by key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from supple.errors import InputError
from supple.models import MLP, ConvNet, UNet, resnet8, resnet18
from supple.streams import generator

if TYPE_CHECKING:
    from supple.bench.protocols import Protocol

#: name -> network of a protocol (shape of an image, outputs); "mlp" is built by `build` itself
IMAGE_NETWORKS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "convnet": lambda shape, outputs: ConvNet(shape[0], shape[-1], outputs),
    "resnet8": lambda shape, outputs: resnet8(outputs, channels=shape[0]),
    "resnet18": lambda shape, outputs: resnet18(outputs, channels=shape[0]),
    "unet": lambda shape, outputs: UNet(shape[0], widths=(16, 32), level=16),
}
NETWORKS = ("mlp", *IMAGE_NETWORKS)


def build(
    protocol: Protocol, *, activation: str = "relu", norm: bool = False, hidden: bool = True
) -> nn.Module:
    """The network of a protocol as a method wants it; what a network has no form of is refused by name.

    ``hidden=False``: a linear model of the flat input instead.
    """
    name = protocol.network
    if name == "mlp":
        widths = protocol.hidden if hidden else ()
        return MLP((protocol.inputs, *widths, protocol.outputs), activation, norm=norm)
    if not hidden and protocol.metric == "accuracy":
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(protocol.shape), protocol.outputs))
    if not hidden or activation != "relu" or norm:
        wanted = (
            "a linear form"
            if not hidden
            else "layer normalisation"
            if norm
            else f"the activation {activation}"
        )
        raise InputError(
            f"the network {name!r} of {protocol.name} has no form with {wanted}",
            do="leave this method out, or take a protocol with an MLP",
        )
    return IMAGE_NETWORKS[name](protocol.shape, protocol.outputs)


def keyed(build: Callable[[], nn.Module], seed: int, *key: str | int) -> nn.Module:
    """Build a network from a key: the global random state neither matters nor moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, *key).initial_seed())
        return build()
