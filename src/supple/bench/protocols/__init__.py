"""The protocols, one file each: a frozen dataclass in which every value names its source."""

from __future__ import annotations

from typing import Any

from supple.bench.protocols.base import Protocol
from supple.bench.protocols.class_sequence import ClassSequence, ClassSequenceResNet
from supple.bench.protocols.digits_permuted import DigitsPermuted
from supple.bench.protocols.digits_random_labels import DigitsRandomLabels
from supple.bench.protocols.image_domains import ImageDomains
from supple.errors import InputError

PROTOCOLS: dict[str, type[Protocol]] = {
    p.name: p for p in (DigitsPermuted, DigitsRandomLabels, ClassSequence, ClassSequenceResNet, ImageDomains)
}


def create(name: str, preset: str = "demo", **overrides: Any) -> Protocol:
    """A protocol by name and preset; an unknown name lists the known ones.

    >>> create("digits-permuted", tasks=3).tasks
    3
    """
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}", do=f"choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name].preset(preset, **overrides)


__all__ = [
    "PROTOCOLS",
    "ClassSequence",
    "ClassSequenceResNet",
    "DigitsPermuted",
    "DigitsRandomLabels",
    "ImageDomains",
    "Protocol",
    "create",
]
