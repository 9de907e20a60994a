"""Which networks: families, shapes of the two halves, illnesses with a severity dial, wear, healthy controls."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from supple.bench.lab.networks import Bf16, Factory, conv, mlp, resnet, sparse, transformer

TRAIN, EVALUATION = "train", "evaluation"

#: family -> factory of each half; the halves share no shape
FAMILIES: Mapping[str, Mapping[str, Factory]] = {
    "mlp": {TRAIN: mlp((64, 64)), EVALUATION: mlp((96, 48, 48))},
    "mlp-leaky": {TRAIN: mlp((64, 64), "leaky_relu"), EVALUATION: mlp((80, 80), "leaky_relu")},
    "mlp-layernorm": {TRAIN: mlp((64, 64), norm=True), EVALUATION: mlp((80, 56), norm=True)},
    "mlp-tanh": {TRAIN: mlp((64, 64), "tanh"), EVALUATION: mlp((72, 72, 72), "tanh")},
    "mlp-tanh-deep": {TRAIN: mlp((64,) * 5, "tanh"), EVALUATION: mlp((56,) * 6, "tanh")},
    "convnet": {TRAIN: conv((12, 16), 48), EVALUATION: conv((10, 20), 64)},
    "resnet": {TRAIN: resnet((8, 16), False), EVALUATION: resnet((10, 14), False)},
    "resnet-norm": {TRAIN: resnet((8, 16), True), EVALUATION: resnet((10, 14), True)},
    "transformer": {TRAIN: transformer(24, 48), EVALUATION: transformer(32, 40)},
}
#: healthy by design, MLPs only
DESIGNS: Mapping[str, Mapping[str, Factory]] = {
    "wide": {TRAIN: mlp((256, 256)), EVALUATION: mlp((320, 192))},
    "bottleneck": {TRAIN: mlp((64, 12, 64)), EVALUATION: mlp((96, 16, 48))},
    "default-init": {TRAIN: mlp((64, 64), init="default"), EVALUATION: mlp((96, 48), init="default")},
    "orthogonal-init": {TRAIN: mlp((64, 64), orthogonal=True), EVALUATION: mlp((96, 48), orthogonal=True)},
    "sparse": {TRAIN: sparse((64, 64)), EVALUATION: sparse((96, 96))},
    "bf16": {TRAIN: lambda: Bf16(mlp((64, 64))()), EVALUATION: lambda: Bf16(mlp((96, 48))())},
}
TANH = ("mlp-tanh", "mlp-tanh-deep")
NO_DEAD_ZONE = ("mlp-leaky", *TANH, "transformer")  # the transformer's units are GELU
#: illness -> severities, harmful ones mostly
DIAL: Mapping[str, tuple[float, ...]] = {
    "dead": (0.5, 0.7, 0.85), "rank": (0.2, 0.35, 0.5), "common": (4.0, 7.0, 10.0), "ordered": (0.7, 0.5),
    "grown": (4.0, 8.0), "cloned": (0.6, 0.9),
}  # fmt: skip
TOGETHER = (("dead", "rank"), ("rank", "common"), ("dead", "common"), ("dead", "rank", "common"))
#: recipe of wear -> families it is known to hurt, tasks of it
WEAR: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "random-labels": (("mlp", "convnet"), (5, 10)),
    "permuted": (("mlp", "mlp-layernorm", "resnet"), (30, 60)),
    "decayed-pairs": (("mlp-leaky",), (10, 20)),
    "policy": (("mlp", "mlp-tanh"), (2, 4)),
}
#: true tasks that a healthy network may have learned before; after several it has forgotten the first
HISTORIES = (0, 1, 4)


@dataclass(frozen=True)
class Case:
    """One network: ``ills`` are (name, severity); ``wear`` a recipe over ``tasks`` tasks; neither is a healthy
    control with ``tasks`` of ordinary training before it."""

    half: str
    family: str
    design: str = ""
    ills: tuple[tuple[str, float], ...] = ()
    wear: str = ""
    tasks: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        built = "+".join(f"{n}={s:g}" for n, s in self.ills)
        worn = f"{self.wear}-{self.tasks}" if self.wear else ""
        trained = f"trained-{self.tasks}" if self.tasks else "fresh"
        parts = (self.half, self.family, self.design, built or worn or trained, str(self.seed))
        return "/".join(p for p in parts if p)

    @property
    def healthy(self) -> bool:
        """Whether it was made as a control."""
        return not self.ills and not self.wear

    @property
    def factory(self) -> Callable[[], nn.Module]:
        return (DESIGNS[self.design] if self.design else FAMILIES[self.family])[self.half]


@dataclass(frozen=True)
class Size:
    """How many seeds of every case and of every healthy control, and how the truth is measured."""

    seeds: int
    references: int
    tasks: int
    steps: int
    budget: float
    controls: int = 0  # 0: as many as ``seeds``


PRESETS: Mapping[str, Size] = {
    "tiny": Size(1, 2, 1, 60, 0.5),
    "small": Size(1, 6, 3, 150, 30.0),
    "wide": Size(2, 6, 3, 150, 30.0, controls=10),  # more networks, the truth of each as in `small`
    "sure": Size(
        2, 20, 5, 150, 30.0, controls=10
    ),  # the networks of `wide`, each truth of 20 references and 5 tasks
    "day": Size(4, 12, 4, 200, 8.0),
    "paper": Size(8, 20, 5, 300, 30.0),
}


def suits(ill: str, family: str) -> bool:
    """Whether a family can have an illness: no dead units without a dead zone, ordered phase with tanh only."""
    if ill == "dead":
        return family not in NO_DEAD_ZONE
    if ill == "ordered":
        return family == "mlp-tanh-deep"
    return not (ill in ("common", "grown") and family in TANH)  # there both are saturation


def cases(preset: str, half: str) -> list[Case]:
    """All cases of one half, in an order keyed by their names, so that a part of them is a fair part.

    >>> len({c.name for c in cases("small", "evaluation")}) == len(cases("small", "evaluation"))
    True
    """
    found: list[Case] = []
    size, first = PRESETS[preset], 0 if half == TRAIN else 1000
    for seed in range(first, first + max(size.seeds, size.controls)):
        found += [Case(half, f, tasks=t, seed=seed) for t in HISTORIES for f in FAMILIES]
        found += [Case(half, "mlp", d, tasks=t, seed=seed) for t in HISTORIES[:2] for d in DESIGNS]
    for seed in range(first, first + size.seeds):
        for ill, dial in DIAL.items():
            fit = [f for f in FAMILIES if suits(ill, f)]
            found += [Case(half, f, ills=((ill, s),), seed=seed) for s in dial for f in fit]
        mild = {name: dial[0] for name, dial in DIAL.items()}
        for ills in TOGETHER:
            fit = [f for f in FAMILIES if all(suits(i, f) for i in ills)]
            found += [Case(half, f, ills=tuple((i, mild[i]) for i in ills), seed=seed) for f in fit]
        found += [Case(half, f, ills=(("saturated", s),), seed=seed) for s in (4.0, 8.0) for f in TANH]
        for wear, (families, lengths) in WEAR.items():
            found += [Case(half, f, wear=wear, tasks=t, seed=seed) for f in families for t in lengths]
    return sorted(found, key=lambda c: zlib.crc32(c.name.encode()))
