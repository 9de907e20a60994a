"""The languages of one seed in one order for every arm, and the probe that stays the same.

Shape letters: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from supple.bench.rounds.arms import Length
from supple.bench.rounds.bases import SMALL, Base
from supple.errors import InputError
from supple.streams import generator
from supple.streams.data.languages import languages


class Course:
    """The languages of one seed, in one order for every arm."""

    def __init__(self, seed: int, length: Length, base: Base = SMALL) -> None:
        self.seed, self.length, self.base = seed, length, base
        texts = languages()
        names = list(texts)
        order = torch.randperm(len(names), generator=generator(seed, "languages")).tolist()
        if length.rounds > len(names):
            raise InputError("more rounds than languages", found=f"{length.rounds} of {len(names)}")
        self.names = [names[i] for i in order[: length.rounds]]
        self.texts = [base.tokens(texts[n]) for n in self.names]
        for name, text in zip(self.names, self.texts, strict=True):
            if len(text) < 2 * base.sizes.context:
                raise InputError("a language has too few tokens", found=len(text), where=name)

    def batch(self, turn: int, key: str, count: int | None = None) -> tuple[Tensor, Tensor]:
        """(B, T) tokens and the tokens that follow them."""
        text, span = self.texts[turn], self.base.sizes.context
        g = generator(self.seed, "batch", turn, key)
        at = torch.randint(len(text) - span - 1, (count or self.base.sizes.batch,), generator=g)
        window = text[at[:, None] + torch.arange(span + 1)]
        return window[:, :-1], window[:, 1:]

    def entropy(self, turn: int) -> float:
        """Entropy of the single tokens of the round's text, nats: the loss of who knows their frequencies alone."""
        share = torch.bincount(self.texts[turn]).double() / len(self.texts[turn])
        return float(torch.special.entr(share).sum())


def fixed_probe(base: Base) -> tuple[Tensor, Tensor]:
    """(B, T) tokens and their followers of languages spread over the archive: one probe for all rounds and arms."""
    texts = languages()
    names, sizes = list(texts), base.sizes
    read: dict[str, Tensor] = {}
    windows = []
    for i in range(sizes.probe):
        name = names[i * len(names) // sizes.probe]
        text = read.setdefault(name, base.tokens(texts[name]))
        start = i * 977 % (len(text) - sizes.probe_context - 1)
        windows.append(text[start : start + sizes.probe_context + 1])
    window = torch.stack(windows)
    return window[:, :-1], window[:, 1:]


def loss_fn(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
