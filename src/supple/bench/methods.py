"""The methods that are compared, by name: a network, an intervention, settings; nothing else differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from supple.bench.networks import build, keyed
from supple.bench.protocols import Protocol
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.interventions import Intervention


#: steps between two resets where boundaries are hidden: the published period of ReDo and ReGraMa
UNTOLD_EVERY = 1000


@dataclass(frozen=True, kw_only=True)
class Method:
    """One arm of a comparison.

    ``intervention`` is a name that `supple.interventions.create` knows; ``settings`` are its
    hyper-parameters, and a protocol may override them: with "lr" also its own learning rate, for a method that was
    published with another, and with "parts" in the form of a combination. ``fresh``: a new network and optimizer at
    every task, the healthy reference. ``cost``: seconds relative to plain training, for time estimates only.
    """

    name: str
    title: str
    activation: str = "relu"
    norm: str = ""
    depth: int | None = None
    dropout: float = 0.0
    fresh: bool = False
    intervention: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 1.0

    def build(self, protocol: Protocol, seed: int, task: int = 0) -> nn.Module:
        """The network at the start of ``task``, drawn by (seed, task): equal for methods of equal shape."""

        def make() -> nn.Module:
            return build(
                protocol,
                activation=self.activation,
                norm=self.norm,
                depth=self.depth,
                dropout=self.dropout,
            )

        return keyed(make, seed, "network", task)

    def check(self, protocol: Protocol) -> None:
        """Raise what a run would raise because the protocol's network or optimizer has no form of this method."""
        protocol.build_optimizers(self.build(protocol, 0).parameters())

    def kind(self, settings: Mapping[str, Any]) -> str:
        """The intervention that these settings are of: a combination if they have parts."""
        return "Combination" if "parts" in settings else self.intervention

    def settings_in(self, protocol: Protocol, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Own defaults, then the protocol's, then the caller's; with hidden boundaries no schedule waits for one."""
        own = protocol.settings.get(self.name, {})
        found = {**({} if "parts" in own else self.settings), **own, **(overrides or {})}
        if not protocol.hidden_boundaries or not self.intervention:
            return found
        if "parts" in found:
            return {**found, "parts": [_by_steps(part["name"], part) for part in found["parts"]]}
        return _by_steps(self.intervention, found)

    def create(self, settings: Mapping[str, Any], seed: int, initial: str = "auto") -> Intervention | None:
        """The intervention, or None; it is told the run's seed and the network's initialiser if it asks."""
        if not self.intervention:
            return None
        from supple import interventions

        def told(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
            fields = {f.name for f in dataclasses.fields(interventions.available()[name])}
            return {**{k: v for k, v in (("seed", seed), ("initial", initial)) if k in fields}, **own}

        kind = self.kind(settings)
        own = told(kind, {k: v for k, v in settings.items() if k != "lr"})
        if "parts" in own:  # of a combination
            own["parts"] = [told(part["name"], part) for part in own["parts"]]
        return interventions.create(kind, **own)


def _by_steps(intervention: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a schedule that needs boundaries replaced by a number of steps."""
    from supple import interventions

    fields = {f.name: f.default for f in dataclasses.fields(interventions.available()[intervention])}
    if settings.get("every", fields.get("every")) not in ("task", "boundary"):
        return dict(settings)
    return {**settings, "every": UNTOLD_EVERY}


def _table(*methods: Method) -> dict[str, Method]:
    return {m.name: m for m in methods}


METHODS = _table(
    Method(name="plain", title="Plain ReLU network"),
    Method(name="fresh", title="Fresh network each task", fresh=True),
    Method(name="linear", title="Linear model", depth=0, cost=0.7),
    Method(name="shallow", title="One hidden layer", depth=1, cost=0.8),
    Method(
        name="regrama",
        title="ReGraMa",
        intervention="ReGraMa",
        settings={"every": "task", "tau": 0.1},
        cost=1.2,
    ),
    Method(name="redo", title="ReDo", intervention="ReDo", settings={"every": "task", "tau": 0.1}, cost=1.2),
    Method(
        name="cbp",
        title="Continual backprop",
        intervention="ContinualBackprop",
        settings={"replacement_rate": 1e-3},
        cost=1.6,
    ),
    Method(name="cchain", title="C-CHAIN", intervention="CChain", settings={"coef": 1.0}, cost=2.5),
    Method(name="l2", title="L2", intervention="L2", settings={"coef": 1e-3}, cost=1.4),
    Method(name="l2init", title="L2-Init", intervention="L2Init", settings={"coef": 1e-2}, cost=1.4),
    Method(
        name="spectral",
        title="Spectral regularisation",
        intervention="SpectralRegularization",
        settings={"coef": 1e-3},
        cost=1.8,
    ),
    Method(
        name="wasserstein", title="Wasserstein", intervention="Wasserstein", settings={"coef": 1e-2}, cost=1.8
    ),
    Method(name="parseval", title="Parseval", intervention="Parseval", settings={"coef": 1e-4}, cost=1.6),
    Method(name="feature_rank", title="Feature rank", intervention="FeatureRank", cost=2.2),
    Method(name="clipping", title="Weight clipping", intervention="WeightClipping", cost=1.1),
    Method(name="trac", title="TRAC", intervention="TRAC", cost=1.5),
    Method(
        name="nap", title="Normalise and project", norm="layer", intervention="NormalizeAndProject", cost=1.5
    ),
    Method(
        name="spectral_regrama",
        title="Spectral regularisation and ReGraMa",
        intervention="Combination",
        settings={
            "parts": [
                {"name": "SpectralRegularization", "coef": 1e-3},
                {"name": "ReGraMa", "every": "task", "tau": 0.1},
            ]
        },
        cost=2.0,
    ),
    Method(
        name="l2init_regrama",
        title="L2-Init and ReGraMa",
        intervention="Combination",
        settings={
            "parts": [{"name": "L2Init", "coef": 1e-2}, {"name": "ReGraMa", "every": "task", "tau": 0.1}]
        },
        cost=1.6,
    ),
    Method(
        name="layernorm_l2",
        title="Layer normalisation and L2",
        norm="layer",
        intervention="L2",
        settings={"coef": 1e-3},
        cost=1.6,
    ),
    Method(
        name="shrink_perturb",
        title="Shrink and perturb",
        intervention="ShrinkAndPerturb",
        settings={"every": "task", "shrink": 0.5},
    ),
    Method(name="head_reset", title="Head reset", intervention="LayerReset"),
    Method(
        name="head_reset_boundary",
        title="Head reset at the boundary",
        intervention="LayerReset",
        settings={"every": "boundary"},
    ),
    Method(
        name="shrink_perturb_boundary",
        title="Shrink and perturb at the boundary",
        intervention="ShrinkAndPerturb",
        settings={"every": "boundary", "shrink": 0.5},
    ),
    Method(
        name="fire_boundary",
        title="FIRE at the boundary",
        intervention="FIRE",
        settings={"every": "boundary"},
    ),
    Method(name="crelu", title="CReLU (half width)", activation="crelu", cost=1.2),
    Method(name="fourier", title="Fourier features (half width)", activation="fourier", cost=1.2),
    Method(name="layernorm", title="Layer normalisation", norm="layer", cost=1.3),
    Method(name="batchnorm", title="Batch normalisation", norm="batch", cost=1.4),
    Method(name="dropout", title="Dropout (rate 0.1)", dropout=0.1, cost=1.2),
)


def get(name: str) -> Method:
    """A method by name; an unknown name lists the known ones.

    >>> get("fresh").fresh
    True
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}", do=f"choose from {', '.join(METHODS)}")
    return METHODS[name]
