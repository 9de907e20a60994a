"""What adapters of frozen linear layers share: hooks, merging, the base model's checksums."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supple.checksum import checksum
from supple.errors import AttachError, StoreError
from supple.layouts import linear_weight
from supple.nn.targets import ADAPTS


class LinearAdapter(nn.Module, abc.ABC):
    """A module of its own whose parameters add to linear layers of a base model.

    The base model keeps its class, its names and its state dict. A subclass makes its parameters, says what it adds to
    an output (`_added`) and to a weight (`delta`), and calls `_install` at the end of its ``__init__``.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = dict(layers)  # a plain dict: the base model is not a part of the adapter
        self.names = list(layers)
        self._merged: dict[str, Tensor] | None = None
        self._off = False
        self._frozen: list[tuple[nn.Parameter, bool]] = []
        self._hooks: list[Any] = []

    @abc.abstractmethod
    def delta(self, name: str) -> Tensor:
        """(O, I) what merging would add to the weight of the layer, float32."""

    @abc.abstractmethod
    def _added(self, index: int, inputs: Tensor) -> Tensor:
        """What the adapter adds to the output of the layer at this place."""

    @property
    def merged(self) -> bool:
        """Whether the adapted weights are in the base model."""
        return self._merged is not None

    def _install(self) -> None:
        """Begin to add to the outputs."""
        self._hooks = [
            layer.register_forward_hook(self._hook(i)) for i, layer in enumerate(self.layers.values())
        ]

    def freeze(self, model: nn.Module) -> None:
        """Freeze the base model's parameters, until `detach`."""
        self._frozen = [(p, p.requires_grad) for p in model.parameters()]
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    def _hook(self, index: int) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self._off or self._merged is not None:
                return None
            return output + self._added(index, args[0])

        setattr(hook, ADAPTS, True)
        return hook

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model as it is, for as long as this lasts; refused while the adapter is merged."""
        if self._merged is not None:
            raise AttachError("a merged adapter cannot be switched off", do="call unmerge() first")
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    @torch.no_grad()
    def merge(self) -> None:
        """Write the adapted weights into the base model; the base weights are kept for `unmerge`."""
        if self._merged is not None:
            raise AttachError("the adapter is merged already", do="call unmerge() first")
        new = {n: _wide(linear_weight(layer)) + self.delta(n) for n, layer in self.layers.items()}
        self._merged = {n: stored(layer).detach().clone() for n, layer in self.layers.items()}
        for name, layer in self.layers.items():
            linear_weight(layer).copy_(new[name])

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base weights back, bit for bit."""
        if self._merged is None:
            raise AttachError("the adapter is not merged", do="call merge() first")
        for name, layer in self.layers.items():
            stored(layer).copy_(self._merged[name])
        self._merged = None

    def detach(self) -> None:
        """Remove the hooks and give the base parameters their requires_grad back; merged weights stay merged."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for parameter, flag in self._frozen:
            parameter.requires_grad_(flag)
        self._frozen = []

    # -- the base model on disk -------------------------------------------------------------------
    def check_free(self, what: str) -> None:
        """Refuse another adapter while this one is in the weights: it would change nothing."""
        if self._merged is not None:
            raise AttachError(
                f"the adapter is merged: {what} would change nothing", do="call unmerge() first"
            )

    def _base(self, name: str) -> Tensor:
        return stored(self.layers[name]) if self._merged is None else self._merged[name]

    def _sums(self) -> dict[str, str]:
        """What a file says of the base weights it fits."""
        return {f"base:{n}": checksum(self._base(n)) for n in self.names}

    def _check_base(self, name: str, found: str | None) -> None:
        """Refuse a file that was made for another weight."""
        if found != checksum(self._base(name)):
            raise StoreError(
                "the adapter fits another base weight",
                found="a different checksum",
                where=name,
                do="load the base model it was trained on",
            )


def stored(layer: nn.Module) -> Tensor:
    """The weight in the layout of its file, of which the checksum is."""
    return layer.get_parameter("weight")


def _wide(weight: Tensor) -> Tensor:
    """In float32, or better where it is."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
