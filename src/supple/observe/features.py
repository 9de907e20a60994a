"""Instruments on representations: effective rank of the features after each nonlinearity."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from supple import functional as F
from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.observe.units import EMBEDDING, OUTPUT_LAYER
from supple.observe.views import LayerView
from supple.records import Record

FORMS = ("raw", "centred")


@instrument("features", "standard", ["units"], ["feature_effective_rank", "feature_srank"], minimum=4)
def features(probe: Probe) -> Iterable[Record]:
    """Effective rank of the features (N, U) after the nonlinearity, raw and centred, and their srank.

    Positions (image places, tokens, the two responses of a pair) are averaged per sample. ``relative`` is
    divided by U. Not measured with fewer than 2 U samples: rank <= min(N, U), and too few samples look like a
    collapse. Pooled: the mean of the relative values over hidden layers.
    """
    pooled: dict[str, list[float]] = {f"{form},relative": [] for form in FORMS}
    for view in probe.layers:
        reason = _reason(view, probe.samples)
        if reason:
            yield from (probe.unmeasured("feature_effective_rank", reason, view, variant=f) for f in FORMS)
            continue
        assert view.post is not None
        x, note = _features(view.post)
        for form in FORMS:
            s = F.singular_values(x - x.mean(0) if form == "centred" else x)
            rank = F.effective_rank(s)
            yield probe.record("feature_effective_rank", rank, view, variant=form, note=note)
            row = probe.record(
                "feature_effective_rank", rank / x.shape[1], view, variant=f"{form},relative", note=note
            )
            yield row
            if row.status == "measured":
                pooled[row.variant].append(row.value)
            if form == "raw":
                srank = F.srank(s, delta=0.01).double()
                yield probe.record("feature_srank", srank, view, variant="delta=0.01", note=note)
    for variant, values in pooled.items():
        if values:
            mean, note = sum(values) / len(values), f"over {len(values)} hidden layers"
            yield probe.record("feature_effective_rank", mean, variant=variant, note=note)
        else:
            reason = "no hidden layer has features with enough samples"
            yield probe.unmeasured("feature_effective_rank", reason, variant=variant)


def _features(post: Tensor) -> tuple[Tensor, str]:
    """(N, U, P) -> (N, U) and what was done with the positions."""
    if post.shape[2] == 1:
        return post[:, :, 0], ""
    return post.mean(-1), f"mean over {post.shape[2]} positions"


def _reason(view: LayerView, samples: int) -> str:
    if view.layer.output:
        return OUTPUT_LAYER
    if view.layer.kind == "embedding":
        return EMBEDDING
    if view.post is None:
        return view.reason
    units = view.post.shape[1]
    return (
        ""
        if samples >= 2 * units
        else f"{units} units need at least {2 * units} samples, the probe has {samples}"
    )
