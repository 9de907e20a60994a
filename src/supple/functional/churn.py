"""How much a network's outputs changed where it was not trained to change them.

Outputs are (N, C) or (N, ..., C) with the classes on ``class_dim``. Computed in float64; gradients flow to
both arguments (detach the reference for a penalty).
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional._precision import double

KINDS = ("kl", "mse", "ce", "flip", "gaussian")


def churn(before: Tensor, after: Tensor, kind: str = "kl", class_dim: int = -1) -> Tensor:
    """Churn of the outputs on samples outside the batch: mean over samples and positions of D(before, after).

    Tang et al. 2025 (C-CHAIN). With p, q the softmax of ``before`` and ``after``:

    * ``"kl"``: sum_c p_c (ln p_c - ln q_c), nats, 0 where nothing changes;
    * ``"ce"``: - sum_c p_c ln q_c = KL + entropy of p, what the official code logs for discrete policies:
      not zero when nothing changes, and rising with the entropy. Same gradient in ``after`` as KL;
    * ``"mse"``: mean over outputs of (after - before)^2, squared units of the output;
    * ``"gaussian"``: the axis holds means, then as many logarithms of standard deviations (μ, ln σ); KL of the new
      diagonal Gaussian from the old one, sum_a ln(σ_a/σ'_a) + (σ'_a^2 + (μ'_a - μ_a)^2) / (2 σ_a^2) - 1/2 with the
      new ones primed, nats: the policy churn of CHAIN for SAC (Tang & Berseth 2024, arXiv 2409.04792), whose
      direction is the other one than that of "kl";
    * ``"flip"``: share of samples whose largest output changed (no gradient).

    Absolute churn grows with the step size and the scale of the logits: rising churn alone does not mean
    interference. See `relative_churn`.

    Args:
        before: (N, ..., C), logits for "kl" and "ce", (μ, ln σ) for "gaussian"; outputs, before the update.
        after: the same shape, after it.
        kind: which D.
        class_dim: axis of the classes.

    Returns:
        float64 scalar, >= 0. NaN without samples or with NaN or +Inf. A logit of -Inf is a class that cannot
        occur: it adds nothing where both have it, and Inf where only ``after`` has.

    Raises:
        InputError: an unknown kind, different shapes, no axis of samples and of classes, an odd axis for "gaussian".

    >>> a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> [round(churn(a, b, kind).item(), 4) for kind in ("kl", "ce", "mse", "flip")]
    [0.1201, 0.8133, 0.5, 1.0]
    """
    if kind not in KINDS:
        raise InputError("unknown kind of churn", found=kind, do=f"use one of {', '.join(KINDS)}")
    if before.shape != after.shape or before.dim() < 2:
        raise InputError(
            "churn compares two outputs (samples, ..., classes) of one shape",
            found=f"{tuple(before.shape)} and {tuple(after.shape)}",
        )
    a, b = double(before).movedim(class_dim, -1), double(after).movedim(class_dim, -1)
    if kind == "mse":
        return (b - a).square().mean()
    if kind == "flip":
        return _flips(a, b).mean()
    if kind == "gaussian":
        return _gaussian(a, b).mean()
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    p = log_p.exp()
    # 0 * -inf would be NaN: a class of probability 0 adds nothing
    zero = p == 0
    terms = torch.where(zero, 0, log_p if kind == "kl" else 0) - torch.where(zero, 0, log_q)
    total = (p * terms).sum(-1).mean()
    return torch.where(log_p.isnan().any() | log_q.isnan().any(), torch.nan, total)


def relative_churn(
    before: Tensor,
    after: Tensor,
    batch_before: Tensor,
    batch_after: Tensor,
    kind: str = "mse",
    class_dim: int = -1,
) -> Tensor:
    """Churn outside the batch over the change inside it, both as `churn`.

    Comparable across step sizes, which absolute churn (proportional to the squared step) is not: 0 where
    the update stays with its batch, about 1 where every sample moves alike.

    Args:
        before, after: (N, ..., C) outputs on samples outside the batch, before and after the update.
        batch_before, batch_after: (B, ..., C) outputs on the batch that was trained on.
        kind: "mse", "kl" or "flip"; "ce" does not vanish when nothing changes and is refused.
        class_dim: axis of the classes.

    Returns:
        float64 scalar in [0, inf]; NaN where neither moved, or with NaN or Inf.

    Raises:
        InputError: as `churn`; ``kind="ce"``.

    >>> x, y = torch.zeros(2, 1), torch.zeros(2, 1)
    >>> relative_churn(x, x + 1, y, y + 2).item()
    0.25
    """
    if kind == "ce":
        raise InputError("cross-entropy is not zero when nothing changes", found=kind, do='use "kl"')
    inside = churn(batch_before, batch_after, kind, class_dim)
    return churn(before, after, kind, class_dim) / inside


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    """(N, ...) KL(b ‖ a) of diagonal Gaussians given as (means, ln of deviations) on the last axis."""
    if a.shape[-1] % 2 or not a.shape[-1]:
        raise InputError(
            "Gaussian churn needs as many logarithms of deviations as means on one axis", found=a.shape[-1]
        )
    (mean, log), (new_mean, new_log) = a.chunk(2, -1), b.chunk(2, -1)
    shift = ((new_mean - mean) / log.exp()).square()
    return (log - new_log + 0.5 * ((2 * (new_log - log)).expm1() + shift)).sum(-1)


def _flips(a: Tensor, b: Tensor) -> Tensor:
    """(N, ...) 1.0 where the argmax differs, NaN where either has a NaN."""
    if a.shape[-1] == 0:
        return a.new_full(a.shape[:-1], torch.nan)
    changed = (a.argmax(-1) != b.argmax(-1)).to(a.dtype)
    unusable = (a.isnan() | b.isnan() | a.isposinf() | b.isposinf()).any(-1)
    return torch.where(unusable, torch.nan, changed)
