"""What one probe pass saw of one layer: its units' values and gradients, its weight as matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from supple import functional as F
from supple.layouts import is_conv1d
from supple.topology.graph import Coverage, Layer, LayerCoverage, Refusal, Topology
from supple.topology.taps import Tap, Taps, layer_modules, plain_name, weight_shape

NOT_TRACED = "not traced:"


@dataclass(frozen=True)
class LayerView:
    """One layer (or one block of a packed one) in one probe pass.

    Shape letters: N samples, U units, P positions (1 without a position axis; both responses of a sin/cos
    or CReLU pair count as positions; several calls of one layer add their positions).
    """

    layer: Layer
    module: nn.Module
    parameters: Mapping[str, Tensor]
    taps: Taps
    grads: Mapping[str, Tensor | None]  # by parameter name

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def part(self) -> str:
        return self.layer.part

    @property
    def table(self) -> bool:
        """Rows that are looked up or added, and multiply nothing: embeddings, class tokens, positions."""
        return self.layer.kind == "embedding" or (self.layer.kind == "parameter" and not self.layer.fan_in)

    @cached_property
    def post(self) -> Tensor | None:
        """(N, U, P) after the first nonlinearity, None where there is none."""
        return self._units(self.taps.post_of(self.layer.module))

    @cached_property
    def op(self) -> str:
        """The nonlinearity."""
        found = self.taps.post_of(self.layer.module)
        return found[0].op if found else ""

    @property
    def reason(self) -> str:
        """Why there is no value after a nonlinearity."""
        return self.taps.reason_of(self.layer.module) or "its values have no sample axis"

    @cached_property
    def pre_grad(self) -> Tensor | None:
        """(N, U, P) gradient before the nonlinearity, None where none arrived."""
        calls = self.taps.pre.get(self.layer.module, [])
        grads = self.taps.pre_grad.get(self.layer.module, [])
        pairs = zip(calls, grads, strict=True)
        return self._units([Tap(g, tap.unit_dim) for tap, g in pairs if g is not None])

    @cached_property
    def weight(self) -> Tensor | None:
        """The weight as the layer uses it: parametrised weights computed, packed ones cut to the block."""
        attribute = getattr(self.module, "weight", None)
        whole = attribute if isinstance(attribute, Tensor) and attribute.ndim > 1 else None
        if whole is None:
            whole = self.parameters.get(self.layer.weight)
        return None if whole is None else self.cut(whole.detach())

    @cached_property
    def weight_grad(self) -> Tensor | None:
        """The batch gradient of the weight, cut to the block; None where it has none."""
        grad = self.grads.get(self.layer.weight)
        return None if grad is None or grad.layout is not torch.strided else self.cut(grad)

    @property
    def unit_dim(self) -> int:
        return self.layer.unit_dim

    @property
    def groups(self) -> int:
        return int(getattr(self.module, "groups", 1))

    @cached_property
    def matrix(self) -> Tensor | None:
        """The weight as a matrix, (groups, rows, columns) for a grouped convolution."""
        if self.weight is None:
            return None
        return F.weight_matrix(self.weight, self.groups, self.layer.transposed)

    def cut(self, tensor: Tensor) -> Tensor:
        """The rows of this block of a packed weight (all rows of an ordinary one)."""
        if not self.part:
            return tensor
        return tensor.index_select(self.unit_dim, torch.as_tensor(self.layer.rows, device=tensor.device))

    def _units(self, taps: list[Tap]) -> Tensor | None:
        parts = [t.tensor.movedim(t.unit_dim, 1).flatten(2) for t in taps if t.tensor.ndim > 2]
        parts += [t.tensor.unsqueeze(-1) for t in taps if t.tensor.ndim == 2]
        if not parts:
            return None
        if len({p.shape[0] for p in parts}) > 1:
            # calls on different numbers of samples: every response becomes a sample
            parts = [p.movedim(1, -1).flatten(0, 1).unsqueeze(-1) for p in parts]
            joined = torch.cat(parts)
        else:
            joined = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        if self.part:
            joined = joined.index_select(1, torch.as_tensor(self.layer.rows, device=joined.device))
        return joined.to(torch.promote_types(joined.dtype, torch.float32))


def layers_by_type(model: nn.Module, taps: Taps, output: Tensor | None, why: str) -> Topology:
    """A topology without edges, from module types alone, for networks that cannot be traced.

    A layer whose last value is the network's output is an output layer. ``why`` becomes a refusal.
    """
    layers: dict[str, Layer] = {}
    parameters = {plain_name(n): p for n, p in model.named_parameters(remove_duplicate=False)}
    for name, module in layer_modules(model).items():
        shape = weight_shape(module) or ()
        kind = _kind(module, shape)
        unit_dim = 1 if kind in ("conv_transpose", "embedding") or is_conv1d(module) else 0
        prefix = f"{name}." if name else ""
        weight = f"{prefix}weight"
        units = taps.units.get(name, shape[unit_dim])
        layers[name] = Layer(
            name=name,
            module=name,
            kind=kind,
            weight=weight,
            bias=f"{prefix}bias" if f"{prefix}bias" in parameters else None,
            units=units,
            rows=torch.arange(units).numpy(),
            unit_dim=unit_dim,
            output=_is_output(taps.pre.get(name, []), output),
            trainable=weight not in parameters or parameters[weight].requires_grad,
            calls=len(taps.pre.get(name, [])),
        )
    rows = [
        LayerCoverage(n, type(m).__name__, sum(p.numel() for p in m.parameters(recurse=False)), n in taps.pre)
        for n, m in layer_modules(model).items()
    ]
    return Topology(layers, (), (Refusal("", f"{NOT_TRACED} {why}"),), Coverage(tuple(rows)))


def _kind(module: nn.Module, shape: tuple[int, ...]) -> str:
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "conv_transpose"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    return "conv" if len(shape) > 2 else "linear"


def _is_output(calls: list[Tap], output: Tensor | None) -> bool:
    if output is None or not calls:
        return False
    last = calls[-1].tensor
    return last.shape == output.shape and torch.equal(last.to(output.dtype), output.detach())


def square_sum(value: Tensor) -> Tensor:
    """Sum of squares in float64, row by row: one long float32 sum loses digits."""
    value = value.to_dense() if value.layout is not torch.strided else value
    rows = value.detach().reshape(value.shape[0], -1) if value.ndim > 1 else value.detach().reshape(1, -1)
    return (
        torch.linalg.vector_norm(rows.float() if rows.dtype.itemsize < 4 else rows, dim=1)
        .double()
        .square()
        .sum()
    )
