"""The one list of models that instruments, interventions and the trace are tested on.

Every labelled case says by hand which column of which weight reads which unit, which norms belong to a
layer, its activation, and what must be refused. The labels were written from the models' text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from tests import zoo_models as m
from torch import Tensor, nn

Pairs = set[tuple[int, int]]  # (unit, column)


@dataclass(frozen=True)
class Case:
    """A model, how to feed it, a loss, and what a trace of it must say."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    loss: Callable[[Any], Tensor] = lambda out: out.square().mean()
    edges: Mapping[tuple[str, str], Pairs] = field(default_factory=dict)
    shared: frozenset[tuple[str, str]] = frozenset()  # edges whose columns read more than one unit
    activation: Mapping[str, str | None] = field(default_factory=dict)
    norms: Mapping[str, tuple[tuple[str, bool, int], ...]] = field(
        default_factory=dict
    )  # (module, before?, entry of unit 0)
    outputs: frozenset[str] = frozenset()
    streams: tuple[frozenset[str], ...] = ()
    partners: Mapping[str, str] = field(default_factory=dict)  # gate and query-key partners
    resettable: frozenset[str] | None = None
    refused: tuple[str, ...] = ()  # words of the refusals that must be there
    attention: bool = False  # perturbation is no oracle here

    def make(self, seed: int = 0) -> nn.Module:
        """The model with fixed weights, in eval mode."""
        torch.manual_seed(seed)
        return self.build().eval()

    def batch(self) -> Any:
        torch.manual_seed(1)
        return self.inputs()


def one(n: int, shift: int = 0, start: int = 0) -> Pairs:
    """Unit start + i is read by column start + i + shift."""
    return {(i, i + shift) for i in range(start, start + n)}


def blocks(n: int, size: int, shift: int = 0) -> Pairs:
    """Flattening channels first: unit i is read by ``size`` consecutive columns."""
    return {(i, shift + i * size + j) for i in range(n) for j in range(size)}


def strided(n: int, times: int) -> Pairs:
    """Flattening channels last: unit i is read by columns i, i + n, i + 2n, …"""
    return {(i, i + n * j) for i in range(n) for j in range(times)}


