"""The model that the rounds begin with: a small GPT of bytes, or one from a folder (see `pretrained`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from supple.bench.networks import keyed
from supple.models import GPT

RATE, BATCH, CONTEXT, DIM, DEPTH, HEADS = 3e-3, 16, 64, 64, 2, 4


@dataclass(frozen=True)
class Sizes:
    """Windows of a batch, of the held-out look at the first language, of the probe and of its kernel; tokens."""

    batch: int = BATCH
    context: int = CONTEXT
    held: int = 64
    probe: int = 32
    probe_context: int = CONTEXT
    kernel: int = 32
    kernel_context: int = CONTEXT // 2


class Base(ABC):
    """What the rounds ask of a model: to be made, to read texts, and its settings."""

    name: str = ""  # empty: the small GPT
    fingerprint: str = ""
    sizes: Sizes = Sizes()
    rates: Mapping[str, float]  # of "" (all weights), "svf" and "lora"
    adapt_from: int  # the first round in which an adapter is put on
    attentions: Sequence[str]

    @abstractmethod
    def make(self, seed: int, turn: int, attention: str) -> nn.Module:
        """A model (B, T) -> logits (B, T, V): the first one, or that of a fresh arm's round ``turn``."""

    @abstractmethod
    def tokens(self, text: Tensor) -> Tensor:
        """The bytes of a text as the model's tokens."""

    @abstractmethod
    def adapts(self, module: nn.Module, name: str) -> bool:
        """Whether an adapter takes this layer."""


class Small(Base):
    """The byte-level GPT; an adapter is put on after round 0, which is its pre-training."""

    #: singular-value vectors are few and start at 1; no rate was tuned
    rates: Mapping[str, float] = {"": RATE, "svf": 3e-2, "lora": RATE}
    adapt_from = 1
    attentions = ("softmax", "forgetting")

    def make(self, seed: int, turn: int, attention: str) -> nn.Module:
        def build() -> GPT:
            return GPT(256, dim=DIM, depth=DEPTH, heads=HEADS, context=CONTEXT, attention=attention)

        return keyed(build, seed, "gpt", turn)

    def tokens(self, text: Tensor) -> Tensor:
        return text

    def adapts(self, module: nn.Module, name: str) -> bool:
        return name.rpartition(".")[2] in ("qkv", "out", "up", "down")


SMALL = Small()
