"""Which sizes does every module of a chain get when some activations start to answer in pairs?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from supple.nn.chain import Link, refuse
from supple.nn.pairs import PAIR_GAIN

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WEIGHTS = (nn.Linear, *_CONVS)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS = (*_BATCH_NORMS, *_INSTANCE_NORMS, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
#: activations that work entry by entry and have no parameters: what `convert_` can replace
ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid,
)  # fmt: skip
#: modules that act on every channel alike
_CARRIERS = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.Upsample, nn.Flatten,
)  # fmt: skip
_GAINS: dict[type[nn.Module], float] = {
    nn.Tanh: 5 / 3,
    nn.ReLU: math.sqrt(2),
    nn.LeakyReLU: math.sqrt(2),
    nn.SELU: 0.75,
}


@dataclass(frozen=True)
class Conversion:
    """What `convert_` did."""

    old: str
    new: str
    width: str
    before: int  # parameters
    after: int
    layers: tuple[str, ...]  # one line per layer that was drawn afresh

    def __str__(self) -> str:
        ratio = self.after / self.before if self.before else math.nan
        head = (
            f'convert_: {self.old} -> {self.new}, width="{self.width}": '
            f"{self.before} -> {self.after} parameters ({ratio:.3f} x)"
        )
        return "\n".join([head, *(f"  {line}" for line in self.layers)])


@dataclass
class Plan:
    """Everything that will be written, by position in the chain."""

    converted: set[int] = field(default_factory=set)  # activations to replace
    dims: dict[int, int] = field(default_factory=dict)  # their unit axis
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # layers: (inputs, outputs)
    gains: dict[int, float] = field(default_factory=dict)
    norms: dict[int, int] = field(default_factory=dict)
    old_sizes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def changes(self, links: list[Link]) -> Iterator[str]:
        for index, (reads, gives) in self.sizes.items():
            was = self.old_sizes[index]
            kind = type(links[index].module).__name__
            yield f"{links[index].path} ({kind}): {was[0]} -> {was[1]} becomes {reads} -> {gives}"


def make_plan(links: list[Link], width: str, filter_fn: Callable[[nn.Module, str], bool] | None) -> Plan:
    """Check the whole chain and settle every size.

    Raises:
        TopologyError: with the path of the module that cannot be handled.
    """
    layers = _check(links)
    chosen = _chosen(links, layers, filter_fn)
    if not chosen:
        raise refuse(
            "there is no activation between two layers to convert", "the model", do="check filter_fn"
        )
    if width == "match_params":
        return _matched(links, chosen)
    units = {i: _sizes(links[i].module)[1] for i in chosen}
    if width == "half":
        for index, number in units.items():
            step = _step(links, index)
            if number % (2 * step):
                raise refuse(
                    f"its width cannot be halved in whole units (or groups of {step})",
                    links[index].path,
                    found=number,
                    do='use an even width, or width="match_params"',
                )
            units[index] = number // 2
    return _settle(links, chosen, units)


def _sizes(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, _CONVS):
        return module.in_channels, module.out_channels
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def _check(links: list[Link]) -> list[int]:
    """Positions of the weight layers; refuses whatever is not known by its exact class."""
    layers = [i for i, link in enumerate(links) if type(link.module) in _WEIGHTS]
    if len(layers) < 2:
        raise refuse("fewer than two Linear or Conv layers", "the model", found=len(layers))
    for index, link in enumerate(links):
        kind = type(link.module)
        if index > layers[-1]:
            if any(True for _ in link.module.parameters()):
                raise refuse(
                    "a module with parameters follows the last layer", link.path, found=kind.__name__
                )
        elif kind not in (*_WEIGHTS, *_NORMS, *ACTIVATIONS, *_CARRIERS):
            raise refuse("a module that is not known to keep channels apart", link.path, found=kind.__name__)
        elif isinstance(link.module, _CONVS) and link.module.groups != 1:
            raise refuse("a grouped convolution", link.path, found=f"groups={link.module.groups}")
        elif isinstance(link.module, nn.Flatten) and link.module.start_dim != 1:
            raise refuse("a flatten that does not start at axis 1", link.path, found=link.module.start_dim)
    return layers


def _chosen(
    links: list[Link], layers: list[int], filter_fn: Callable[[nn.Module, str], bool] | None
) -> dict[int, int]:
    """Layer position -> position of the activation behind it that is converted."""
    chosen: dict[int, int] = {}
    decided: dict[nn.Module, bool] = {}
    for index in range(layers[0]):
        if type(links[index].module) in ACTIVATIONS:
            raise refuse("an activation before the first layer", links[index].path)
    for here, following in pairwise(layers):
        found = [i for i in range(here + 1, following) if type(links[i].module) in ACTIVATIONS]
        if len(found) > 1:
            raise refuse("two activations between two layers", links[found[1]].path)
        for index in found:
            module, path = links[index].module, links[index].path
            if module not in decided:
                decided[module] = filter_fn is None or bool(filter_fn(module, path))
            if decided[module]:
                chosen[here] = index
    last = [links[i] for i in range(layers[-1] + 1, len(links))]
    for link in last:
        if decided.get(link.module):
            raise refuse(
                "an activation also follows the last layer", link.path, do="give it a module of its own"
            )
    return chosen


def _step(links: list[Link], layer: int) -> int:
    """What the units of this layer must be a multiple of: the groups of norms before the activation."""
    step = 1
    for link in links[layer + 1 :]:
        if type(link.module) in (*ACTIVATIONS, *_WEIGHTS):
            break
        if isinstance(link.module, nn.GroupNorm):
            step = math.lcm(step, link.module.num_groups)
    return step


def _axis(module: nn.Module) -> int:
    """The unit axis of a layer's output, counted from the end: it holds with and without a batch axis."""
    return -(module.weight.dim() - 1) if isinstance(module, _CONVS) else -1


