"""Weight clipping: after every step each weight lies within a multiple of its initial range."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import AttachError, InputError
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle, Optimizers, optimizer_list
from supple.interventions.matrices import Matrix, inventory, refuse_sharded
from supple.interventions.penalty import Filter, held_parameters, owners
from supple.interventions.registry import register
from supple.layouts import is_linear
from supple.status import Mechanism


@register
@dataclass(frozen=True, kw_only=True)
class WeightClipping(Intervention):
    """θ ← clip(θ, −kappa · s, kappa · s) after every step, s = 1/√fan_in of the parameter's layer (RNN: 1/√hidden).

    1/√fan_in is the bound of PyTorch's uniform initialisation, of weights and of biases. Mechanism: weight growth.
    Cost: one clamp per parameter and step. Source: Elsayed, Lan, Lyle, Mahmood, "Weight clipping for deep continual
    and reinforcement learning", arXiv 2407.01704.

    Covers the weights of linear, convolution and recurrent layers and of attention projections, and the biases of
    the same modules. In the published code a bias uses the fan_in of the parameter before it, so that norm layers
    and layers whose bias stands alone get a wrong bound; here a bias has its own layer's, and norms, embeddings and
    parameters of no known role are left alone (``handle.skipped``). A network that was initialised with larger
    weights (He normal, say) is clipped into the range at its first step.

    Args:
        kappa: multiple of the initial bound, > 0. The authors tried 1 to 5 and chose per problem; 3 is the middle.
        output: the last layer too (their ``clip_last_layer``, which they varied). Without ``inputs`` at attach the
            last matrix is taken for it.
        filter_fn: ``(module, parameter name) -> bool``; False leaves the parameter alone.

    >>> model = nn.Linear(4, 2)
    >>> opt = torch.optim.SGD(model.parameters(), lr=100.0)
    >>> handle = WeightClipping(kappa=1.0).attach(model, opt)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> opt.step(); model.weight.abs().max().item()
    0.5
    """

    mechanism: ClassVar[Mechanism | None] = Mechanism.WEIGHT_GROWTH
    cost: ClassVar[str] = "low"
    level: ClassVar[int] = 1
    source: ClassVar[str] = "Elsayed et al., arXiv 2407.01704"

    kappa: float = 3.0
    output: bool = True
    filter_fn: Filter | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kappa) and self.kappa > 0):
            raise InputError("WeightClipping: kappa must be finite and positive", found=self.kappa)

    def attach(self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None) -> WeightClippingHandle:
        """Find the bound of every parameter, then hook; ``inputs`` tell which layer is the output."""
        refuse_sharded(model, self.name)
        bounds, skipped = self._bounds(model, inputs)
        held = {n for table in held_parameters(model, optimizer_list(optimizer)) for n in table}
        bounds = {n: b for n, b in bounds.items() if n in held}
        if not bounds:
            raise AttachError(
                "WeightClipping covers no parameter of this model", found=skipped, do="check filter_fn"
            )
        return WeightClippingHandle(self, model, optimizer, bounds, skipped)

    def _bounds(self, model: nn.Module, inputs: Any) -> tuple[dict[str, float], dict[str, str]]:
        topology = None
        if inputs is not None and not self.output:
            from supple.topology import trace

            topology = trace(model, inputs)
        parts = inventory(model, output=self.output, topology=topology)
        modules = owners(model)
        matrices = list(parts.matrices)
        if topology is None and not self.output and matrices:
            last = matrices[-1].module
            matrices = [m for m in matrices if m.module is not last]
            parts.skipped.update({n: "taken for the output layer" for n, m in modules.items() if m is last})
        fan_in: dict[int, int] = {}  # of each module
        bounds: dict[str, float] = {}
        for matrix in matrices:
            if matrix.parameters != {matrix.name.partition("#")[0]}:
                parts.skipped[matrix.name] = "parametrised: what is stored is not the weight"
                continue
            (name,) = matrix.parameters
            fan_in[id(matrix.module)] = _fan_in(matrix)
            bounds[name] = self.kappa / math.sqrt(fan_in[id(matrix.module)])
        for name in parts.biases:
            owner = modules[name]
            if id(owner) in fan_in:
                bounds[name] = self.kappa / math.sqrt(fan_in[id(owner)])
            else:
                parts.skipped.setdefault(
                    name, "no weight of its own layer tells a bound (a norm, or an output)"
                )
        parts.skipped.update(dict.fromkeys(parts.scales, "the scale of a norm"))
        if self.filter_fn is not None:
            bounds = {n: b for n, b in bounds.items() if self.filter_fn(modules[n], n)}
        return bounds, parts.skipped


def _fan_in(matrix: Matrix) -> int:
    """As PyTorch's initialiser counts: a transposed convolution by output channels, an RNN by its hidden size."""
    if isinstance(matrix.module, nn.RNNBase | nn.RNNCellBase):
        return int(matrix.module.hidden_size)
    if matrix.transposed and not is_linear(matrix.module):
        return matrix.module.get_parameter(matrix.attribute)[0].numel()
    return matrix.read().shape[-1]


class WeightClippingHandle(Handle):
    """Clamps in the post-hook, each parameter after the step of the optimizer that holds it."""

    refuses_closure = False

    def __init__(
        self, intervention: WeightClipping, model: nn.Module, optimizer: Optimizers, bounds: dict[str, float],
        skipped: dict[str, str],
    ) -> None:  # fmt: skip
        super().__init__(intervention, model, optimizer)
        self.bounds, self.skipped = bounds, skipped
        self._held: list[dict[str, Tensor]] = [
            {n: p for n, p in table.items() if n in bounds}
            for table in held_parameters(model, self.optimizers)
        ]

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer) -> None:
        for name, parameter in self._held[self._index(optimizer)].items():
            if parameter.requires_grad:
                parameter.clamp_(-self.bounds[name], self.bounds[name])
