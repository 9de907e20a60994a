"""Which matrices does a network multiply by? Packed weights in their blocks, tied ones once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from supple.errors import AttachError
from supple.functional import weight_matrix
from supple.layouts import is_conv1d, is_linear
from supple.topology.graph import Topology

NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
#: gates stacked in one weight of a recurrent module, by mode or class
_GATES = {"LSTM": 4, "GRU": 3, "LSTMCell": 4, "GRUCell": 3}


@dataclass(frozen=True)
class Matrix:
    """One matrix: a weight, a block of units of a packed one, or the stack of a grouped convolution's.

    ``transposed``: its units are the second axis of the weight (transposed convolutions, GPT-2's Conv1D).
    """

    name: str  # qualified parameter name, "#part" for a block
    module: nn.Module
    attribute: str
    parameters: frozenset[str]  # names of the parameters it is computed from
    rows: tuple[int, ...] | slice | None = None
    groups: int = 1
    transposed: bool = False

    @property
    def plain(self) -> bool:
        """The whole of one parameter, as it is stored: rows are units, one group."""
        whole = self.rows is None and self.groups == 1 and not self.transposed
        return whole and self.parameters == {self.name}

    def read(self) -> Tensor:
        """(m, n), or (groups, m, n); through the parametrisation, if the module has one."""
        weight: Tensor = getattr(self.module, self.attribute)
        if self.rows is not None:
            rows = self.rows if isinstance(self.rows, slice) else list(self.rows)
            weight = weight[:, rows] if self.transposed else weight[rows]
        return weight_matrix(weight, self.groups, self.transposed)


@dataclass
class Inventory:
    """The parameters of a network by their role, and those without one, with the reason."""

    matrices: list[Matrix] = field(default_factory=list)
    biases: dict[str, nn.Parameter] = field(default_factory=dict)  # also the shifts of norms
    scales: dict[str, nn.Parameter] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def inventory(
    model: nn.Module, *, embeddings: bool = False, output: bool = True, topology: Topology | None = None
) -> Inventory:
    """Sort every parameter: matrix, bias, norm scale, or skipped with a reason.

    Args:
        model: any module.
        embeddings: count embedding tables as matrices.
        output: count the layers whose units leave the network (needs ``topology`` when False).
        topology: splits packed projections that only a trace can see, and knows the outputs.

    Raises:
        AttachError: a weight that a forward hook recomputes (pruning, the old ``weight_norm``).

    >>> found = inventory(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)))
    >>> [m.name for m in found.matrices], list(found.biases), list(found.scales)
    (['0.weight'], ['0.bias', '1.bias'], ['1.weight'])
    """
    names = {id(p): n for n, p in model.named_parameters()}
    outputs = (
        set() if output else {x.module for x in topology.layers.values() if x.output} if topology else set()
    )
    parts = _parts(topology)
    result, seen = Inventory(), set[str]()
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and not embeddings:
            seen_by_layer = {names[id(p)] for p in module.parameters(recurse=False)} - seen
            result.skipped.update(dict.fromkeys(seen_by_layer, "embedding table; embeddings=True covers it"))
            continue
        if isinstance(module, parametrize.ParametrizationList):
            continue
        for matrix in _of_module(module, path, names):
            if matrix.parameters <= seen:
                continue
            seen |= matrix.parameters
            if path in outputs:
                result.skipped.update(dict.fromkeys(matrix.parameters, "output layer; output=True covers it"))
            else:
                result.matrices.extend(_split(matrix, module, parts.get(matrix.name)))
        _vectors(module, path in outputs, names, seen, result)
    for name in names.values():
        if name not in seen:
            result.skipped.setdefault(name, "no known role: not a weight or bias of a layer, nor of a norm")
    result.skipped = {n: r for n, r in result.skipped.items() if n not in seen or "output" in r}
    return result


def _of_module(module: nn.Module, path: str, names: dict[int, str]) -> Iterator[Matrix]:
    for attribute in _weight_names(module):
        qualified = f"{path}.{attribute}" if path else attribute
        if parametrize.is_parametrized(module, attribute):
            inner = getattr(module.parametrizations, attribute)  # type: ignore[union-attr]
            own = frozenset(names[id(p)] for p in inner.parameters())
        elif isinstance(module._parameters.get(attribute), nn.Parameter):
            own = frozenset({names[id(module._parameters[attribute])]})
            qualified = next(iter(own))  # a tied weight goes by its first name
        else:
            raise AttachError(
                "a forward hook recomputes this weight, so a penalty on it has no graph",
                found=f"{attribute} of {type(module).__name__} is not a parameter",
                where=qualified,
                do="use torch.nn.utils.parametrizations, or make the pruning permanent",
            )
        yield Matrix(
            qualified,
            module,
            attribute,
            own,
            groups=module.groups if isinstance(module, _CONV) else 1,
            transposed=isinstance(module, _TRANSPOSED) or is_conv1d(module),
        )


def _weight_names(module: nn.Module) -> list[str]:
    if is_linear(module) or isinstance(module, (_CONV, nn.Embedding)):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        packed = ["in_proj_weight"] if module._qkv_same_embed_dim else [f"{x}_proj_weight" for x in "qkv"]
        return packed
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return [n for n, _ in module.named_parameters(recurse=False) if n.startswith("weight")]
    return []


def _split(
    matrix: Matrix, module: nn.Module, parts: list[tuple[str, tuple[int, ...]]] | None
) -> list[Matrix]:
    """The blocks of a packed weight: by the class's known layout, or by what a trace has seen."""

    def block(label: str, rows: tuple[int, ...] | slice) -> Matrix:
        return replace(matrix, name=f"{matrix.name}#{label}", rows=rows, groups=1)

    if matrix.attribute == "in_proj_weight":
        labels = ["q", "k", "v"]
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and "weight_hr" not in matrix.attribute:
        labels = [str(i) for i in range(_GATES.get(type(module).__name__, 1))]
    else:
        return [block(label, rows) for label, rows in parts] if parts else [matrix]
    if len(labels) == 1:
        return [matrix]
    size = getattr(module, matrix.attribute).shape[0] // len(labels)
    return [block(label, slice(i * size, (i + 1) * size)) for i, label in enumerate(labels)]


def _parts(topology: Topology | None) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    table: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for layer in topology.layers.values() if topology else ():
        if layer.part and layer.unit_dim == int(layer.transposed):
            table.setdefault(layer.weight, []).append((layer.part, tuple(int(i) for i in layer.rows)))
    return table


def _vectors(
    module: nn.Module, is_output: bool, names: dict[int, str], seen: set[str], to: Inventory
) -> None:
    layer = bool(_weight_names(module))
    norm = isinstance(module, NORMS)
    for attribute, parameter in module.named_parameters(recurse=False):
        name = names[id(parameter)]
        if name in seen or parameter.dim() != 1 or not (layer or norm):
            continue
        seen.add(name)
        if is_output:
            to.skipped[name] = "output layer; output=True covers it"
        elif norm and attribute == "weight":
            to.scales[name] = parameter
        else:
            to.biases[name] = parameter


def is_sharded(parameter: Tensor) -> bool:
    """A DTensor, of which each rank holds a part."""
    return isinstance(parameter, torch.Tensor) and hasattr(parameter, "full_tensor")


def refuse_sharded(model: nn.Module, name: str) -> None:
    """Each rank of a sharded model holds a part of each row: edits by index are lost without an error."""
    for path, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise AttachError(
                f"{name} does not write sharded parameters",
                found=f"{path!r} is a {type(parameter).__name__}",
                do="use DistributedDataParallel, or repair between two stages on the full, unsharded model",
            )
