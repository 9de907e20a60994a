"""Where the rounds take their texts from: the languages of an archive, or the domains of a folder."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from supple.errors import InputError
from supple.streams import generator
from supple.streams.data.languages import FEWEST_BYTES, languages
from supple.streams.data.texts import texts


class Source(ABC):
    """Texts by name, and which of them a seed's rounds are of, as bytes."""

    what: str  # what one of its texts is
    name: str = ""  # empty: the languages
    fingerprint: str = ""

    @abstractmethod
    def all(self) -> Mapping[str, Tensor]:
        """Every text."""

    @abstractmethod
    def rounds(self, seed: int, count: int) -> list[tuple[str, Tensor]]:
        """(name, text) of each round, in one order for every arm."""

    def classes(self, most: int) -> int:
        """How many of the texts a round tells apart."""
        return most

    def order(self, seed: int) -> list[str]:
        """All names, shuffled by the seed."""
        names = list(self.all())
        return [names[i] for i in torch.randperm(len(names), generator=generator(seed, "languages")).tolist()]


class Languages(Source):
    """Every language once."""

    what = "language"

    def all(self) -> Mapping[str, Tensor]:
        return languages()

    def rounds(self, seed: int, count: int) -> list[tuple[str, Tensor]]:
        order = self.order(seed)
        if count > len(order):
            raise InputError("more rounds than languages", found=f"{count} of {len(order)}")
        return [(name, self.all()[name]) for name in order[:count]]


class Folder(Source):
    """The domains of a folder; with more rounds than domains each is cut into equal pieces.

    All domains come once in the seed's order, each with its first piece, then again with the second, and so on: no
    text is seen in two rounds.
    """

    what = "domain"

    def __init__(self, folder: Path) -> None:
        self._texts = texts(folder)
        self.name = folder.resolve().name
        content = hashlib.sha256()
        for name, text in self._texts.items():
            content.update(f"{name}:{len(text)}:".encode())
            content.update(text.to(torch.uint8).numpy().tobytes())
        self.fingerprint = content.hexdigest()[:16]

    def all(self) -> Mapping[str, Tensor]:
        return self._texts

    def classes(self, most: int) -> int:
        return min(most, len(self._texts))

    def rounds(self, seed: int, count: int) -> list[tuple[str, Tensor]]:
        order = self.order(seed)
        pieces = -(-count // len(order))
        found = []
        for turn in range(count):
            name, piece = order[turn % len(order)], turn // len(order)
            size = len(self._texts[name]) // pieces
            if size < FEWEST_BYTES:
                raise InputError(
                    "a domain is too short to be cut for so many rounds",
                    found=f"{pieces} pieces of {size} bytes", where=name,
                    do=f"take at most {len(order) * (len(self._texts[name]) // FEWEST_BYTES)} rounds, or more text",
                )  # fmt: skip
            label = name if pieces == 1 else f"{name} {piece + 1}/{pieces}"
            found.append((label, self._texts[name][piece * size : (piece + 1) * size]))
        return found


LANGUAGES = Languages()