def _settle(links: list[Link], chosen: dict[int, int], units: dict[int, int]) -> Plan:
    """Follow the channel count through the chain, old beside new."""
    plan = Plan(converted=set(chosen.values()))
    old = new = 0  # channels on the way; 0 before the first layer
    gain, layer = 1.0, -1
    fresh_input = False  # the features on the way come from a converted activation
    for index, link in enumerate(links):
        module = link.module
        if type(module) in _WEIGHTS:
            reads, gives = _sizes(module)
            now_reads = reads if old == 0 else _scaled(reads, old, new, link)
            now_gives = units.get(index, gives)
            if index in chosen or fresh_input:
                plan.sizes[index], plan.gains[index] = (now_reads, now_gives), gain
                plan.old_sizes[index] = (reads, gives)
            old, new, layer, gain, fresh_input = gives, now_gives, index, 1.0, False
        elif index in plan.converted:
            plan.dims[index] = _axis(links[layer].module)
            new, gain, fresh_input = 2 * new, PAIR_GAIN, True
        elif type(module) in ACTIVATIONS:
            gain = _GAINS.get(type(module), 1.0)
        elif isinstance(module, _NORMS) and old:
            gain = 1.0  # what it returns has second moment 1
            size = _norm_size(module, links[layer].module, link)
            if old != new or fresh_input:
                plan.norms[index] = _scaled(size, old, new, link)
                groups = module.num_groups if isinstance(module, nn.GroupNorm) else 1
                if plan.norms[index] % groups:
                    raise refuse(
                        "the new width is no multiple of its groups", link.path, found=f"{new} / {groups}"
                    )
    _check_shared(links, plan)
    return plan


def _scaled(size: int, old: int, new: int, link: Link) -> int:
    """A size that counts ``old`` channels, some number of positions each, for ``new`` channels."""
    if size % old:
        raise refuse(
            f"it reads {size} values and {old} channels arrive",
            link.path,
            do="check the sizes of the network",
        )
    return size // old * new


def _norm_size(module: nn.Module, layer: nn.Module, link: Link) -> int:
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        several = len(module.normalized_shape) > 1
        if several != (not isinstance(layer, nn.Linear)):
            raise refuse(
                "a norm whose first axis is not the channels", link.path, found=tuple(module.normalized_shape)
            )
        return module.normalized_shape[0]
    assert isinstance(module, (*_BATCH_NORMS, *_INSTANCE_NORMS))
    return module.num_features


def _check_shared(links: list[Link], plan: Plan) -> None:
    """One activation object may serve several places, as long as the unit axis is the same."""
    axes: dict[nn.Module, int] = {}
    for index in sorted(plan.converted):
        module = links[index].module
        if axes.setdefault(module, plan.dims[index]) != plan.dims[index]:
            raise refuse(
                "one activation serves layers with different unit axes",
                links[index].path,
                do="give each place a module of its own",
            )


def _matched(links: list[Link], chosen: dict[int, int]) -> Plan:
    """The common factor of all converted widths whose parameter count comes closest to the old one."""
    steps = {i: _step(links, i) for i in chosen}
    widths = {i: _sizes(links[i].module)[1] for i in chosen}
    target = sum(p.numel() for link in links for p in link.module.parameters())

    def at(factor: float) -> Plan:
        units = {i: max(1, round(factor * widths[i] / steps[i])) * steps[i] for i in chosen}
        return _settle(links, chosen, units)

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _count(links, at(middle)) < target else (low, middle)
    return min((at(low), at(high)), key=lambda plan: abs(_count(links, plan) - target))


def _count(links: list[Link], plan: Plan) -> int:
    total = 0
    for index, link in enumerate(links):
        module = link.module
        own = sum(p.numel() for p in module.parameters())
        if index in plan.sizes:
            assert isinstance(module, _WEIGHTS)
            reads, gives = plan.sizes[index]
            taps = module.weight.shape[2:].numel()
            own = reads * gives * taps + (gives if module.bias is not None else 0)
        elif index in plan.norms and own:
            first = next(module.parameters())
            own = own // first.shape[0] * plan.norms[index]
        total += own
    return total
