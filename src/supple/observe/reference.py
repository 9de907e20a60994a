"""The healthy network to compare with: a factory, an initial or round-0 state, or (weakest) a reset."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.observe.batch import user_code
from supple.observe.copies import clean_copy, unwrap
from supple.observe.guard import rng_guard
from supple.topology.taps import plain_name

Kind = Literal["factory", "initial", "round-0", "reset"]


@dataclass(frozen=True)
class Reference:
    """Where fresh networks come from.

    ``strength`` is ``"weak"`` for ``"reset"``: a network that was initialised otherwise looks healthy beside
    it. ``distinct`` tells whether twins of different number differ (a stored state gives one network only).
    """

    kind: Kind
    strength: Literal["strong", "weak"]
    distinct: bool
    _make: Callable[[int], nn.Module]

    def twin(self, i: int = 0) -> nn.Module:
        """A fresh network, number ``i``: the same one each time, the caller's random state untouched."""
        return self._make(i)


def resolve(reference: Any, model: nn.Module, seed: int = 0, kind: Kind = "round-0") -> Reference | None:
    """Turn what a user hands over as reference into a `Reference`, checked against the model at once.

    Args:
        reference: None (no reference); a callable without arguments that builds the network; a
            ``state_dict`` (or a module, for its state): initial weights or round 0 of a pretrained model;
            ``"reset"`` (``reset_parameters()`` of every module); a `Reference`, returned as it is.
        model: the network under study; gives names, shapes and device.
        seed: keys the random state under which factories and resets run.
        kind: what a ``state_dict`` is called (`Monitor` says ``"initial"``).

    Raises:
        InputError: other parameter names or shapes than the model; parameters that no ``reset_parameters``
            covers (their path is named); a factory that fails, or returns the model itself or a network with
            another activation; another type.

    >>> net = nn.Linear(3, 2)
    >>> twin = resolve(lambda: nn.Linear(3, 2), net).twin(1)
    >>> twin.weight.shape, resolve("reset", net).strength
    (torch.Size([2, 3]), 'weak')
    """
    model = unwrap(model)
    if reference is None or isinstance(reference, Reference):
        return reference
    if isinstance(reference, str):
        return _from_reset(reference, model, seed)
    if isinstance(reference, nn.Module):
        return _from_state(unwrap(reference).state_dict(), model, kind)
    if isinstance(reference, Mapping):
        return _from_state(reference, model, kind)
    if callable(reference):
        return _from_factory(reference, model, seed)
    raise InputError(
        "cannot use this as a reference",
        found=type(reference).__name__,
        do='pass a factory (a callable that builds a fresh network), a state_dict, or "reset"',
    )


def _from_factory(factory: Callable[[], Any], model: nn.Module, seed: int) -> Reference:
    def make(i: int) -> nn.Module:
        with rng_guard():
            _seed_all(seed, i)
            with user_code(
                "the reference factory failed", where="reference",
                do="pass a callable without arguments that builds a fresh network",
            ):  # fmt: skip
                twin = factory()
        if not isinstance(twin, nn.Module):
            raise InputError("the reference factory must return a module", found=type(twin).__name__)
        twin = unwrap(twin)
        if twin is model or {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}:
            raise InputError(
                "the reference factory returned the network under study, or shares its parameters",
                do="build a new network at every call",
            )
        _check_shapes(dict(twin.named_parameters()), dict(model.named_parameters()), "the factory's network")
        _check_activations(twin, model)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return _in_types_of(model, twin.to(device))

    make(0)
    return Reference("factory", "strong", True, make)


def _check_activations(twin: nn.Module, model: nn.Module) -> None:
    """A twin with the same weights but another activation is another architecture."""
    others = dict(twin.named_modules())
    for name, module in model.named_modules():
        other = others.get(name)
        if other is None or type(other) is type(module) or not (_activates(module) and _activates(other)):
            continue
        raise InputError(
            "the factory's network has another activation than the model",
            found=f"{type(other).__name__}, not {type(module).__name__}",
            where=name,
            do="build the network that was trained",
        )


def _activates(module: nn.Module) -> bool:
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)


