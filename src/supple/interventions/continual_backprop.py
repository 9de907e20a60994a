"""Continual backpropagation: at every step a trickle of the least useful mature units is re-born."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from supple import fresh
from supple.errors import AttachError, InputError
from supple.interventions.channels import Site, consumer_sites
from supple.interventions.columns import transfer_refusal
from supple.interventions.handle import Optimizers, optimizer_list
from supple.interventions.registry import register
from supple.interventions.reset_checks import Initials
from supple.interventions.reset_methods import UnitReset
from supple.interventions.resetting import ResetHandle
from supple.interventions.sums import absolute_sum, incoming_means
from supple.status import Mechanism
from supple.topology.graph import Layer, Topology

UTILITIES = ("contribution", "zero_contribution", "adaptable", "nature", "lazy")
#: measured by the deviation from the running mean
_CENTRED = ("zero_contribution", "adaptable")


@register
@dataclass(frozen=True)
class ContinualBackprop(UnitReset):
    """After every step, in each hidden layer::

        a += 1
        u <- eta u + (1 - eta) E|h_i| sum_k |W_out[k, i]|        (utility of unit i, mean over the batch)
        c += rho #{a > m};  while c > 1: re-birth of the mature unit with the smallest u / (1 - eta^a), c -= 1

    Dohare et al. 2024 (Nature 632), algorithm 1. Incoming row from the layer's initialiser, bias 0, outgoing
    weights 0, u = a = 0, optimizer state of those slices fresh. Where paper and public code differ: the
    listing ranks by u without the correction for age, so that young units are picked first (at a = 100 an
    average with eta = 0.99 has 63 % of its height); the code corrects, and so does the default, for this
    reason. ``utility="nature"`` is the listing to the letter. ``utility="lazy"`` averages E|h| alone and
    multiplies by sum|W_out| when a unit is due: most steps then read no weight. It is another algorithm,
    and has a name of its own. The public correction of the next layer's bias is always zero (it clears the
    mean before it reads it); ``bias_transfer`` is one that works. h is read at the consumers' inputs in
    training passes, after pooling and flattening as in the public code; a unit with several consumers sums
    over them. Handles: ``ages``, ``utilities``, ``log``.

    Args:
        replacement_rate: rho, replaced share of the mature units per step, in [0, 1].
        decay: eta of the running utility, in [0, 1).
        maturity: m, steps before a unit may be replaced.
        utility: "contribution"; "nature", the same without correction for age, one unit at most, no bias
            transfer; "lazy", see above; "zero_contribution" uses E|h - mean h|; "adaptable" divides that
            by the mean |W_in| (the public ImageNet, MNIST and regression configurations).
        correct_age: rank by the bias-corrected utility; None is True but for "nature".
        bias_transfer: move the unit's mean contribution into the consumer's bias before it is zeroed;
            exact for constant units. Layers whose consumers have no bias are then left out.
        accumulate: carry fractions of a unit to later steps; False draws them (public code's other way).
        cap: units per layer and step at most; 1 is the listing, None is no cap.
        initial: law of the fresh rows, see `supple.fresh.draw`; or the model's initial state_dict.
        layers: names of the layers to act on; None is every hidden layer that can be reset.
        units: kinds of units, see `supple.interventions.reset_methods.UnitReset`; the default is ("inner",).
        seed: of the random draws.
    """

    replacement_rate: float = 1e-4
    decay: float = 0.99
    maturity: int = 100
    utility: Literal["contribution", "zero_contribution", "adaptable", "nature", "lazy"] = "contribution"
    correct_age: bool | None = None
    bias_transfer: bool = False
    accumulate: bool = True
    cap: int | None = 1
    initial: Initials = "auto"
    layers: tuple[str, ...] | None = None
    seed: int = 0

    mechanism: ClassVar[Mechanism | None] = Mechanism.DEAD_UNITS
    cost: ClassVar[str] = "low"
    source: ClassVar[str] = "Dohare et al. 2024, Loss of plasticity in deep continual learning, Nature 632"

    def __post_init__(self) -> None:
        self._check(
            replacement_rate=(0.0, 1.0), decay=(0.0, 1.0), maturity=(0, float("inf")), cap=(1, float("inf"))
        )
        if self.decay == 1.0 or self.utility not in UTILITIES:
            raise InputError(
                "decay must be below 1 and the utility known",
                found=(self.decay, self.utility),
                do=f"choose one of {', '.join(UTILITIES)}",
                where=self.name,
            )

        as_listed = not self.correct_age and not self.bias_transfer and self.accumulate and self.cap == 1
        if self.utility == "nature" and not as_listed:
            raise InputError(
                'utility="nature" is the published listing, which has no such setting',
                found=f"correct_age={self.correct_age}, bias_transfer={self.bias_transfer}, "
                f"accumulate={self.accumulate}, cap={self.cap}",
                do='leave them out, or choose utility="contribution"',
                where=self.name,
            )

    @property
    def corrects(self) -> bool:
        """Whether the ranking is corrected for age."""
        return self.utility != "nature" if self.correct_age is None else self.correct_age

    def attach(
        self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None, topology: Topology | None = None
    ) -> ContinualBackpropHandle:
        return ContinualBackpropHandle(self, model, optimizer, inputs, topology)


@dataclass
class _Units:
    """What continual backpropagation remembers of one layer."""

    layer: Layer
    sites: list[Site]
    utility: Tensor  # (U,)
    births: npt.NDArray[np.int64]  # (U,) in steps of the layer's optimizer
    position: int = 0  # of that optimizer
    carry: float = 0.0
    mature: int = 0  # units older than the maturity, as counted last ...
    until: int = 0  # ... which holds before this clock

    def count_mature(self, clock: int, maturity: int) -> int:
        if clock >= self.until:
            old = clock - self.births > maturity
            self.mature = int(np.count_nonzero(old))
            young = self.births[~old]
            self.until = int(young.min()) + maturity + 1 if len(young) else clock + (1 << 62)
        return self.mature


class ContinualBackpropHandle(ResetHandle):
    """Attached continual backpropagation; see `ContinualBackprop`."""

    method: ContinualBackprop
    standing = True

    def __init__(
        self,
        intervention: ContinualBackprop,
        model: nn.Module,
        optimizer: Optimizers,
        inputs: Any,
        topology: Any,
    ) -> None:
        self.method = intervention
        self.units: dict[str, _Units] = {}
        self.clocks = [0 for _ in optimizer_list(optimizer)]
        self.means: dict[str, Tensor] = {}  # by module: running mean of its inputs
        self.activity: dict[str, Tensor] = {}  # by module: running mean of |its inputs|, if lazy
        self.paths: list[list[str]] = []  # by optimizer: modules whose inputs are read
        self.readers: dict[str, list[tuple[_Units, Site]]] = {}
        self.measured = False
        super().__init__(intervention, model, optimizer, inputs, topology)

    def _prepare(self) -> None:
        for layer in [x for group in self.layers for x in group]:
            sites = consumer_sites(self.built, layer)
            if isinstance(sites, str):
                self._drop(layer, sites)
            elif (reason := self._transfer_refusal(sites)) is not None:
                self._drop(layer, reason)
            else:
                self._watch(layer, sites)
        for group in self.layers:
            sites = [s for x in group for s in self.units[x.name].sites]
            self.paths.append(list(dict.fromkeys(s.module for s in sites)))

    def _transfer_refusal(self, sites: list[Site]) -> str | None:
        if not self.method.bias_transfer:
            return None
        layers = self.built.topology.layers
        reasons = [transfer_refusal(layers[s.edge.consumer], s.edge) for s in sites if s.edge is not None]
        return next((f"its bias transfer: {r}" for r in reasons if r), None)

    def _watch(self, layer: Layer, sites: list[Site]) -> None:
        weight = self.built.parameters[layer.weight]
        dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        utility = torch.zeros(layer.units, dtype=dtype, device=weight.device)
        position = next(i for i, group in enumerate(self.layers) if layer in group)
        held = _Units(layer, sites, utility, np.zeros(layer.units, dtype=np.int64), position)
        self.units[layer.name] = held
        method = self.method
        centre = self._centre if method.utility in _CENTRED else None
        for site in sites:
            module = self.built.modules[site.module]
            self.meter.watch_input(site, module, signed=method.bias_transfer, centre=centre)
            if method.bias_transfer or centre is not None:
                self.means.setdefault(site.module, utility.new_zeros(site.width))
            if method.utility == "lazy":
                self.activity.setdefault(site.module, utility.new_zeros(site.width))
            self.readers.setdefault(site.module, []).append((held, site))

    # -- what a user reads ----------------------------------------------------------------------
    @property
    def ages(self) -> dict[str, Tensor]:
        """Steps since each unit was born, by layer."""
        return {n: torch.from_numpy(self._clock(u) - u.births) for n, u in self.units.items()}

    @property
    def utilities(self) -> dict[str, Tensor]:
        """The utility by which units are ranked, by layer."""
        return {n: self._ranking(u) for n, u in self.units.items()}

    # -- the algorithm --------------------------------------------------------------------------
    def _arm(self) -> None:
        """Nothing to decide: it acts on every step, and the meter is always active."""

    def _act(self, layers: list[Layer]) -> bool:
        held = [self.units[x.name] for x in layers]
        paths = self.paths[held[0].position]
        if self.meter.group is not None:
            self.meter.reduce(paths, self.device)
        gauges, rest = self.meter.gauges, 1.0 - self.method.decay
        if not all(gauges[p].count for p in paths):
            return self._missing(paths)
        self.measured = True
        self.clocks[held[0].position] += 1
        for path, mean in self.means.items():
            if path in paths:
                mean.lerp_(gauges[path].mean("signed"), rest)
        for path, mean in self.activity.items():
            if path in paths:
                mean.lerp_(gauges[path].mean("absolute"), rest)
        for units in held if self.method.utility != "lazy" else ():
            self._update(units)
        chosen = {u.layer.name: c for u in held if (c := self._choose(u)) is not None}
        if chosen:
            self._replace(chosen)
        for path in paths:
            gauges[path].clear()
        return True

    def _missing(self, paths: list[str]) -> bool:
        if not self.measured:
            raise AttachError(
                "no activation was seen before this optimizer step",
                found=f"no training forward pass through all of {', '.join(paths)}",
                do="attach before torch.compile, and train with model.train() and gradients enabled",
            )
        return super()._missing(paths)

    def _update(self, units: _Units) -> None:
        """u <- eta u + (1 - eta) E|h| sum|W_out|, summed over all consumers."""
        kind = "deviation" if self.method.utility in _CENTRED else "absolute"
        rest = 1.0 - self.method.decay
        units.utility.mul_(self.method.decay)
        for site in units.sites:
            gauge = self.meter.gauges[site.module]
            now = site.gather(gauge.sums[kind] * self._outgoing_sum(site), units.layer.units)
            if self.method.utility == "adaptable":
                now = now / self._incoming_mean(units)
            units.utility.add_(now, alpha=rest / gauge.count)

    def _outgoing_sum(self, site: Site) -> Tensor:
        """(C,) sum of |weight| over everything that reads each channel of the consumer's input."""
        if site.edge is None:
            raise AttachError("a utility is read at consumers only", where=site.module)
        weight = self.built.parameters[site.edge.weight].detach()
        groups = int(getattr(self.built.modules[site.module], "groups", 1))
        if site.edge.dim == 1 and groups > 1:
            weight = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
            return torch.cat([absolute_sum(part, 1) for part in weight])
        return absolute_sum(weight, site.edge.dim)

    def _incoming_mean(self, units: _Units) -> Tensor:
        """(U,) mean |W_in| of each unit."""
        means = incoming_means(
            self.built.topology, units.layer, lambda name: self.built.parameters[name].detach()
        )
        if means is None:
            raise AttachError("a layer lost its weight", where=units.layer.name)
        return means

    def _choose(self, units: _Units) -> Tensor | None:
        """The units of a layer that are due, lowest utility first, or None."""
        method, name = self.method, units.layer.name
        clock = self._clock(units)
        eligible = units.count_mature(clock, method.maturity)
        share = method.replacement_rate * eligible
        if method.accumulate:
            units.carry += share
            count = int(units.carry) if units.carry > 1 else 0
        else:
            keyed = fresh.generator(method.seed, clock, f"{name}/fraction")
            count = int(share) + int(torch.rand((), generator=keyed).item() < share % 1)
        count = min(count, eligible, method.cap or eligible)
        if not count:
            return None
        ranking = self._ranking(units)
        if not bool(torch.isfinite(ranking).all()):
            self._skip(name, "a utility is not finite")
            return None
        units.carry -= count if method.accumulate else 0
        young = torch.from_numpy(clock - units.births <= method.maturity)
        ranking[young.to(ranking.device)] = torch.inf
        return torch.sort(ranking, stable=True).indices[:count].cpu()

    def _ranking(self, units: _Units) -> Tensor:
        """(U,) a new tensor: the utility, corrected for age if asked (0 at age 0)."""
        utility = units.utility.clone()
        if self.method.utility == "lazy":
            for site in units.sites:
                now = self.activity[site.module] * self._outgoing_sum(site)
                utility += site.gather(now, units.layer.units)
        if not self.method.corrects:
            return utility
        growth = 1.0 - self.method.decay ** np.maximum(self._clock(units) - units.births, 1)
        return utility / torch.from_numpy(growth).to(utility)

    def _replace(self, chosen: dict[str, Tensor]) -> None:
        self._reset(chosen, self._transferred_means() if self.method.bias_transfer else None)
        for name, index in chosen.items():
            units = self.units[name]
            units.utility[index.to(units.utility.device)] = 0.0
            units.births[index.numpy()] = self._clock(units)
            units.until = 0
            for site in units.sites:
                channels = site.channels[torch.isin(site.units, index)]
                channels = channels[channels >= 0].to(units.utility.device)
                for averages in (self.means, self.activity):
                    if site.module in averages:
                        averages[site.module][channels] = 0.0

    # -- running means --------------------------------------------------------------------------
    def _centre(self, path: str, batch_mean: Tensor) -> Tensor:
        """(C,) the bias-corrected running mean, this batch included."""
        decay = self.method.decay
        mean = torch.lerp(self.means[path].to(batch_mean), batch_mean, 1.0 - decay)
        return mean / self._growth(path, 1).to(batch_mean)

    def _growth(self, path: str, ahead: int) -> Tensor:
        """(C,) 1 - eta^a of the unit behind each channel, ``ahead`` steps from now; 1 where there is none."""
        total = torch.zeros_like(self.means[path])
        for units, site in self.readers[path]:
            ages = self._clock(units) - units.births + ahead
            part = 1.0 - self.method.decay ** np.maximum(ages, 1)
            total += site.spread(torch.from_numpy(part).to(total))
        return torch.where(total > 0, total, torch.ones_like(total))

    def _transferred_means(self) -> dict[str, Tensor]:
        """Consumer name -> bias-corrected mean of its inputs, of units that are still alive."""
        return {
            site.edge.consumer: self.means[path] / self._growth(path, 0)
            for path, readers in self.readers.items()
            for _, site in readers
            if site.edge is not None
        }

    # -- state ----------------------------------------------------------------------------------
    def _clock(self, units: _Units) -> int:
        return self.clocks[units.position]

    def _own_state(self) -> dict[str, Any]:
        return {
            "clocks": list(self.clocks),
            "measured": self.measured,
            "means": {p: m.clone() for p, m in self.means.items()},
            "activity": {p: m.clone() for p, m in self.activity.items()},
            "layers": {
                n: {
                    "utility": u.utility.clone(),
                    "births": torch.from_numpy(u.births.copy()),
                    "carry": u.carry,
                }
                for n, u in self.units.items()
            },
        }

    def _load_own(self, state: dict[str, Any]) -> None:
        averages = {"means": self.means, "activity": self.activity}
        same = all(set(state[n]) == set(kept) for n, kept in averages.items())
        if set(state["layers"]) != set(self.units) or not same:
            raise InputError("the state holds other layers", found=sorted(state["layers"]))
        self.clocks = [int(c) for c in state["clocks"]]
        self.measured = bool(state["measured"])
        for kind, kept in averages.items():
            for path, mean in state[kind].items():
                kept[path].copy_(mean)
        for name, kept in state["layers"].items():
            units = self.units[name]
            units.utility.copy_(kept["utility"])
            units.births = kept["births"].cpu().numpy().copy()
            units.carry, units.until = float(kept["carry"]), 0
