"""GraMa on normalisation scales: the entries of a norm's scale are units with one weight each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from supple import functional as F
from supple.observe.probe import Probe
from supple.records import Record
from supple.topology.taps import plain_name

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NO_GRADIENT = "no gradient arrives here (frozen, parametrised, detached, or not part of the loss)"
NO_SCALE = "no normalisation with a scale"
ALL_ZERO = "the gradient of the loss is zero in the whole network"
VARIANT = "norm,tau="


def norm_scales(probe: Probe) -> dict[str, str]:
    """Path of each norm -> name of its scale; norms written by hand are those that the trace found."""
    found: dict[str, str] = {}
    for path, module in probe.model.named_modules():
        if isinstance(module, NORMS) and isinstance(getattr(module, "weight", None), Tensor):
            name = plain_name(path)
            found[name] = f"{name}.weight" if name else "weight"
    known = set(found.values())
    for view in probe.layers:
        for norm in view.layer.norms:
            if norm.scale is not None and norm.scale not in known:
                known.add(norm.scale)
                found[norm.scale.rpartition(".")[0] or norm.scale] = norm.scale
    return found


def inactive_scores(probe: Probe, grad: Tensor, kind: str, unit_dim: int) -> Tensor | str:
    """GraMa scores of one layer; all zero where only this layer is without gradient; why not, elsewhere."""
    scores = F.grama_scores(grad, kind=kind, unit_dim=unit_dim)
    if not bool(scores.isnan().all()) or bool(grad.any()):
        return scores
    if not any(g is not None and bool(g.any()) for g in probe.grads.values()):
        return ALL_ZERO
    # other layers receive gradient and this one none at all: every unit of it is inactive
    return torch.zeros_like(scores)


def scale_rows(probe: Probe, taus: Iterable[float], minimum: int) -> Iterator[Record]:
    """A row per norm and tau: the share of scale entries with little gradient; and the pooled share."""
    scores = {path: _scores(probe, scale, minimum) for path, scale in norm_scales(probe).items()}
    for path, found in scores.items():
        if isinstance(found, Tensor):
            probe.arrays[f"grama_scale_scores/{path}"] = found.detach().cpu()
    for tau in taus:
        variant, flags = f"{VARIANT}{tau:g}", []
        for path, found in scores.items():
            if isinstance(found, str):
                yield probe.unmeasured("grama", found, layer=path, variant=variant)
                continue
            flags.append(torch.where(found.isnan(), found, (found <= tau).to(found.dtype)).double().cpu())
            link = f"grama_scale_scores/{path}"
            yield probe.record("grama", flags[-1].mean(), layer=path, variant=variant, array=link)
        if flags:
            note = "" if len(flags) == len(scores) else f"over {len(flags)} of {len(scores)} norms"
            yield probe.record("grama", torch.cat(flags).mean(), variant=variant, note=note)
        else:
            reason = next((x for x in scores.values() if isinstance(x, str)), NO_SCALE)
            yield probe.unmeasured("grama", reason, variant=variant)


def _scores(probe: Probe, scale: str, minimum: int) -> Tensor | str:
    grad = probe.grads.get(scale)
    if grad is None:
        return NO_GRADIENT
    # a norm sees no fewer responses than the layer that has the fewest
    calls = [t for v in probe.layers if not v.table for t in probe.taps.pre.get(v.layer.module, [])]
    seen = min((t.tensor.numel() // t.tensor.shape[t.unit_dim] for t in calls), default=probe.samples)
    if seen < minimum:
        return f"needs at least {minimum} responses (samples x positions), saw {seen}"
    return inactive_scores(probe, grad.flatten(), "weight", 0)