def _in_types_of(model: nn.Module, twin: nn.Module) -> nn.Module:
    """The twin in the number types of the model: one that was cast after it was built has fresh twins that were not."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
        if name in own and own[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(own[name].dtype)
    return twin


def refuse_itself(reference: Any, model: nn.Module) -> None:
    """A reference that is the network under study: compared with itself, any network looks healthy.

    ``model.state_dict()`` shares memory with the model: kept from before training, it has been trained too.

    Raises:
        InputError: the model itself, or a state that shares memory with it.

    >>> net = nn.Linear(2, 2)
    >>> refuse_itself({k: v.clone() for k, v in net.state_dict().items()}, net)
    """
    state = reference.state_dict() if isinstance(reference, nn.Module) else reference
    if not isinstance(state, Mapping):
        return
    own = {_memory(p) for p in model.parameters() if p.numel()}
    shared = [k for k, v in state.items() if isinstance(v, Tensor) and v.numel() and _memory(v) in own]
    if shared:
        raise InputError(
            "the reference is the network under study, or shares its memory",
            found=", ".join(shared[:5]),
            where="reference",
            do="keep a copy before training: copy.deepcopy(model.state_dict()), or pass a factory",
        )


def _memory(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _from_state(state: Mapping[str, Any], model: nn.Module, kind: Kind) -> Reference:
    tensors = {plain_name(k): v.detach().clone() for k, v in state.items() if isinstance(v, Tensor)}
    own = {plain_name(k): v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    _check_shapes(tensors, own, "the state_dict")

    def make(i: int) -> nn.Module:
        twin = clean_copy(model)
        names = {plain_name(k): k for k in twin.state_dict()}
        twin.load_state_dict({names[k]: v for k, v in tensors.items()}, strict=False)
        return twin

    return Reference(kind, "strong", False, make)


def _from_reset(word: str, model: nn.Module, seed: int) -> Reference:
    if word != "reset":
        raise InputError("unknown reference", found=repr(word), do='the only word known here is "reset"')
    stuck = [
        name or "the model itself"
        for name, module in model.named_modules()
        if any(p is not None for p in module._parameters.values()) and _reset_of(module) is None
    ]
    if stuck:
        raise InputError(
            'the reference "reset" needs reset_parameters() in every module that owns parameters',
            where=", ".join(stuck[:5]) + (f" and {len(stuck) - 5} more" if len(stuck) > 5 else ""),
            do="pass a factory instead: reference=lambda: build_model()",
        )

    def make(i: int) -> nn.Module:
        twin = clean_copy(model)
        with rng_guard(), torch.no_grad():
            _seed_all(seed, i)
            # children first: what a parent sets in its own reset must stand
            for module in reversed(list(twin.modules())):
                reset = _reset_of(module)
                if reset is not None:
                    reset()
        return twin

    return Reference("reset", "weak", True, make)


def _reset_of(module: nn.Module) -> Callable[[], Any] | None:
    # MultiheadAttention keeps its own under a private name
    name = "_reset_parameters" if isinstance(module, nn.MultiheadAttention) else "reset_parameters"
    found = getattr(module, name, None)
    return found if callable(found) else None


def _check_shapes(found: Mapping[str, Any], wanted: Mapping[str, Any], whose: str) -> None:
    problems = [f"{k} is missing" for k in wanted if k not in found]
    problems += [f"{k} is unknown" for k in found if k not in wanted]
    problems += [
        f"{k} is {tuple(found[k].shape)}, not {tuple(wanted[k].shape)}"
        for k in wanted
        if k in found and found[k].shape != wanted[k].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(
            f"{whose} does not fit the model",
            found="; ".join(problems[:5]) + more,
            do="the reference must have the same parameter names and shapes",
        )


def _seed_all(seed: int, i: int) -> None:
    """Seed the global generators from (seed, i): blake2b, as Python's ``hash`` is salted per process."""
    digest = hashlib.blake2b(f"reference\x00{seed}\x00{i}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "big") >> 1
    torch.manual_seed(key)
    random.seed(key)
    np.random.seed(key % 2**32)
