"""One eager pass on a small probe, with everything it touches put back as it was."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from supple.errors import InputError
from supple.topology import rules
from supple.topology.assemble import assemble
from supple.topology.graph import Topology
from supple.topology.ids import CONST, FIRST, PARAM
from supple.topology.inputs import Forward, Inputs, batch_size, call, shrink
from supple.topology.parameters import refuse_scripted
from supple.topology.shadow import Meta
from supple.topology.taps import eager
from supple.topology.tracer import Tracer, leaves

#: modules whose weights have a packing that no rule resolves
REFUSED: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.RNNBase, "recurrent weights are packed several rows to a unit"),
    (nn.RNNCellBase, "recurrent weights are packed several rows to a unit"),
)
PRINTING = frozenset({Tensor.__repr__, Tensor.__format__, Tensor.__str__})
LEAVING = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__})


def trace(model: nn.Module, inputs: Inputs, *, forward: Forward | None = None) -> Topology:
    """Layers, units and edges of a network, read off one eager forward pass on two samples.

    Every element carries the id of the unit that it came from; see `supple.topology.ids`. Parameters,
    buffers, gradients, random state and training flags are as before afterwards. What cannot be
    followed is a `Refusal`, never a guess.

    Args:
        model: any module; evaluated in eval mode, without gradients, eagerly.
        inputs: tensor, tuple (``model(*inputs)``) or mapping (``model(**inputs)``); the first two
            samples are used.
        forward: ``forward(model, inputs)`` where the model is called in another way.

    Raises:
        InputError: a model without a weight matrix, a lazy or meta model, inputs that the model
            does not take, or no sample.
        TopologyError: parameters are tensor subclasses (sharded, quantised).

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = trace(net, torch.zeros(8, 3))
    >>> list(found.layers), found.layers["0"].activation, found.layers["2"].output
    (['0', '2'], 'relu', True)
    >>> found.consumers("0")[0].columns.tolist()
    [[0], [1], [2], [3]]
    """
    tracer = _prepared(model, inputs)
    small = _private(shrink(inputs, 2) if batch_size(inputs) else inputs)
    masks = _masks(small)
    for leaf in leaves(small):
        tracer.shadows.put(leaf, Meta(leaf.element_size()))
        tracer.shadows.write(leaf, torch.tensor(CONST if id(leaf) in masks else tracer.table.input))
    with undisturbed(model), _module_stack(tracer):
        try:
            with _Leaving(tracer), tracer:
                outputs = call(model, small, forward)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                "the model does not run on these inputs",
                found=f"{type(error).__name__}: {error}",
                where=tracer.place or "the model",
                do="pass inputs as model(*inputs), model(**inputs), or forward=…",
            ) from error
    _outputs(tracer, outputs)
    return assemble(tracer, model)


def _masks(inputs: Inputs) -> set[int]:
    """Ids of the tensors that only say where there is data: integers or booleans of a mapping, named ``…mask``.

    Models ask whether anything is masked at all; what Python decides by such a value is the same way for every batch
    of this kind, so it counts as a constant and is no control flow that depends on the data.
    """
    if not isinstance(inputs, Mapping):
        return set()
    found = (v for k, v in inputs.items() if str(k).endswith("mask") and isinstance(v, Tensor))
    return {id(v) for v in found if not v.is_floating_point()}


def _prepared(model: nn.Module, inputs: Inputs) -> Tracer:
    refuse_scripted(model)
    if batch_size(inputs) == 0:
        raise InputError("cannot trace on an empty batch", found="0 samples", do="pass at least one sample")
    tracer = Tracer(model, rules.RULES)
    if not any(p.tensor.dim() > 1 for p in tracer.parameters.items):
        raise InputError(
            "the model has no layer with a weight matrix",
            found=f"{type(model).__name__} with {len(tracer.parameters.items)} parameters",
            do="pass a model with at least one linear, convolutional or embedding layer",
        )
    return tracer


def _private(inputs: Any) -> Any:
    """Copies of the inputs, so that a view of a large data set is not shadowed whole."""
    if isinstance(inputs, Tensor):
        return inputs.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*(_private(x) for x in inputs))
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(_private(x) for x in inputs)
    if isinstance(inputs, Mapping):
        return {k: _private(v) for k, v in inputs.items()}
    return inputs


def _outputs(tracer: Tracer, outputs: Any) -> None:
    """Flag the units that leave the network."""
    for tensor in leaves(outputs):
        tracer.touch(tensor, "output")
        ids = [i for i in tracer.shadows.unique(tensor) if FIRST <= i < PARAM]
        tracer.record.carry(tracer.paths(tensor))
        found = tracer.table.atoms(ids)
        for index in set(found.site.tolist()):
            tracer.record.sites[index].output[found.unit[found.site == index]] = True
        for index in found.weak:
            tracer.record.sites[index].output[:] = True


class _Leaving(TorchFunctionMode):
    """Sees numbers leave PyTorch (``.numpy()``, ``.tolist()``), and lets printing pass."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tracer = self.tracer
        if func in PRINTING:
            tracer.muted += 1
            try:
                return func(*args, **(kwargs or {}))
            finally:
                tracer.muted -= 1
        if func in LEAVING and not tracer.muted:
            for tensor in leaves(args):
                if any(FIRST <= i < PARAM for i in tracer.shadows.unique(tensor)):
                    tracer.record.refuse(tracer.place, "origin lost", func.__name__)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _module_stack(tracer: Tracer) -> Iterator[None]:
    """Know the module under way, and refuse whole the modules whose weights no rule resolves."""
    handles = []

    def refused(module: nn.Module) -> str | None:
        return next((why for kind, why in REFUSED if isinstance(module, kind)), None)

    for path, module in tracer.modules.items():

        def enter(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            tracer.stack.append(path)
            if refused(module):
                tracer.muted += 1

        def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            why = refused(module)
            if why:
                tracer.muted -= 1
                if not tracer.muted:
                    _refuse_module(tracer, module, why, (args, kwargs), result)
            tracer.stack.pop()

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_module(tracer: Tracer, module: nn.Module, why: str, inputs: Any, result: Any) -> None:
    sources = tracer.sources(*leaves(inputs))
    tracer.record.carry(tracer.paths(*leaves(inputs)))
    tracer.record.suspect(tracer.place, f"opaque module: {why}", type(module).__name__, sources)
    tracer.record.refuse(tracer.place, f"opaque module: {why}", type(module).__name__, tracer.place)
    owned = {id(p) for p in module.parameters()}
    for parameter in tracer.parameters.items:
        if id(parameter.tensor) in owned:
            parameter.roles.add(f"opaque:{why}")
    value = torch.tensor(tracer.table.opaque(sources))
    for tensor in leaves(result):
        tracer.shadows.write(tensor, value)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, eager, attention fast path off; then everything as it was."""
    training = [(m, m.training) for m in model.modules()]
    renormed: list[Tensor] = [
        m.weight
        for m in model.modules()
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm is not None
    ]
    kept = [(t, t.detach().clone()) for t in itertools.chain(model.buffers(), renormed)]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        for module in model.modules():
            module.training = False
        with torch.random.fork_rng(devices), torch.no_grad(), eager():
            yield
    finally:
        for module, flag in training:
            module.training = flag
        with torch.no_grad():
            for tensor, value in kept:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
