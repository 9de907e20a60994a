"""The protocols, one file a family: frozen dataclasses in which every value names its source."""

from __future__ import annotations

from typing import Any

from supple.bench.protocols.agents import AgentProtocol
from supple.bench.protocols.base import Protocol
from supple.bench.protocols.bit_flip import SlowRegression
from supple.bench.protocols.class_incremental import ClassIncremental, FivePlusOne
from supple.bench.protocols.class_sequence import ClassSequence, ClassSequenceResNet
from supple.bench.protocols.continual_imagenet import (
    ContinualCifar100,
    ContinualImageNet,
    ContinualTinyImageNet,
)
from supple.bench.protocols.control import (
    AcrobotOffsets,
    CartPoleOffsets,
    Control,
    LunarLanderOffsets,
    MountainCarOffsets,
)
from supple.bench.protocols.digits_permuted import DigitsPermuted
from supple.bench.protocols.digits_random_labels import DigitsRandomLabels
from supple.bench.protocols.image_domains import ImageDomains
from supple.bench.protocols.labels import AbruptShift, GradualShift, LabelFlipping, NoisyLabels
from supple.bench.protocols.minatar import MinatarChain
from supple.bench.protocols.permuted_images import (
    PermutedCifar10,
    PermutedCifar100,
    PermutedMnist,
    PermutedTinyImageNet,
)
from supple.bench.protocols.random_labels import (
    RandomLabelCifar10,
    RandomLabelCifar100,
    RandomLabelMnist,
    RandomLabelTinyImageNet,
)
from supple.errors import InputError

_ALL: tuple[type[Protocol], ...] = (
    DigitsPermuted,
    DigitsRandomLabels,
    ClassSequence,
    ClassSequenceResNet,
    ImageDomains,
    PermutedMnist,
    PermutedCifar10,
    PermutedCifar100,
    PermutedTinyImageNet,
    RandomLabelMnist,
    RandomLabelCifar10,
    RandomLabelCifar100,
    RandomLabelTinyImageNet,
    ContinualImageNet,
    ContinualTinyImageNet,
    ContinualCifar100,
    ClassIncremental,
    FivePlusOne,
    LabelFlipping,
    NoisyLabels,
    GradualShift,
    AbruptShift,
    SlowRegression,
    CartPoleOffsets,
    AcrobotOffsets,
    MountainCarOffsets,
    LunarLanderOffsets,
    MinatarChain,
)
PROTOCOLS: dict[str, type[Protocol]] = {p.name: p for p in _ALL}


def create(name: str, preset: str = "demo", **overrides: Any) -> Protocol:
    """A protocol by name and preset; an unknown name lists the known ones.

    >>> create("digits-permuted", tasks=3).tasks
    3
    """
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}", do=f"choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name].preset(preset, **overrides)


def is_control(label: str) -> bool:
    """Whether runs under this label are the i.i.d. control of a protocol.

    >>> is_control("digits-permuted-iid"), is_control("digits-permuted-hidden-boundaries")
    (True, False)
    """
    return any(label == f"{name}-iid" or label.startswith(f"{name}-iid-") for name in PROTOCOLS)


__all__ = [
    "PROTOCOLS",
    "AgentProtocol",
    "ClassSequence",
    "ClassSequenceResNet",
    "Control",
    "DigitsPermuted",
    "DigitsRandomLabels",
    "ImageDomains",
    "MinatarChain",
    "Protocol",
    "create",
    "is_control",
]
