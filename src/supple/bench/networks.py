"""The networks of the protocols, by name, and how they are initialised: by key."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from supple.agents import ActorCritic, q_network
from supple.errors import InputError
from supple.models import MLP, ConvNet, UNet, resnet8, resnet18
from supple.streams import generator

if TYPE_CHECKING:
    from supple.bench.protocols import Protocol

#: name -> network of a protocol (shape of an image, outputs, what a method asks for); "mlp" is built by `build` itself
IMAGE_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": lambda shape, outputs: resnet8(outputs, channels=shape[0]),
    "resnet18": lambda shape, outputs: resnet18(outputs, channels=shape[0]),
    "unet": lambda shape, outputs: UNet(shape[0], widths=(16, 32), level=16),
}
NETWORKS = ("mlp", "actor_critic", "q_network", "convnet", *IMAGE_NETWORKS)
#: channels of the ConvNet where a protocol names none: those of Continual ImageNet
WIDTHS = (32, 64, 128)
#: hidden units of a linear layer where a protocol names no width: those of the ConvNet of Continual ImageNet
SHALLOW = (128,)


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
    if name == "actor_critic":
        own = protocol.activation if activation == "relu" else activation
        form = {"norm": norm or False, "dropout": dropout}
        return ActorCritic(protocol.inputs, protocol.outputs, protocol.hidden[:depth], own, **form)
    if name == "q_network" and depth is None and norm in ("", "layer") and not dropout:
        return _values(protocol, activation, norm)
    if depth is not None and protocol.metric == "accuracy":
        hidden = protocol.hidden or SHALLOW  # a network may have widths of its own
        sizes = (math.prod(protocol.shape), *hidden[:depth], protocol.outputs)
        return nn.Sequential(nn.Flatten(), MLP(sizes, init="default"))
    form = {"activation": activation, "norm": norm or False, "dropout": dropout}
    if depth is None and name == "convnet":
        sizes = {"hidden": protocol.hidden or SHALLOW * 2, "widths": getattr(protocol, "widths", WIDTHS)}
        made = ConvNet(protocol.shape[0], protocol.shape[-1], protocol.outputs, **form, **sizes)
        # the same values, a third faster on a CPU
        return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if norm == "batch" and name.startswith("resnet"):
        raise InputError(
            f"the network {name!r} of {protocol.name} is batch-normalised in every method",
            do="leave this method out; the plain network is this reference",
        )
    if depth is not None or activation != "relu" or norm or dropout:
        raise InputError(
            f"the network {name!r} of {protocol.name} has no form with {_asked(activation, norm, depth, dropout)}",
            do="leave this method out, or take a protocol with an MLP or a ConvNet",
        )
    return IMAGE_NETWORKS[name](protocol.shape, protocol.outputs)


def _values(protocol: Any, activation: str, norm: str) -> nn.Module:
    """The network of an agent that learns values, as its protocol's settings describe it."""
    config = dataclasses.replace(protocol.settings_of_agent(), activation=activation)
    return q_network(protocol.shape, protocol.outputs, config, norm or False)


def _asked(activation: str, norm: str, depth: int | None, dropout: float) -> str:
    """What a method wants of a network, in words."""
    if depth is not None:
        return "one hidden layer" if depth else "a linear form"
    if norm:
        return f"{norm} normalisation"
    return "dropout" if dropout else f"the activation {activation}"


def keyed(build: Callable[[], nn.Module], seed: int, *key: str | int) -> nn.Module:
    """Build a network from a key: the global random state neither matters nor moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, *key).initial_seed())
        return build()
