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
    protocol: Protocol,
    *,
    activation: str = "relu",
    norm: str = "",
    depth: int | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """The network of a protocol as a method wants it; what a network has no form of is refused by name.

    ``depth``: of the hidden layers the first so many, as an MLP of the flat input; 0 is a linear model.
    """
    name = protocol.network
    if norm == "batch" and protocol.batch == 1:
        raise InputError(
            "batch normalisation needs batches of two or more", found="batch 1", where=protocol.name
        )
    if name == "mlp":
        sizes = (protocol.inputs, *protocol.hidden[:depth], protocol.outputs)
        return MLP(sizes, activation, norm=norm or False, dropout=dropout)
    if depth is not None and protocol.metric == "accuracy":
        sizes = (math.prod(protocol.shape), *protocol.hidden[:depth], protocol.outputs)
        return nn.Sequential(nn.Flatten(), MLP(sizes, init="default"))
    if depth is not None or activation != "relu" or norm or dropout:
        wanted = (
            ("one hidden layer" if depth else "a linear form")
            if depth is not None
            else f"{norm} normalisation"
            if norm
            else "dropout"
            if dropout
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
