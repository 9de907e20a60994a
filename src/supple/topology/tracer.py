"""The dispatch mode: runs every operation, then lets the operation's rule move the ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from supple.errors import TopologyError
from supple.topology.ids import LOST, Kind, Sources, Table
from supple.topology.parameters import Parameters
from supple.topology.record import Recorder
from supple.topology.shadow import Path, Paths, Shadows, merge_paths

Arguments = dict[str, Any]
Rule = Callable[["Tracer", "Operation"], None]
R = TypeVar("R", bound=Rule)

#: the rule of each operator, by name without overload and without the trailing underscore
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[R], R]:
    """Register a function as the rule of some operators."""

    def add(function: R) -> R:
        for name in names:
            RULES[name] = function
        return function

    return add


class Operation:
    """One executed operator: its name, its arguments by schema name, what it returned."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name = func._schema.name.split("::")[-1].rstrip("_")
        self.arguments: Arguments = {a.name: a.default_value for a in func._schema.arguments}
        names = [a.name for a in func._schema.arguments]
        self.arguments.update(zip(names, args, strict=False))
        self.arguments.update(kwargs)
        self.result: Any = None

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensor arguments."""
        return list(leaves((self.args, self.kwargs)))

    @property
    def outputs(self) -> list[Tensor]:
        return list(leaves(self.result))

    @property
    def written(self) -> list[Tensor]:
        """The arguments that the operator changes."""
        out: list[Tensor] = []
        for argument in self.func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                out.extend(leaves(self.arguments[argument.name]))
        return out


def leaves(item: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclass-like outputs."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (list, tuple)):
        for x in item:
            yield from leaves(x)
    elif hasattr(item, "values") and hasattr(item, "keys"):
        for x in item.values():
            yield from leaves(x)
    elif hasattr(item, "__dataclass_fields__"):
        for name in item.__dataclass_fields__:
            yield from leaves(getattr(item, name))


class Tracer(TorchDispatchMode):
    """Carries the ids through one forward pass and fills a `Recorder`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `Flow`: spares the import of torch's compiler

    def __init__(self, model: nn.Module, rules: dict[str, Rule]) -> None:
        super().__init__()
        self.rules = rules
        self.table = Table()
        self.shadows = Shadows(lambda a, b: self.table.union(a, b, Kind.MIX))
        self.parameters = Parameters(model, self.shadows)
        self.record = Recorder(self.table)
        self.buffers: dict[int, str] = {}
        for name, buffer in model.named_buffers():
            self.shadows.constant(buffer)
            self.buffers[self.shadows.key(buffer)] = name
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.stack: list[str] = [""]
        self.muted = 0  # inside a module that is refused as a whole, or inside printing

    @property
    def place(self) -> str:
        """Path of the module under way."""
        return self.stack[-1]

    # -- the mode -------------------------------------------------------------------------------
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.muted:
            return func(*args, **kwargs)
        operation = Operation(func, args, kwargs)
        before = {self.shadows.key(t) for t in operation.tensors}
        operation.result = func(*args, **kwargs)
        fresh = all(self.shadows.key(t) not in before for t in operation.outputs)
        if not fresh and not operation.written:
            return operation.result  # a view: its storage has its ids already
        self._follow(operation)
        return operation.result

    def _follow(self, operation: Operation) -> None:
        metas = [self.shadows.meta(t) for t in operation.tensors]
        known = [m for m in metas if m is not None]
        if all(m.ids is None and not m.base for m in known) and operation.name not in self.rules:
            if len(known) == len(metas):
                self.spread(operation, None)
            else:
                self.spread(operation, torch.tensor(LOST))
            return
        handler = self.rules.get(operation.name)
        if handler is None and torch.Tag.pointwise in operation.func.tags:
            handler = self.rules["*pointwise"]
        (handler or self.rules["*opaque"])(self, operation)

    # -- what rules use -------------------------------------------------------------------------
    def ids(self, tensor: Any) -> Tensor | None:
        """Ids in the tensor's shape, None where constant or not a tensor."""
        return self.shadows.read(tensor) if isinstance(tensor, Tensor) else None

    def known(self, tensor: Tensor) -> Tensor:
        """Ids of a tensor that `is_weights` or `has_features` has found to have them."""
        ids = self.shadows.read(tensor)
        if ids is None:
            raise TopologyError("a constant has no origin", found=tuple(tensor.shape), where=self.place)
        return ids

    def paths(self, *tensors: Any) -> Paths:
        metas = [self.shadows.meta(t) for t in tensors if isinstance(t, Tensor)]
        return merge_paths(*(m.paths for m in metas if m))

    def is_weights(self, tensor: Any) -> bool:
        """Whether the tensor holds elements of parameters (and no features)."""
        meta = self.shadows.meta(tensor) if isinstance(tensor, Tensor) else None
        return bool(meta and meta.weights)

    def has_features(self, tensor: Any) -> bool:
        """Whether the tensor has an origin in units or in the network's input."""
        meta = self.shadows.meta(tensor) if isinstance(tensor, Tensor) else None
        return bool(meta and meta.ids is not None and not meta.weights)

    def sources(self, *tensors: Any) -> Sources:
        """Every site that the tensors depend on."""
        found = [t for t in tensors if self.has_features(t)]
        return frozenset().union(*(self.table.sources_of(self.shadows.unique(t)) for t in found))

    def spread(self, operation: Operation, ids: Tensor | None, paths: Paths | None = None) -> None:
        """Give all results (and written arguments) ids that broadcast to them."""
        for tensor in operation.written or operation.outputs:
            self.shadows.write(tensor, ids, paths)

    def step(self, paths: Paths, op: str, offset: bool = False) -> Paths:
        return {site: path.then(op, offset) for site, path in paths.items()}

    def touch(self, tensor: Any, role: str) -> None:
        """Note what the parameters in a tensor were used for."""
        if self.is_weights(tensor):
            for index in self.parameters.of(self.known(tensor)):
                self.parameters.items[index].roles.add(role)

    def drop(self, operation: Operation, tensor: Any, reason: str) -> None:
        """The influence of a tensor cannot be followed: refuse the layers it depends on."""
        self.record.suspect(self.place, reason, operation.name, self.sources(tensor))

    def features(self, tensor: Tensor, axis: int) -> tuple[Tensor | None, Paths]:
        """Ids of a tensor read as activations, with its channels along ``axis``."""
        ids = self.ids(tensor)
        if ids is None or not self.is_weights(tensor):
            return ids, self.paths(tensor)
        return self.units_of(ids, axis)

    def units_of(self, ids: Tensor, axis: int) -> tuple[Tensor, Paths]:
        """`as_units` with the paths of what it made."""
        units = self.as_units(ids, axis)
        sources = self.table.sources_of(torch.unique(units).tolist())
        return units, {site: Path() for site in sources}

    def as_units(self, ids: Tensor, axis: int) -> Tensor:
        """Parameter elements that act as activations (a token, a positional table) become units."""
        out = ids.clone()
        for index in self.parameters.of(ids):
            parameter = self.parameters.items[index]
            here = (ids >= parameter.start) & (ids < parameter.start + parameter.span)
            dims = self._varying(ids, here, index, axis)
            if dims is None:
                self.record.refuse(self.place, "bare parameter with unknown channels", "", parameter.name)
                out[here] = self.table.opaque(frozenset())
                parameter.roles.add("opaque:bare parameter")
                continue
            stack = tuple(self.stack)
            site = self.record.site(parameter, index, dims, "parameter", stack)
            site.calls += 1
            parameter.roles.add("producer")
            coordinate = parameter.coordinates(ids[here].numpy())[dims]
            out[here] = torch.from_numpy(coordinate) + site.start
        return out

    def _varying(self, ids: Tensor, here: Tensor, index: int, axis: int) -> int | None:
        """The one dimension of the parameter whose coordinate follows ``axis``."""
        parameter = self.parameters.items[index]
        moved, inside = ids.movedim(axis, 0).flatten(1), here.movedim(axis, 0).flatten(1)
        if moved.shape[0] == 1:
            candidates = [d for d, n in enumerate(parameter.tensor.shape) if n == 1]
            return candidates[-1] if candidates else None
        for column in range(moved.shape[1]):
            if bool(inside[:, column].all()):
                coordinates = parameter.coordinates(moved[:, column].numpy())
                varying = [d for d, c in enumerate(coordinates) if (c != c[0]).any()]
                return varying[0] if len(varying) == 1 else None
        return None
