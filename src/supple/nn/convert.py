"""Put CReLU or Fourier features into an existing network, widths kept consistent, or refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from supple.errors import InputError, TopologyError
from supple.nn.branches import BranchPlan, plan_branches
from supple.nn.chain import Link, _looking, module_chain, refuse_replicated
from supple.nn.pairs import CReLU, DeepFourier, init_pairs_
from supple.nn.widths import ACTIVATIONS, Conversion, Plan, make_plan
from supple.topology.inputs import Inputs, call, leaves, shrink

PAIRS: dict[str, type[nn.Module]] = {"fourier": DeepFourier, "crelu": CReLU}
WIDTHS = ("half", "match_params", "double")


def convert_(
    model: nn.Module,
    activation: str = "fourier",
    width: Literal["half", "match_params", "double"] = "half",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    inputs: Inputs | None = None,
    verbose: bool = True,
) -> Conversion:
    """Replace activations of an MLP, a ConvNet, a ResNet or a transformer's MLPs by pairs, in place.

    The parameter counts before and after are printed. In a network with branches (it needs ``inputs``) the hidden
    units inside the branches are converted, and the stream between them keeps its width; an activation that cannot
    be converted (on the stream, used at several places, in a gate) stays and is listed with its reason.

    A pair activation gives two features per unit, so one of these must hold:

    * ``"half"``: half as many units, the next layer keeps its inputs (about half the parameters between
      converted layers; the deep-Fourier paper's choice);
    * ``"match_params"``: all converted widths scaled by one factor, so that the parameter count comes as
      close to the old one as whole units allow (about 0.7 of the units);
    * ``"double"``: as many units as before, the next layer reads twice as many inputs.

    The result is a **new network**: every layer that feeds or reads a pair is drawn afresh from the global
    generator, N(0, g²/fan_in) with g = √2 where it reads pairs and 1 where it reads raw inputs or normalised
    features; norms of changed features start at 1 and 0. Build the optimizer afterwards. The last layer
    keeps its outputs and stays linear; what follows it (a final sigmoid, say) is left alone.

    Args:
        model: Linear, Conv, norms, activation modules. Nested `nn.Sequential` are read as they stand; anything
            else needs ``inputs`` and is watched on one pass.
        activation: "fourier" ([sin z, cos z]) or "crelu" ([relu z, relu −z]).
        width: see above.
        filter_fn: ``(activation module, path) -> bool``; False keeps that activation.
        inputs: a small batch; the converted copy is also tried on it before anything is written.
        verbose: print the conversion.

    Returns:
        A `Conversion` with the counts before and after and each layer's sizes.

    Raises:
        TopologyError: no activation that can be converted (functional ones cannot), weight sharing, unknown
            modules, odd widths to halve, a DistributedDataParallel wrapper, with the path; nothing has been written
            then.
        InputError: unknown activation or width.

    >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> print(convert_(net, "crelu", verbose=False))
    convert_: ReLU -> CReLU, width="half": 2410 -> 1370 parameters (0.568 x)
      0 (Linear): 64 -> 32 becomes 64 -> 16
      2 (Linear): 32 -> 10 becomes 32 -> 10
    """
    if activation not in PAIRS:
        raise InputError("unknown activation", found=activation, do=f"choose one of {', '.join(PAIRS)}")
    if width not in WIDTHS:
        raise InputError("unknown width", found=width, do=f"choose one of {', '.join(WIDTHS)}")
    refuse_replicated(model, "convert_")
    small = None if inputs is None else shrink(inputs, 2)
    old, changes, write = _planned(model, activation, width, filter_fn, small)
    if small is not None:
        _try_on_copy(model, write, small)
    before = sum(p.numel() for p in model.parameters())
    write(model)
    after = sum(p.numel() for p in model.parameters())
    result = Conversion("/".join(sorted(old)), PAIRS[activation].__name__, width, before, after, changes)
    if verbose:
        print(result)
    return result


Write = Callable[[nn.Module], None]


def _planned(
    model: nn.Module,
    activation: str,
    width: str,
    filter_fn: Callable[[nn.Module, str], bool] | None,
    inputs: Inputs | None,
) -> tuple[set[str], tuple[str, ...], Write]:
    """Old activations, the changes in words, and what carries them out on the model or a copy."""
    try:
        links = module_chain(model, inputs)
    except TopologyError as error:
        if inputs is None:
            raise
        return _planned_branches(model, activation, width, filter_fn, inputs, error)
    plan = make_plan(links, width, filter_fn)

    def write(network: nn.Module) -> None:
        paths = dict(network.named_modules())
        _write(network, [Link(x.path, paths[x.path]) for x in links], plan, activation)

    return {type(links[i].module).__name__ for i in plan.converted}, tuple(plan.changes(links)), write


def _planned_branches(
    model: nn.Module,
    activation: str,
    width: str,
    filter_fn: Callable[[nn.Module, str], bool] | None,
    inputs: Inputs,
    no_chain: TopologyError,
) -> tuple[set[str], tuple[str, ...], Write]:
    """The same for a residual network or a transformer; where that finds nothing, why it is no chain either."""
    branches = plan_branches(model, inputs, width, filter_fn)
    if not branches.sites:
        raise no_chain

    def write(network: nn.Module) -> None:
        _write_branches(network, branches, activation)

    old = {type(model.get_submodule(site.activation)).__name__ for site in branches.sites}
    return old, tuple(branches.changes(model)), write


def _try_on_copy(model: nn.Module, write: Write, inputs: Inputs) -> None:
    with _looking(model):
        wanted = call(model, inputs)
        twin = copy.deepcopy(model)
        write(twin)
        try:
            got = call(twin, inputs)
        except RuntimeError as error:
            raise TopologyError(
                "the converted copy does not run", found=str(error).splitlines()[0]
            ) from error
    wanted, got = (leaves(x)[0].shape for x in (wanted, got))
    if got != wanted:
        raise TopologyError(
            "the converted copy returns another shape", found=f"{tuple(got)}, not {tuple(wanted)}"
        )


def _write_branches(model: nn.Module, plan: BranchPlan, activation: str) -> None:
    """Resize and draw; everything was checked before."""
    modules = dict(model.named_modules())
    for path, (reads, gives) in plan.sizes.items():
        _resize_layer(modules[path], reads, gives)
        init_pairs_(modules[path], plan.gains[path])
    for path, size in plan.norms.items():
        _resize_norm(modules[path], size)
    for path, dim in plan.dims.items():
        parent, _, name = path.rpartition(".")
        new = PAIRS[activation](dim=dim).train(modules[path].training)
        setattr(model.get_submodule(parent), name, new)


def _write(model: nn.Module, links: list[Link], plan: Plan, activation: str) -> None:
    """Resize and draw; everything was checked before."""
    replaced: dict[nn.Module, nn.Module] = {}
    for index, link in enumerate(links):
        module = link.module
        if index in plan.converted:
            if module not in replaced:
                replaced[module] = PAIRS[activation](dim=plan.dims[index]).train(module.training)
        elif index in plan.sizes:
            reads, gives = plan.sizes[index]
            _resize_layer(module, reads, gives)
            init_pairs_(module, plan.gains[index])
        elif index in plan.norms:
            _resize_norm(module, plan.norms[index])
    for old, new in replaced.items():
        for path, module in list(model.named_modules(remove_duplicate=False)):
            if module is old:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, new)


@torch.no_grad()
def _renew(module: nn.Module, name: str, shape: tuple[int, ...], fill: float = 0.0) -> None:
    """A new parameter or buffer of another shape, on the same device, of the same type and trainability."""
    old = getattr(module, name, None)
    if not isinstance(old, Tensor):
        return
    new: Any = old.new_full(shape, fill)
    setattr(
        module,
        name,
        nn.Parameter(new, requires_grad=old.requires_grad) if name in module._parameters else new,
    )


def _resize_layer(module: nn.Module, reads: int, gives: int) -> None:
    names = (
        ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
    )
    setattr(module, names[0], reads)
    setattr(module, names[1], gives)
    weight = module.get_parameter("weight")
    _renew(module, "weight", (gives, reads, *weight.shape[2:]))
    _renew(module, "bias", (gives,))


def _resize_norm(module: nn.Module, size: int) -> None:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        axis = 0 if len(module.normalized_shape) > 1 else -1
        shape = list(module.normalized_shape)
        shape[axis] = size
        new: tuple[int, ...] = tuple(shape)
        module.normalized_shape = new
    else:
        name = "num_channels" if isinstance(module, nn.GroupNorm) else "num_features"
        setattr(module, name, size)
        new = (size,)
    for attribute, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        _renew(module, attribute, new, fill)
    _renew(module, "num_batches_tracked", ())


__all__ = ["ACTIVATIONS", "Conversion", "convert_"]
