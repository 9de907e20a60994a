"""Pairs inside branches: the hidden units of residual blocks and of transformer MLPs.

A site is a layer, the norms behind it, one activation module, and the layers that read its units and nothing else.
The stream that the branches read and write keeps its width; activations on the stream itself stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from supple.errors import TopologyError
from supple.nn.chain import _looking
from supple.nn.pairs import PAIR_GAIN
from supple.nn.widths import _CONVS, _NORMS, _WEIGHTS, ACTIVATIONS, _axis, _sizes
from supple.topology import Topology, trace
from supple.topology.inputs import Inputs, call
from supple.topology.taps import eager

Filter = Callable[[nn.Module, str], bool] | None


@dataclass(frozen=True)
class Site:
    """One activation that can answer in pairs. All are paths."""

    layer: str
    norms: tuple[str, ...]
    activation: str
    readers: tuple[str, ...]
    units: int
    step: int  # what the units must be a multiple of


@dataclass
class BranchPlan:
    """Everything that will be written, by path."""

    sites: list[Site]
    dims: dict[str, int] = field(default_factory=dict)  # activation -> its unit axis
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # layer -> (inputs, outputs)
    old_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    norms: dict[str, int] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)  # activation -> why it stays

    def changes(self, model: nn.Module) -> Iterator[str]:
        for path, (reads, gives) in self.sizes.items():
            was, kind = self.old_sizes[path], type(model.get_submodule(path)).__name__
            yield f"{path} ({kind}): {was[0]} -> {was[1]} becomes {reads} -> {gives}"
        for path, reason in self.kept.items():
            yield f"{path} stays: {reason}"


def plan_branches(model: nn.Module, inputs: Inputs, width: str, filter_fn: Filter) -> BranchPlan:
    """Find the sites of a network with branches and settle every size; an empty plan without activation modules.

    Raises:
        TopologyError: no activation can be converted; every one is named with its reason.
    """
    sites, kept = _find(model, inputs, filter_fn)
    if not sites and not kept:
        return BranchPlan([])
    if not sites:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(kept.items())[:5])
        raise TopologyError(
            "convert_ finds no activation module inside a branch that can be converted",
            found=reasons,
            do="write activations as modules, one for each place",
        )
    if width == "match_params":
        return _matched(model, sites, kept)
    units = {}
    for site in sites:
        if width == "half" and site.units % (2 * site.step):
            raise TopologyError(
                f"its width cannot be halved in whole units (or groups of {site.step})", where=site.layer,
                found=site.units, do='use an even width, width="match_params", or filter_fn',
            )  # fmt: skip
        units[site.layer] = site.units // 2 if width == "half" else site.units
    return _settle(model, sites, kept, units)


@dataclass
class _Call:
    path: str
    given: Tensor
    output: Tensor


def _watch(model: nn.Module, inputs: Inputs) -> list[_Call]:
    """Every call of a leaf with one tensor in and one out; the tensors are held, so identities stay apart."""
    calls: list[_Call] = []
    handles = []
    for path, module in model.named_modules():
        if not module._modules:

            def after(module: nn.Module, args: tuple[Any, ...], output: Any, path: str = path) -> None:
                one = len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor)
                if one and (
                    output is not args[0] or type(module) in ACTIVATIONS
                ):  # an Identity makes nothing
                    calls.append(_Call(path, args[0], output))

            handles.append(module.register_forward_hook(after))
    try:
        with _looking(model), eager():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _find(model: nn.Module, inputs: Inputs, filter_fn: Filter) -> tuple[list[Site], dict[str, str]]:
    calls = _watch(model, inputs)
    modules = dict(model.named_modules())
    topology = trace(model, inputs)
    # an in-place activation returns what it was given: only layers and norms make something here
    made = {id(c.output): c for c in calls if type(modules[c.path]) not in ACTIVATIONS}
    sites: list[Site] = []
    kept: dict[str, str] = {}
    for path, module in modules.items():
        if type(module) not in ACTIVATIONS or (filter_fn is not None and not filter_fn(module, path)):
            continue
        found = _site(path, [c for c in calls if c.path == path], made, modules, topology)
        if isinstance(found, Site):
            sites.append(found)
        else:
            kept[path] = found
    return sites, kept


def _site(
    path: str, own: list[_Call], made: dict[int, _Call], modules: dict[str, nn.Module], topology: Topology
) -> Site | str:
    """The site of one activation, or why there is none."""
    if len(own) != 1:
        return f"it runs {len(own)} times in one pass"
    if any(m is modules[path] for other, m in modules.items() if other != path):
        return "one module at several paths"
    norms, before = [], made.get(id(own[0].given))
    while before is not None and type(modules[before.path]) in _NORMS:
        norms.append(before.path)
        before = made.get(id(before.given))
    if before is None or type(modules[before.path]) not in _WEIGHTS:
        return "it does not read just what one Linear or Conv (and norms) returns"
    layer = modules[before.path]
    if isinstance(layer, _CONVS) and layer.groups != 1:
        return f"{before.path} is a grouped convolution"
    known = topology.layers.get(before.path)
    if known is None or known.calls != 1:
        return f"{before.path} is not followed as one layer that runs once"
    if reason := topology.reset_refusal(before.path):
        return f"{before.path}: {reason}"
    readers = tuple(dict.fromkeys(e.consumer for e in topology.consumers(before.path)))
    for name in readers:
        reader = modules.get(name)
        if (
            reader is None
            or type(reader) not in _WEIGHTS
            or (isinstance(reader, _CONVS) and reader.groups != 1)
        ):
            return f"it is read by {name}, which cannot be resized"
        edges = topology.producers(name)
        columns = {int(c) for e in edges for c in e.columns.flatten() if c >= 0}
        if {e.producer for e in edges} != {before.path} or len(columns) < _sizes(reader)[0]:
            return f"{name} reads other units too"
    step = math.lcm(1, *(m.num_groups for n in norms if isinstance(m := modules[n], nn.GroupNorm)))
    return Site(before.path, tuple(norms), path, readers, _sizes(layer)[1], step)


def _settle(model: nn.Module, sites: list[Site], kept: dict[str, str], units: dict[str, int]) -> BranchPlan:
    plan = BranchPlan(sites, kept=kept)
    modules = dict(model.named_modules())
    for site in sites:
        for path in (site.layer, *site.readers):
            plan.old_sizes[path] = _sizes(modules[path])
            plan.sizes.setdefault(path, plan.old_sizes[path])
            plan.gains.setdefault(path, 1.0)
    for site in sites:
        new = units[site.layer]
        plan.dims[site.activation] = _axis(modules[site.layer])
        plan.sizes[site.layer] = (plan.sizes[site.layer][0], new)
        plan.norms.update(dict.fromkeys(site.norms, new))
        for path in site.readers:  # per unit the same number of columns as before, twice for a pair
            each, odd = divmod(plan.old_sizes[path][0], site.units)
            if odd:
                raise TopologyError(
                    "its inputs are no multiple of the units it reads",
                    where=path,
                    found=plan.old_sizes[path][0],
                )
            plan.sizes[path] = (2 * new * each, plan.sizes[path][1])
            plan.gains[path] = PAIR_GAIN
    return plan


def _matched(model: nn.Module, sites: list[Site], kept: dict[str, str]) -> BranchPlan:
    """The common factor of all converted widths whose parameter count comes closest to the old one."""
    modules = dict(model.named_modules())

    def at(factor: float) -> BranchPlan:
        wide = {s.layer: max(1, round(factor * s.units / s.step)) * s.step for s in sites}
        return _settle(model, sites, kept, wide)

    def grown(plan: BranchPlan) -> int:
        total = 0
        for path, (reads, gives) in plan.sizes.items():
            old, module = plan.old_sizes[path], modules[path]
            taps = module.get_parameter("weight").shape[2:].numel()
            bias = module._parameters.get("bias") is not None
            total += (reads * gives - old[0] * old[1]) * taps + bias * (gives - old[1])
        for path, size in plan.norms.items():
            own = list(modules[path].parameters(recurse=False))
            total += sum(p.numel() // p.shape[0] * (size - p.shape[0]) for p in own)
        return total

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if grown(at(middle)) < 0 else (low, middle)
    return min((at(low), at(high)), key=lambda plan: abs(grown(plan)))
