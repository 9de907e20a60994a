"""Is this network one chain of modules? Proved by definition (Sequential) or by watching one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from supple.errors import TopologyError
from supple.topology.inputs import Inputs, call
from supple.topology.taps import eager


@dataclass(frozen=True)
class Link:
    """One leaf module in the order of execution."""

    path: str
    module: nn.Module


def refuse(reason: str, path: str, *, found: object = None, do: str | None = None) -> TopologyError:
    """The one form in which a network that cannot be followed is turned down."""
    return TopologyError(f"convert_ cannot follow this network: {reason}", found=found, where=path, do=do)


def refuse_replicated(model: nn.Module, what: str) -> None:
    """New parameters inside a data-parallel wrapper would be averaged by nobody: replicas drift apart."""
    for path, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise TopologyError(
                f"{what} makes new parameters, whose gradients this wrapper would not average",
                found=type(module).__name__,
                where=path or "the model itself",
                do="call it on the bare network, under one seed on every rank, and wrap it afterwards",
            )


def module_chain(model: nn.Module, inputs: Inputs | None) -> list[Link]:
    """The leaf modules in the order in which they run, each reading just what the one before returned.

    Args:
        model: nested `nn.Sequential` need no inputs; anything else is watched on one pass.
        inputs: a small batch (see `supple.topology.call`).

    Raises:
        TopologyError: branches, sums, concatenations, functional operations, layers that run twice, or
            parameters outside the chain, with the path of the place.
    """
    links = list(_by_definition(model, "")) if inputs is None else _by_watching(model, inputs)
    _check_all_parameters(model, links)
    return links


def _by_definition(module: nn.Module, path: str) -> Iterator[Link]:
    children = list(module._modules.items())
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for name, child in children:
            if child is not None:
                yield from _by_definition(child, f"{path}.{name}" if path else name)
    elif children:
        raise refuse(
            "without inputs, only nested nn.Sequential can be read",
            path or "the model",
            found=type(module).__name__,
            do="pass inputs=, a small batch",
        )
    else:
        yield Link(path, module)


@dataclass
class _Seen:
    tensor: Tensor
    version: int


def _same(given: Any, last: _Seen) -> bool:
    """Whether a tensor is what the last module returned, or a reshaped view of all of it, unchanged."""
    if not isinstance(given, Tensor) or given._version != last.version:
        return False
    whole = given.numel() == last.tensor.numel() and given.data_ptr() == last.tensor.data_ptr()
    return given is last.tensor or (whole and given.is_contiguous() and last.tensor.is_contiguous())


def _by_watching(model: nn.Module, inputs: Inputs) -> list[Link]:
    leaves = {m: path for path, m in model.named_modules() if not m._modules}
    links: list[Link] = []
    state: dict[str, _Seen] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        previous = links[-1].path if links else "the inputs"
        if len(given) != 1 or (state and not _same(given[0], state["last"])):
            raise refuse(
                f"{leaves[module]} does not read just what {previous} returns",
                leaves[module],
                do="write activations as modules, one for each place (and pooling, in a plain chain)",
            )

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            raise refuse("a module returns more than one tensor", leaves[module], found=type(output).__name__)
        state["last"] = _Seen(output, output._version)
        links.append(Link(leaves[module], module))

    handles = [leaf.register_forward_pre_hook(before, with_kwargs=True) for leaf in leaves]
    handles += [leaf.register_forward_hook(after) for leaf in leaves]
    try:
        with _looking(model), eager():
            output = call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not links:
        raise refuse(
            "no module was seen to run", "the model", do="pass the module itself, not a compiled one"
        )
    if not _same(output, state["last"]):
        raise refuse(f"the model does not return just what {links[-1].path} returns", links[-1].path)
    return links


@contextmanager
def _looking(model: nn.Module) -> Iterator[None]:
    """Eval flags, no graph, the global random state put back."""
    training = [m for m in model.modules() if m.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        for module in training:
            module.training = True


def _check_all_parameters(model: nn.Module, links: list[Link]) -> None:
    owners: dict[int, str] = {}
    for link in links:
        for parameter in link.module.parameters():
            if id(parameter) in owners:
                raise refuse(
                    "a parameter is used at two places", link.path, found=f"also in {owners[id(parameter)]}"
                )
            owners[id(parameter)] = link.path
    for name, parameter in model.named_parameters():
        if id(parameter) not in owners:
            raise refuse("a parameter belongs to no module of the chain", name)
