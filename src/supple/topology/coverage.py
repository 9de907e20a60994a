"""Every parameterised layer of a model, seen or not, and why."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from supple.topology.graph import Coverage, Layer, LayerCoverage
from supple.topology.parameters import Parameter
from supple.topology.tracer import Tracer

UNUSED = "not used in this forward pass"


def cover(tracer: Tracer, model: nn.Module, layers: dict[str, Layer]) -> Coverage:
    """One row for each module that owns parameters; a row for each parameter where their fates differ."""
    owned: dict[str, list[Parameter]] = defaultdict(list)
    for parameter in tracer.parameters.items:
        module, _ = parameter.owner()
        owned[module].append(parameter)
    rows: list[LayerCoverage] = []
    for path, module in tracer.modules.items():
        mine = owned.get(path, [])
        fates = {_fate(p) for p in mine}
        kind = _type_name(module)
        if len(fates) == 1:
            seen, why = fates.pop()
            note = why or _remarks(mine, layers)
            rows.append(LayerCoverage(path, kind, sum(p.tensor.numel() for p in mine), seen, note))
        elif fates:
            for p in mine:
                seen, why = _fate(p)
                note = why or _remarks([p], layers)
                rows.append(LayerCoverage(p.name, kind, p.tensor.numel(), seen, note))
        elif _tied_elsewhere(module) and ".parametrizations." not in f".{path}.":
            rows.append(LayerCoverage(path, kind, 0, True, "its weight is tied to another layer's"))
        elif hasattr(module, "_packed_params"):
            rows.append(LayerCoverage(path, kind, 0, False, "quantised weights are not resolved"))
    return Coverage(tuple(rows))


def _fate(parameter: Parameter) -> tuple[bool, str]:
    opaque = sorted(r.removeprefix("opaque:") for r in parameter.roles if r.startswith("opaque:"))
    if opaque:
        return False, f"not resolved: {'; '.join(opaque)}"
    if not parameter.roles:
        return False, UNUSED
    return True, ""


def _remarks(parameters: list[Parameter], layers: dict[str, Layer]) -> str:
    """What a reader should know about a layer that was seen."""
    notes = []
    if not any(p.tensor.requires_grad for p in parameters):
        notes.append("frozen")
    names = {p.name for p in parameters}
    locks = {layer.lock for layer in layers.values() if layer.weight in names and layer.lock}
    return "; ".join([*notes, *sorted(locks)])


def _tied_elsewhere(module: nn.Module) -> bool:
    """The module has parameters, and each of them is listed under an earlier name."""
    return bool(module._parameters) and any(p is not None for p in module._parameters.values())


def _type_name(module: nn.Module) -> str:
    """The class, without the prefix that a parametrisation adds."""
    name = type(module).__name__
    return name.removeprefix("Parametrized") or name
