"""Running sums over what flows through a module during training, read once per optimizer step.

Training mode with gradients only: evaluation and rollouts are ignored. Everything is detached and in float32
or better. Several forward passes before one step (gradient accumulation) are averaged, weighted by their
number of samples and positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from supple.interventions.channels import Site, channel_dim
from supple.interventions.hooks import OwnHook
from supple.interventions.sums import absolute_sum

#: the running mean to measure deviations from: (module path, batch mean (C,)) -> (C,)
Centre = Callable[[str, Tensor], Tensor]


class Gauge:
    """Sums per channel of one module: of |x|, and if asked of x and of |x - centre|; or of x > 0 alone."""

    def __init__(
        self,
        path: str,
        width: int,
        signed: bool = False,
        centre: Centre | None = None,
        positive: bool = False,
    ) -> None:
        self.path, self.width, self.signed, self.centre, self.positive = path, width, signed, centre, positive
        self.sums: dict[str, Tensor] = {}
        self.count = 0  # samples times positions; samples alone where positive values are counted

    def add(self, module: nn.Module, value: Tensor) -> None:
        value = value.detach()  # nothing below needs a gradient, so no_grad, which costs more, is not entered
        axis = channel_dim(module, value)
        count = value.numel() // max(value.shape[axis], 1)
        if not count:
            return
        if self.positive:
            others = [d for d in range(value.dim()) if d != axis]
            self._sum("positive", (value > 0).sum(others, dtype=torch.float32))
            self.count += value.shape[0]
            return
        if self.centre is None:
            self._sum("absolute", absolute_sum(value, axis))
        if self.signed or self.centre is not None:
            dtype = value.dtype if value.dtype == torch.float64 else torch.float32
            total = value.sum([d for d in range(value.dim()) if d != axis], dtype=dtype)
            self._sum("signed", total)
            if self.centre is not None:
                shape = [1] * value.dim()
                shape[axis] = -1
                centre = self.centre(self.path, total / count).view(shape).to(dtype)
                self._sum("deviation", absolute_sum(value - centre, axis))
        self.count += count

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def mean(self, name: str) -> Tensor:
        """(C,) mean over everything that was added since `clear`."""
        return self.sums[name] / self.count

    def clear(self) -> None:
        self.sums, self.count = {}, 0


class Meter:
    """The gauges of an intervention, their hooks, and the sum over the replicas of a distributed model."""

    def __init__(self, group: Any = None) -> None:
        self.gauges: dict[str, Gauge] = {}
        self.active = True
        self.group = group  # process group of a DistributedDataParallel model
        self._removers: list[Any] = []

    def watch_input(self, site: Site, module: nn.Module, **options: Any) -> Gauge:
        """A gauge on what the module reads; one per module."""
        gauge = self._gauge(site, options)
        if gauge is not None:

            def read(module: nn.Module, args: tuple[Any, ...]) -> None:
                if self.active and module.training and torch.is_grad_enabled() and args:
                    gauge.add(module, args[0])

            self._removers.append(module.register_forward_pre_hook(OwnHook(read)))
        return self.gauges[site.module]

    def watch_output(self, site: Site, module: nn.Module, **options: Any) -> Gauge:
        """A gauge on what the module gives, before anything is done to it in place."""
        gauge = self._gauge(site, options)
        if gauge is not None:

            def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if self.active and module.training and torch.is_grad_enabled() and isinstance(output, Tensor):
                    gauge.add(module, output)

            self._removers.append(module.register_forward_hook(OwnHook(read)))
        return self.gauges[site.module]

    def watch_output_gradient(self, site: Site, module: nn.Module) -> Gauge:
        """A gauge on dL/d(what the module gives): a tensor hook, placed only when the meter is active.

        Gradients that are not finite are left out: a scaler that scaled too far skips their step.
        """
        gauge = self._gauge(site, {})
        if gauge is not None:

            def add(module: nn.Module, gradient: Tensor) -> None:
                if bool(torch.isfinite(gradient.sum(dtype=torch.float32))):
                    gauge.add(module, gradient)

            def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if self.active and module.training and isinstance(output, Tensor) and output.requires_grad:
                    output.register_hook(functools.partial(add, module))

            self._removers.append(module.register_forward_hook(OwnHook(read)))
        return self.gauges[site.module]

    def _gauge(self, site: Site, options: dict[str, Any]) -> Gauge | None:
        """A new gauge, or None where the module has one."""
        if site.module in self.gauges:
            return None
        self.gauges[site.module] = Gauge(site.module, site.width, **options)
        return self.gauges[site.module]

    def reduce(self, paths: Iterable[str], device: torch.device) -> None:
        """Sum the gauges over all replicas; every rank must call it, also one that saw no sample."""
        if self.group is None:
            return
        gauges = [self.gauges[p] for p in paths]
        names = [(g, n) for g in gauges for n in _names(g)]
        zero = torch.zeros((), dtype=torch.float64, device=device)
        parts = [g.sums[n].double() if n in g.sums else zero.expand(g.width) for g, n in names]
        flat = torch.cat([zero.new_tensor([float(g.count) for g in gauges]), *parts])
        torch.distributed.all_reduce(flat, group=self.group)
        for gauge, count in zip(gauges, flat[: len(gauges)].tolist(), strict=True):
            gauge.count = round(count)
        start = len(gauges)
        for gauge, name in names:
            dtype = gauge.sums[name].dtype if name in gauge.sums else torch.float32
            gauge.sums[name] = flat[start : start + gauge.width].to(dtype)
            start += gauge.width

    def state(self) -> dict[str, Any]:
        """What was added since the last step."""
        return {
            path: {"count": g.count, "sums": {k: v.clone() for k, v in g.sums.items()}}
            for path, g in self.gauges.items()
            if g.count
        }

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        for path, gauge in self.gauges.items():
            gauge.clear()
            if path in state:
                gauge.count = int(state[path]["count"])
                gauge.sums = {k: v.clone().to(device) for k, v in state[path]["sums"].items()}

    def remove(self) -> None:
        for remover in self._removers:
            remover.remove()
        self._removers.clear()


def _names(gauge: Gauge) -> list[str]:
    if gauge.positive:
        return ["positive"]
    if gauge.centre is not None:
        return ["signed", "deviation"]
    return ["absolute", "signed"] if gauge.signed else ["absolute"]
