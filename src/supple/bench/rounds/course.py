"""The rounds of one seed, the same for every arm, and the probe that stays the same.

Shape letters: B windows, T tokens, V vocabulary, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supple.bench.rounds.arms import Length
from supple.bench.rounds.bases import SMALL, Base
from supple.bench.rounds.sources import LANGUAGES, Source
from supple.errors import InputError
from supple.streams import generator


class Course:
    """The texts of one seed, in one order for every arm."""

    def __init__(self, seed: int, length: Length, base: Base = SMALL, source: Source = LANGUAGES) -> None:
        self.seed, self.length, self.base, self.source = seed, length, base, source
        chosen = source.rounds(seed, length.rounds)
        self.names = [name for name, _ in chosen]
        self.texts = [base.tokens(text) for _, text in chosen]
        for name, text in zip(self.names, self.texts, strict=True):
            if len(text) < 2 * base.sizes.context:
                raise InputError(f"a {source.what} has too few tokens", found=len(text), where=name)

    def batch(self, turn: int, key: str, count: int | None = None) -> tuple[Tensor, Tensor]:
        """(B, T) tokens and the tokens that follow them."""
        text, span = self.texts[turn], self.base.sizes.context
        g = generator(self.seed, "batch", turn, key)
        at = torch.randint(len(text) - span - 1, (count or self.base.sizes.batch,), generator=g)
        window = text[at[:, None] + torch.arange(span + 1)]
        return window[:, :-1], window[:, 1:]

    def forward(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """What the loss is taken of: (B, T, V) logits."""
        return model(tokens)

    def probe(self) -> tuple[Tensor, Tensor]:
        """One probe for all rounds, arms and seeds."""
        return fixed_probe(self.base, self.source)

    def judged(self, model: nn.Module, turn: int) -> dict[str, float]:
        """What is told of a round beside its loss."""
        return {}

    def entropy(self, turn: int) -> float:
        """Entropy of the single tokens of the round's text, nats: the loss of who knows their frequencies alone."""
        share = torch.bincount(self.texts[turn]).double() / len(self.texts[turn])
        return float(torch.special.entr(share).sum())


def fixed_probe(base: Base, source: Source = LANGUAGES) -> tuple[Tensor, Tensor]:
    """(B, T) tokens and their followers of texts spread over the source: one probe for all rounds and arms."""
    texts = source.all()
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


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, nats: of (B, T, V) and the tokens that follow, or of (B, K) and classes."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class Identification(Course):
    """Rounds of classification: which of 16 texts is a window of? Each round draws them anew and numbers them.

    The class is read off the logits of the first 16 tokens of the vocabulary after the last token of a
    window, so that no head is added or replaced; the others are left out, so that no model has to learn which
    tokens are classes. Texts come again in later rounds, under other numbers; where there are fewer than
    16 domains, every round is of all of them.
    """

    classes = 16

    def __init__(self, seed: int, length: Length, base: Base = SMALL, source: Source = LANGUAGES) -> None:
        self.seed, self.length, self.base, self.source = seed, length, base, source
        texts = source.all()
        known = list(texts)
        self.classes = source.classes(type(self).classes)
        if len(known) < self.classes:
            raise InputError(
                f"too few {source.what}s to be told apart", found=f"{len(known)} of {self.classes}"
            )
        draws = [
            torch.randperm(len(known), generator=generator(seed, "classes", turn))[: self.classes].tolist()
            for turn in range(length.rounds)
        ]
        self.names = [",".join(known[i] for i in draw) for draw in draws]
        read = {i: base.tokens(texts[known[i]]) for draw in draws for i in draw}
        for i, text in read.items():
            if len(text) < 2 * base.sizes.context:
                raise InputError(f"a {source.what} has too few tokens", found=len(text), where=known[i])
        self._texts = [[read[i] for i in draw] for draw in draws]

    def batch(self, turn: int, key: str, count: int | None = None) -> tuple[Tensor, Tensor]:
        """(B, T) tokens and (B,) numbers of their texts."""
        count, span = count or self.base.sizes.batch, self.base.sizes.context
        g = generator(self.seed, "windows", turn, key)
        classes = torch.randint(self.classes, (count,), generator=g)
        places = torch.rand(count, generator=g)
        texts = [self._texts[turn][c] for c in classes.tolist()]
        starts = [int(p * (len(t) - span)) for p, t in zip(places, texts, strict=True)]
        return torch.stack([t[s : s + span] for t, s in zip(texts, starts, strict=True)]), classes

    def forward(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """(B, K) logits after the last token."""
        return model(tokens)[:, -1, : self.classes]

    def probe(self) -> tuple[Tensor, Tensor]:
        """The windows of every probe, under numbers that run through the classes."""
        tokens = fixed_probe(self.base, self.source)[0]
        return tokens, torch.arange(len(tokens)) % self.classes

    @torch.no_grad()
    def judged(self, model: nn.Module, turn: int) -> dict[str, float]:
        """Share of other windows of the round's texts that are put to the right text."""
        tokens, classes = self.batch(turn, "judged", self.base.sizes.held)
        model.eval()
        right = self.forward(model, tokens).argmax(-1) == classes
        model.train()
        return {"accuracy": float(right.double().mean())}

    def entropy(self, turn: int) -> float:
        """Of the classes, which are equally often: ln K, nats."""
        return math.log(self.classes)
