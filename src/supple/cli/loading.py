"""What a command line names, found and checked: objects by ``pkg.module:name``, weights, a probe, a loss."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supple.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 5  # names listed in a message
#: what the caller's own code may raise; exit status 1 means a finding, so that none of it may pass for one
OF_USERS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SystemExit,
    TypeError,
    ValueError,
)


def find_object(spec: str, option: str) -> Any:
    """The object ``pkg.module:name``; the current folder is searched first.

    Raises:
        InputError: no colon, no such module, no such name. An error inside the module is shown in one line.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise InputError(f"{option} must look like pkg.module:name", found=spec)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{option}: cannot import {module_name}",
            found=str(error),
            do="run where the module is, or install it",
        ) from error
    except (ImportError, SyntaxError, *OF_USERS) as error:
        raise InputError(f"{option}: importing {module_name} failed", found=_brief(error)) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise InputError(f"{option}: {module_name} has no {attribute!r}", where=module_name)
        found = getattr(found, name)
    return found


def build_model(spec: str) -> tuple[nn.Module, Callable[[], nn.Module] | None]:
    """The model, and the factory that makes fresh ones (None where the name is a module object already)."""
    from torch import nn

    found = find_object(spec, "--model")
    if isinstance(found, nn.Module):
        return found, None
    if not callable(found):
        raise InputError("--model must name a function that builds the model", found=type(found).__name__)
    model = called(found, "--model", spec)
    if not isinstance(model, nn.Module):
        raise InputError("--model must build a torch.nn.Module", found=type(model).__name__, where=spec)
    return model, found


def called(function: Callable[..., Any], option: str, spec: str) -> Any:
    """Call user code that takes no arguments; what it raises becomes one message."""
    try:
        return function()
    except OF_USERS as error:
        raise InputError(f"{option}: {spec}() failed", found=_brief(error)) from error


def probe(spec: str) -> tuple[Any, Any]:
    """``(inputs, targets)``, given or returned by a function; finite and not empty."""
    found = find_object(spec, "--probe")
    value = called(found, "--probe", spec) if callable(found) else found
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(
            "--probe must be, or return, a pair (inputs, targets)", found=type(value).__name__, where=spec
        )
    inputs, targets = value
    for name, tensor in [*_tensors(inputs, "inputs"), *_tensors(targets, "targets")]:
        _check_values(name, tensor)
    return inputs, targets


def _tensors(value: Any, name: str) -> list[tuple[str, Tensor]]:
    from torch import Tensor

    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _tensors(item, f"{name}[{key!r}]")]
    if isinstance(value, tuple | list):
        return [pair for i, item in enumerate(value) for pair in _tensors(item, f"{name}[{i}]")]
    return []


def _check_values(name: str, tensor: Tensor) -> None:
    if tensor.numel() == 0:
        raise InputError("the probe is empty", found=f"shape {tuple(tensor.shape)}", where=name)
    bad = tensor.numel() - int(tensor.isfinite().sum())
    if bad:
        raise InputError(
            "the probe holds NaN or Inf", found=f"{bad} of {tensor.numel()} values", where=name, do="clean it"
        )


def load_weights(model: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Load a checkpoint into the model once every name and shape agrees; nothing happens on a mismatch."""
    from supple.scan import read_state

    state = strip_prefix(read_state(path), model)
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{k}: file {tuple(state[k].shape)}, model {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or extra or shapes:
        parts = [
            f"{len(names)} {word}: {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
            for word, names in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
            if names
        ]
        raise InputError(
            "the checkpoint does not fit the model",
            found="; ".join(parts),
            where=str(path),
            do="build the model that was saved",
        )
    bad = sorted(k for k, v in state.items() if not bool(v.isfinite().all()))
    if bad:
        raise InputError("the checkpoint holds NaN or Inf", found=", ".join(bad[:SHOWN]), where=str(path))
    model.load_state_dict(state)
    return state


def strip_prefix(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Names without what DataParallel, torch.compile and a LightningModule's ``self.model`` put in front of them."""
    own = set(model.state_dict())
    for prefix in ("module.", "_orig_mod.", "model."):
        if state and not own & set(state) and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def loss(name: str) -> Callable[[Any, Any], Any]:
    """``cross_entropy``, ``mse``, or ``pkg.module:function``."""
    from torch.nn import functional

    known: dict[str, Callable[[Any, Any], Any]] = {
        "cross_entropy": functional.cross_entropy,
        "mse": functional.mse_loss,
    }
    if name in known:
        return known[name]
    if ":" not in name:
        raise InputError(
            "unknown loss", found=name, do=f"choose {', '.join(known)}, or name pkg.module:function"
        )
    found = find_object(name, "--loss")
    if not callable(found):
        raise InputError("--loss must name a function of (outputs, targets)", found=type(found).__name__)
    return found


def reference(
    name: str | None, factory: Callable[[], nn.Module] | None, model: nn.Module
) -> Callable[[], nn.Module] | dict[str, Tensor] | str | None:
    """``factory`` (the function of --model), ``reset``, or a checkpoint of the initial or round-0 weights."""
    if name is None or name == "factory":
        if name == "factory" and factory is None:
            raise InputError(
                "--reference factory needs a --model that names a function", do="name the function, or a file"
            )
        return factory
    if name == "reset":
        return "reset"
    import copy

    import torch

    state, own = load_weights(copy.deepcopy(model), name), model.state_dict()
    if all(torch.equal(state[k], v.to(state[k].dtype)) for k, v in own.items()):
        raise InputError(
            "the reference holds the same weights as the checkpoint: compared with itself, any network looks healthy",
            where=str(name),
            do="name the initial or round-0 weights",
        )
    return state


def _brief(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
