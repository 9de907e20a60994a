"""What every formula shares: working precision, axes, and checks that also hold under `torch.func.vmap`."""

from __future__ import annotations

import torch
from torch import Tensor

from supple.errors import InputError

#: entries up to which a temporary is made where that is faster
_SMALL = 2**22


def double(x: Tensor) -> Tensor:
    """``x`` in float64, or in float32 on a device without it (MPS)."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def single(x: Tensor) -> Tensor:
    """``x`` in float32 or better: half types and integers widened, float64 kept."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def readable(x: Tensor) -> bool:
    """True where a value may be read: under ``vmap`` a tensor has no single truth value."""
    return not torch._C._functorch.is_batchedtensor(x)


def refuse_negative(x: Tensor, what: str) -> Tensor:
    """``x`` itself; a negative value is an error, or NaN where no value can be read (``vmap``)."""
    negative = x < 0
    if readable(negative) and bool(negative.any()):
        raise InputError(f"{what} cannot be negative", found=float(x.detach().min()))
    return torch.where(negative, torch.nan, x)


def by_unit(x: Tensor, unit_dim: int, what: str = "activation") -> Tensor:
    """(N, ..., U, ...) -> (N * positions, U) in float32 or better; dim 0 is the sample axis."""
    return responses(x, unit_dim, what).movedim(1, -1).flatten(0, 1)


def responses(x: Tensor, unit_dim: int, what: str = "activation") -> Tensor:
    """(N, ..., U, ...) -> (N, U, positions) in float32 or better, without a copy where there need be none."""
    if x.dim() < 2:
        raise InputError(
            f"{what} needs a sample axis and a unit axis",
            found=f"shape {tuple(x.shape)}",
            do="add the sample axis with unsqueeze(0)",
        )
    unit_dim = axis(x, unit_dim, what)
    if unit_dim == 0:
        raise InputError(f"the unit axis of {what} cannot be the sample axis", found="unit_dim=0")
    x = single(x)
    if unit_dim != 1:
        x = x.movedim(unit_dim, 1)
    return x.unsqueeze(-1) if x.dim() == 2 else x.flatten(2)


def mean_magnitude(x: Tensor) -> Tensor:
    """(N, U, P) -> (U,): mean of |x| over samples and positions; NaN without any.

    Positions first, then samples: two short sums instead of a long one.
    """
    if x.shape[0] * x.shape[2] == 0:
        return x.new_full((x.shape[1],), torch.nan)
    if x.shape[2] == 1:
        return x.squeeze(2).abs().mean(0)
    if x.numel() <= _SMALL:
        return x.abs().mean(2).mean(0)
    # slower, but without a temporary of the size of x
    return torch.linalg.vector_norm(x, 1, dim=2).mean(0) / x.shape[2]


def axis(x: Tensor, dim: int, what: str) -> int:
    """``dim`` as a non-negative index into the axes of ``x``."""
    if not -x.dim() <= dim < x.dim():
        raise InputError(f"{what} has no such axis", found=f"axis {dim} of shape {tuple(x.shape)}")
    return dim % x.dim()


def relative_to_mean(values: Tensor, floor: float, silent: float) -> Tensor:
    """Per-unit values (..., U) over the mean of the layer; any non-finite entry makes the layer NaN.

    A layer that is zero, or whose mean is not above ``floor``, gets ``silent`` everywhere. No constant is
    added to the denominator, so the result does not change when the layer is rescaled.
    """
    # dividing by the largest first keeps the sum inside the range of the type
    top = values.detach().amax(-1, keepdim=True) if values.shape[-1] else values
    scaled = values / torch.where(top > 0, top, 1)
    mean = scaled.mean(-1, keepdim=True)
    scores = torch.where((top > 0) & (top * mean > floor), scaled / mean, silent)
    return torch.where(values.isfinite().all(-1, keepdim=True), scores, torch.nan)
