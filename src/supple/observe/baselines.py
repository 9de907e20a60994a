"""Norms of the weights of another network, read once, to tell growth against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from supple.observe.reference import Reference
from supple.observe.views import LayerView, square_sum
from supple.topology.taps import Taps, plain_name

TWIN, INITIAL = "twin", "initial"


class Baseline:
    """The squared Frobenius norms of a network that is built when they are first asked for.

    ``name`` is what the growth is told against: ``"twin"`` or ``"initial"``.
    """

    def __init__(self, name: str, make: Callable[[], nn.Module]) -> None:
        self.name = name
        self._make = make
        self._squares: dict[str, float] | None = None

    @classmethod
    def of(cls, name: str, reference: Reference) -> Baseline:
        """Against the first twin of a reference."""
        return cls(name, partial(reference.twin, 0))

    def squares(self, layers: Sequence[LayerView]) -> dict[str, float]:
        """By name of the layer; a layer whose weight cannot be read there is absent."""
        if self._squares is None:
            # as the layers use it: a parametrised weight is computed, and in eval mode nothing is updated
            model = self._make().eval()
            parameters = {plain_name(n): p for n, p in model.named_parameters(remove_duplicate=False)}
            modules = {plain_name(n): m for n, m in model.named_modules(remove_duplicate=False)}
            views = [
                LayerView(v.layer, modules.get(v.layer.module, model), parameters, Taps(), {}) for v in layers
            ]
            self._squares = {v.name: float(square_sum(v.weight)) for v in views if v.weight is not None}
        return self._squares
