"""Instruments on weights: norms and their growth; and which of them is the same tensor twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from supple.observe.baselines import TWIN
from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.observe.views import LayerView, square_sum
from supple.records import Record

EMBEDDING_TABLE = "embedding table"
UNREADABLE = "its weight could not be read"


def merged_notes(*notes: str) -> str:
    """Notes of one row, the empty ones left out."""
    return "; ".join(n for n in notes if n)


def tied_to(layers: Sequence[LayerView]) -> dict[str, str]:
    """Layers whose weight is that of another layer, each with the reason to measure it there alone.

    A matrix is preferred to an embedding table; the first one otherwise.
    """
    owners: dict[tuple[object, ...], str] = {}
    found: dict[str, str] = {}
    for view in sorted(layers, key=lambda v: v.table):
        weight = view.parameters.get(view.layer.weight)
        if weight is None:
            continue
        key = (id(weight), view.layer.unit_dim, view.layer.rows.tobytes()) if view.part else (id(weight),)
        owner = owners.setdefault(key, view.name)
        if owner != view.name:
            found[view.name] = f"tied: its weight is that of {owner}, and is measured there"
    return found


@instrument("weight_norm", "economy", ["weights"], ["weight_norm", "weight_rms"])
def weight_norm(probe: Probe) -> Iterable[Record]:
    """Frobenius norm and root mean square of each weight, and growth against other networks.

    ``growth,twin``: the norm over that of the reference; ``growth,initial``: over that of the weights at which
    a `Monitor` was attached. Tied weights count once. Pooled over all weights except embedding tables, which
    have a pooled row of their own (``embedding``).
    """
    squares: dict[str, float] = {}
    sizes: dict[str, int] = {}
    tied = tied_to(probe.matrices)
    for view in probe.matrices:
        reason = tied.get(view.name) or (UNREADABLE if view.weight is None else "")
        if reason:
            yield probe.unmeasured("weight_norm", reason, view)
            continue
        assert view.weight is not None
        square, size = float(square_sum(view.weight)), view.weight.numel()
        squares[view.name], sizes[view.name] = square, size
        note = EMBEDDING_TABLE if view.table else ""
        yield probe.record("weight_norm", square**0.5, view, note=note)
        yield probe.record("weight_rms", (square / size) ** 0.5 if size else float("nan"), view, note=note)
    matrices = [v.name for v in probe.matrices if v.name in squares and not v.table]
    tables = [v.name for v in probe.matrices if v.name in squares and v.table]
    yield from _pooled(probe, squares, sizes, matrices, "")
    if tables:
        yield from _pooled(probe, squares, sizes, tables, "embedding")
    yield from _growth(probe, squares, matrices)


def _pooled(
    probe: Probe, squares: dict[str, float], sizes: dict[str, int], names: list[str], variant: str
) -> Iterator[Record]:
    total, count = sum(squares[n] for n in names), sum(sizes[n] for n in names)
    if not count:
        for name in ("weight_norm", "weight_rms"):
            yield probe.unmeasured(name, "no layer with a weight was found", variant=variant)
        return
    note = f"over {len(names)} {'embedding tables' if variant else 'weights'}"
    yield probe.record("weight_norm", total**0.5, variant=variant, note=note)
    yield probe.record("weight_rms", (total / count) ** 0.5, variant=variant, note=note)


def _growth(probe: Probe, squares: dict[str, float], matrices: list[str]) -> Iterator[Record]:
    """Norm over norm, per layer and pooled over the layers that both networks have."""
    for baseline in probe.baselines:
        variant = f"growth,{baseline.name}"
        before = baseline.squares(probe.matrices)
        for view in probe.matrices:
            if view.name in squares:
                old = before.get(view.name, 0.0)
                if old > 0:
                    value = (squares[view.name] / old) ** 0.5
                    yield probe.record("weight_norm", value, view, variant=variant)
                else:
                    reason = "the weight of the other network is zero or could not be read"
                    yield probe.unmeasured("weight_norm", reason, view, variant=variant)
        both = [n for n in matrices if before.get(n, 0.0) > 0]
        if both:
            ratio = (sum(squares[n] for n in both) / sum(before[n] for n in both)) ** 0.5
            yield probe.record("weight_norm", ratio, variant=variant, note=f"over {len(both)} weights")
        else:
            yield probe.unmeasured("weight_norm", "no weight to compare", variant=variant)
    if not probe.baselines:
        reason = "no other network to compare with: pass reference="
        yield probe.unmeasured("weight_norm", reason, variant=f"growth,{TWIN}")
