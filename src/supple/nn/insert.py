"""Put a normalisation before every nonlinearity of an existing network."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from supple.errors import InputError, TopologyError
from supple.nn.chain import _looking, refuse_replicated
from supple.topology import trace
from supple.topology.inputs import Inputs, call, shrink

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS = ("layer", "rms")


@dataclass(frozen=True)
class Insertion:
    """What `insert_norms_` did: parameters before and after, and where which norm stands."""

    kind: str
    before: int
    after: int
    places: tuple[tuple[str, str], ...]  # path of the layer, the norm behind it

    def __str__(self) -> str:
        lines = [
            f"insert_norms_: {len(self.places)} norms, {self.before} -> {self.after} parameters "
            f"({self.after / max(self.before, 1):.3f} x)"
        ]
        return "\n".join([*lines, *(f"  behind {path}: {norm}" for path, norm in self.places)])


def insert_norms_(
    model: nn.Module,
    inputs: Inputs,
    kind: str = "layer",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    verbose: bool = True,
) -> Insertion:
    """Put a norm behind every hidden layer that has none and is followed by a nonlinearity, in place.

    LayerNorm (Ba et al. 2016) over the features of a linear layer, ``GroupNorm(1, C)``, the same over channels and
    positions, behind a convolution; scales 1 and shifts 0. The first half of normalise-and-project (Lyle et al. 2024,
    arXiv 2407.01800); with ``weight_decay`` it is the combination of Lyle et al. 2024 (arXiv 2402.18762). On a
    residual branch the norm stands behind the layer, before the sum.

    A layer ``fc`` becomes ``Sequential(layer=fc, norm=...)``, so ``fc.weight`` is then ``fc.layer.weight``: build
    the optimizer afterwards, and load older checkpoints before. The function of the network changes.

    Args:
        model: any network that `supple.topology.trace` can follow.
        inputs: a small batch.
        kind: "layer" or "rms" (linear layers only).
        filter_fn: ``(layer, path) -> bool``; False leaves that layer without.
        verbose: print what was done.

    Raises:
        TopologyError: nothing to normalise, the network cannot be followed, a layer that is no Linear or Conv, the
            network does not run with the norms (a forward pass that reads ``fc.weight`` itself), or it is wrapped
            in DistributedDataParallel; the path is named and nothing has been written then.
        InputError: an unknown kind.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> print(insert_norms_(net, torch.randn(3, 4), verbose=False))
    insert_norms_: 1 norms, 58 -> 74 parameters (1.276 x)
      behind 0: LayerNorm(8)
    """
    if kind not in KINDS:
        raise InputError("unknown kind of norm", found=kind, do=f"choose one of {', '.join(KINDS)}")
    refuse_replicated(model, "insert_norms_")
    small = shrink(inputs, 2)
    places = _places(model, small, kind, filter_fn)
    _try_on_copy(model, small, kind, list(places))
    before = sum(p.numel() for p in model.parameters())
    _write(model, kind, list(places))
    after = sum(p.numel() for p in model.parameters())
    result = Insertion(kind, before, after, tuple(places.items()))
    if verbose:
        print(result)
    return result


def _places(
    model: nn.Module, inputs: Inputs, kind: str, filter_fn: Callable[[nn.Module, str], bool] | None
) -> dict[str, str]:
    """Path of each layer that gets a norm, and what it will be called; refuses what has no form."""
    topology = trace(model, inputs)
    found: dict[str, str] = {}
    for layer in topology.layers.values():
        if layer.output or layer.norms or layer.activation is None or layer.kind == "embedding":
            continue
        path = layer.module
        module = model.get_submodule(path)
        if path in found or (filter_fn is not None and not filter_fn(module, path)):
            continue
        if layer.part or not isinstance(module, (nn.Linear, *_CONVOLUTIONS)) or not path:
            raise TopologyError(
                "a norm can only stand behind a Linear or Conv module inside the network",
                found=type(module).__name__ + (f", block {layer.part}" if layer.part else ""),
                where=path or "the model itself",
                do="leave it out with filter_fn",
            )
        if kind == "rms" and not isinstance(module, nn.Linear):
            raise TopologyError(
                'kind="rms" has no form behind a convolution', where=path, do='use kind="layer", or filter_fn'
            )
        found[path] = _name(module, kind)
    if not found:
        refusals = "; ".join(f"{r.reason} at {r.path or 'the model'}" for r in topology.refusals[:3])
        raise TopologyError(
            "no hidden layer without a norm is followed by a nonlinearity",
            found=refusals or "nothing to normalise",
        )
    return found


def _name(module: nn.Module, kind: str) -> str:
    if isinstance(module, nn.Linear):
        return f"{'LayerNorm' if kind == 'layer' else 'RMSNorm'}({module.out_features})"
    return f"GroupNorm(1, {module.out_channels})"


def _norm(module: nn.Module, kind: str) -> nn.Module:
    weight = torch.as_tensor(module.weight)  # also of a parametrised layer
    if isinstance(module, nn.Linear):
        made: nn.Module = (nn.LayerNorm if kind == "layer" else nn.RMSNorm)(module.out_features)
    else:
        made = nn.GroupNorm(1, weight.shape[0])
    return made.to(device=weight.device, dtype=weight.dtype).train(module.training)


def _write(model: nn.Module, kind: str, paths: list[str]) -> None:
    """Replace each layer, under all its paths, by itself and a norm."""
    made: dict[nn.Module, nn.Module] = {}
    for path in paths:
        module = model.get_submodule(path)
        pair = nn.Sequential(OrderedDict(layer=module, norm=_norm(module, kind)))
        made[module] = pair.train(module.training)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in made:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made[module])


def _try_on_copy(model: nn.Module, inputs: Inputs, kind: str, paths: list[str]) -> None:
    with _looking(model):
        wanted = call(model, inputs)
        twin = copy.deepcopy(model)
        _write(twin, kind, paths)
        try:
            got = call(twin, inputs)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise TopologyError(
                "the network does not run with norms in these places",
                found=str(error).splitlines()[0],
                where=", ".join(paths),
                do="a forward pass that reads layer.weight itself cannot be changed from outside; use filter_fn",
            ) from error
    if isinstance(wanted, torch.Tensor) and got.shape != wanted.shape:
        raise TopologyError(
            "the network with norms returns another shape",
            found=f"{tuple(got.shape)}, not {tuple(wanted.shape)}",
        )