def images(channels: int, size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(3, channels, size, size)


def rows(width: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(3, width)


def tokens(vocabulary: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(vocabulary, (2, 5))


def _conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


CASES: tuple[Case, ...] = (
    Case(
        "mlp",
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)),
        rows(4),
        edges={("0", "2"): one(5), ("2", "4"): one(6)},
        activation={"0": "relu", "2": "tanh", "4": None},
        outputs=frozenset({"4"}),
        resettable=frozenset({"0", "2"}),
    ),
    Case(
        "functional",
        m.FunctionalMLP,
        rows(5),
        edges={("a", "b"): one(6), ("b", "c"): one(4)},
        activation={"a": "tanh", "b": "relu", "c": None},
        outputs=frozenset({"c"}),
        resettable=frozenset({"a", "b"}),
    ),
    Case(
        "slice_writes",
        m.SliceWrites,
        rows(4),
        edges={("a", "c"): one(3, 2), ("b", "c"): one(2)},
        activation={"a": "relu", "b": "relu"},
        outputs=frozenset({"c"}),
        resettable=frozenset({"a", "b"}),
    ),
    Case(
        "conv_bn_pool_flatten",
        _conv_net,
        images(2, 8),
        edges={("0", "4"): one(3), ("4", "7"): blocks(4, 4)},
        activation={"0": "relu", "4": "elu"},
        norms={"0": (("1", True, 0),), "4": ()},
        outputs=frozenset({"7"}),
        resettable=frozenset({"0", "4"}),
    ),
    Case(
        "channels_last_flatten",
        m.NHWC,
        images(2, 4),
        edges={("conv", "fc"): strided(3, 4)},
        activation={"conv": "gelu"},
        outputs=frozenset({"fc"}),
        resettable=frozenset({"conv"}),
    ),
    Case(
        "resnet_post",
        m.PostResNet,
        images(3, 6),
        edges={
            ("stem", "conv1"): one(4),
            ("conv1", "conv2"): one(4),
            ("stem", "conv3"): one(4),
            ("conv2", "conv3"): one(4),
            ("stem", "down"): one(4),
            ("conv2", "down"): one(4),
            ("conv3", "conv4"): one(6),
            ("conv4", "head"): one(6),
            ("down", "head"): one(6),
        },
        shared=frozenset(
            {
                ("stem", "conv3"),
                ("conv2", "conv3"),
                ("stem", "down"),
                ("conv2", "down"),
                ("conv4", "head"),
                ("down", "head"),
            }
        ),
        activation={"stem": "relu", "conv1": "relu", "conv2": "relu", "conv3": "relu", "down": "relu"},
        norms={
            "stem": (("bn0", True, 0),),
            "conv1": (("bn1", True, 0),),
            "conv4": (("bn4", True, 0),),
            "down": (),
        },
        outputs=frozenset({"head"}),
        streams=(frozenset({"stem", "conv2"}), frozenset({"conv4", "down"})),
        resettable=frozenset({"conv1", "conv3"}),
    ),
    Case(
        "resnet_pre",
        m.PreResNet,
        images(3, 6),
        edges={
            ("stem", "conv1"): one(4),
            ("conv1", "conv2"): one(5),
            ("stem", "head"): one(4),
            ("conv2", "head"): one(4),
        },
        shared=frozenset({("stem", "head"), ("conv2", "head")}),
        activation={"stem": "relu", "conv1": "relu", "conv2": "relu"},
        norms={
            "stem": (("bn1", True, 0), ("bn3", True, 0)),
            "conv1": (("bn2", True, 0),),
            "conv2": (("bn3", True, 0),),
        },
        outputs=frozenset({"head"}),
        streams=(frozenset({"stem", "conv2"}),),
        resettable=frozenset({"conv1"}),
    ),
    Case(
        "densenet",
        m.DenseNet,
        images(2, 5),
        edges={
            ("stem", "conv1"): one(3),
            ("stem", "conv2"): one(3),
            ("conv1", "conv2"): one(2, 3),
            ("stem", "head"): one(3),
            ("conv1", "head"): one(2, 3),
            ("conv2", "head"): one(2, 5),
        },
        activation={"stem": "relu", "conv1": "relu", "conv2": "relu"},
        norms={"stem": (("bn1", True, 0), ("bn2", True, 0)), "conv1": (("bn2", True, 3),), "conv2": ()},
        outputs=frozenset({"head"}),
        resettable=frozenset({"stem", "conv1", "conv2"}),
    ),
    Case(
        "grouped_depthwise_shuffle",
        m.Grouped,
        images(3, 7),
        edges={
            ("a", "g"): {(0, 0), (1, 1), (2, 0), (3, 1)},
            # after the shuffle channel 2i + g is unit 3g + i; depthwise weights have one column
            ("g", "d"): {(i, 0) for i in range(6)},
            ("d", "p"): one(6),
        },
        activation={"a": "relu", "g": "relu", "d": "relu6"},
        outputs=frozenset({"p"}),
        resettable=frozenset({"a", "g", "d"}),
    ),
    Case(
        "unet",
        m.TinyUNet,
        images(2, 6),
        loss=lambda out: out["image"].square().mean(),
        edges={
            ("down", "mid"): one(3),
            ("mid", "up"): one(4),
            ("up", "out"): one(2),
            ("down", "out"): one(3, 2),
        },
        activation={"down": "silu", "mid": "silu", "up": "silu"},
        outputs=frozenset({"out"}),
        resettable=frozenset({"down", "mid", "up"}),
    ),
    Case(
        "gpt",
        m.TinyGPT,
        tokens(7),
        edges={
            **{(w, f"qkv#{p}"): one(4) for w in ("wte", "wpe") for p in "qkv"},
            ("qkv#v", "proj"): one(4),
            **{(w, "fc"): one(4) for w in ("wte", "wpe", "proj")},
            ("fc", "out"): one(8),
            **{(w, "head"): one(4) for w in ("wte", "wpe", "proj", "out")},
        },
        shared=frozenset(
            {(w, f"qkv#{p}") for w in ("wte", "wpe") for p in "qkv"}
            | {(w, "fc") for w in ("wte", "wpe", "proj")}
            | {(w, "head") for w in ("wte", "wpe", "proj", "out")}
        ),
        activation={"fc": "gelu", "proj": None, "qkv#v": None, "qkv#q": None},
        norms={
            "fc": (),
            "wte": (("ln1", True, 0), ("ln2", True, 0), ("lnf", True, 0)),
            "out": (("lnf", True, 0),),
        },
        outputs=frozenset({"head"}),
        streams=(frozenset({"wte", "wpe", "proj", "out"}),),
        partners={"qkv#q": "qkv#k", "qkv#k": "qkv#q"},
        resettable=frozenset({"qkv#v", "fc"}),
        attention=True,
    ),
    Case(
        "llama",
        m.Llama,
        tokens(9),
        edges={
            **{("embed", w): one(8) for w in "qkv"},
            # value head h serves query heads 2h and 2h + 1, that is columns 4h … 4h + 3
            ("v", "o"): {(2 * h + d, 4 * h + 2 * r + d) for h in (0, 1) for r in (0, 1) for d in (0, 1)},
            **{(s, w): one(8) for s in ("embed", "o") for w in ("gate", "up")},
            ("gate", "down"): one(6),
            ("up", "down"): one(6),
            **{(s, "head"): one(8) for s in ("embed", "o", "down")},
        },
        shared=frozenset(
            {(s, w) for s in ("embed", "o") for w in ("gate", "up")}
            | {(s, "head") for s in ("embed", "o", "down")}
        ),
        activation={"gate": "silu", "up": None, "v": None, "down": None},
        norms={
            "embed": (("n1", True, 0), ("n2", True, 0), ("nf", True, 0)),
            "down": (("nf", True, 0),),
            "gate": (),
        },
        outputs=frozenset({"head"}),
        streams=(frozenset({"embed", "o", "down"}),),
        partners={"gate": "up", "up": "gate", "q": "k", "k": "q"},
        resettable=frozenset({"v", "gate", "up"}),
        attention=True,
    ),
    *(
        Case(
            f"multihead_attention_{name}",
            lambda need=need: m.Attention(need),
            lambda: torch.randn(2, 5, 3),
            edges={
                **{("inp", f"mha#{p}"): one(4) for p in "qkv"},
                ("mha#v", "mha.out_proj"): one(4),
                ("mha.out_proj", "head"): one(4),
            },
            outputs=frozenset({"head"}),
            partners={"mha#q": "mha#k", "mha#k": "mha#q"},
            resettable=frozenset({"inp", "mha#v", "mha.out_proj"}),
            attention=True,
        )
        for name, need in (("unfused", True), ("fused", False))
    ),
    Case(
        "transformer_encoder_layer",
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Linear(4, 2)
        ),
        lambda: torch.randn(2, 5, 3),
        edges={
            **{("0", f"1.self_attn#{p}"): one(4) for p in "qkv"},
            ("1.self_attn#v", "1.self_attn.out_proj"): one(4),
            **{(s, "1.linear1"): one(4) for s in ("0", "1.self_attn.out_proj")},
            ("1.linear1", "1.linear2"): one(6),
            **{(s, "2"): one(4) for s in ("0", "1.self_attn.out_proj", "1.linear2")},
        },
        shared=frozenset(
            {(s, "1.linear1") for s in ("0", "1.self_attn.out_proj")}
            | {(s, "2") for s in ("0", "1.self_attn.out_proj", "1.linear2")}
        ),
        activation={"1.linear1": "relu"},
        outputs=frozenset({"2"}),
        streams=(frozenset({"0", "1.self_attn.out_proj", "1.linear2"}),),
        resettable=frozenset({"1.self_attn#v", "1.linear1"}),
        attention=True,
    ),
    Case(
        "shared_layer",
        m.Shared,
        rows(3),
        edges={("inp", "mid"): one(4), ("mid", "mid"): one(4), ("mid", "out"): one(4)},
        shared=frozenset({("inp", "mid"), ("mid", "mid")}),
        activation={"inp": "relu", "mid": "relu"},
        outputs=frozenset({"out"}),
        resettable=frozenset(),
    ),
    Case(
        "crelu",
        m.ConcatReLU,
        rows(3),
        edges={("a", "b"): one(4) | one(4, 4)},
        activation={"a": "relu"},
        outputs=frozenset({"b"}),
        resettable=frozenset({"a"}),
    ),
    Case(
        "fourier",
        m.Fourier,
        rows(3),
        edges={("a", "b"): blocks(4, 2)},
        activation={"a": "cos+sin"},
        outputs=frozenset({"b"}),
        resettable=frozenset({"a"}),
    ),
    Case(
        "transposed_gate",
        m.TransposedLinear,
        rows(3),
        edges={("weight#value", "out"): one(4), ("weight#gate", "out"): one(4)},
        activation={"weight#gate": "sigmoid", "weight#value": None},
        outputs=frozenset({"out"}),
        partners={"weight#gate": "weight#value", "weight#value": "weight#gate"},
        resettable=frozenset({"weight#gate", "weight#value"}),
    ),
    Case(
        "norm_after_and_by_hand",
        m.PostNormMLP,
        rows(3),
        edges={("a", "b"): one(4), ("b", "out"): one(5)},
        activation={"a": "relu", "b": "leaky_relu"},
        norms={"a": (("bn", False, 0),), "b": (("", True, 0),)},
        outputs=frozenset({"out"}),
        resettable=frozenset({"a", "b"}),
    ),
    Case(
        "reparametrised",
        m.Reparametrised,
        rows(3),
        edges={("a", "b"): one(4), ("b", "c"): one(5), ("c", "d"): one(4)},
        activation={"a": "relu", "b": "relu", "c": "relu"},
        outputs=frozenset({"d"}),
        resettable=frozenset(),
    ),
    Case(
        "branch",
        m.Branch,
        rows(3),
        edges={("a", "p"): one(4)},
        outputs=frozenset({"p"}),
        resettable=frozenset(),
        refused=("data-dependent control flow", "not used in this forward pass"),
    ),
    Case(
        "lstm",
        m.Recurrent,
        lambda: torch.randn(2, 4, 3),
        edges={("b", "c"): one(2)},
        activation={"a": "relu", "b": "relu"},
        outputs=frozenset({"c"}),
        resettable=frozenset({"b"}),
        refused=("recurrent weights",),
    ),
)

BY_NAME: dict[str, Case] = {case.name: case for case in CASES}


def cross_entropy(logits: Tensor) -> Tensor:
    """A loss against class 0, for any logits with classes last."""
    flat = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat, torch.zeros(len(flat), dtype=torch.long))
