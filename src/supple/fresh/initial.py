"""What a fresh parameter of a layer looks like: the class's own initialiser, a published one, or the user's.

Every draw goes through the generator that is passed in; the global random state is never touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.layouts import is_conv1d

#: called as ``f(tensor, generator=generator)`` and fills the tensor in place, like `torch.nn.init`
Initialiser: TypeAlias = Callable[..., object]
#: "auto", the name of a published law, a callable, or the parameter's stored initial value
Initial: TypeAlias = str | Initialiser | Tensor

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONV1D_STD = 0.02  # of the Conv1D of transformers, whose bias is zero
_UNIFORM_SHAPE = 1.8  # max|w| / std is sqrt(3) = 1.73 for a uniform law and above 2 for a normal one
_FEW = 30  # below this many values the shape of the law cannot be told


def fans(weight: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) as `torch.nn.init` counts them: size(1) and size(0) times the receptive field."""
    if weight.dim() < 2:
        raise InputError("a fan needs a weight of at least two dimensions", found=tuple(weight.shape))
    field = math.prod(weight.shape[2:])
    return weight.shape[1] * field, weight.shape[0] * field


def _kaiming_uniform(t: Tensor, g: torch.Generator) -> None:
    bound = math.sqrt(6.0 / fans(t)[0])
    nn.init.uniform_(t, -bound, bound, generator=g)


def _kaiming_normal(t: Tensor, g: torch.Generator) -> None:
    nn.init.normal_(t, 0.0, math.sqrt(2.0 / fans(t)[0]), generator=g)


def _lecun(t: Tensor, g: torch.Generator) -> None:
    bound = math.sqrt(3.0 / fans(t)[0])
    nn.init.uniform_(t, -bound, bound, generator=g)


def _xavier(t: Tensor, g: torch.Generator) -> None:
    nn.init.xavier_uniform_(t, generator=g)


def _orthogonal(t: Tensor, g: torch.Generator) -> None:
    nn.init.orthogonal_(t, generator=g)


def _zeros(t: Tensor, g: torch.Generator) -> None:
    nn.init.zeros_(t)


#: published laws by name. "kaiming_uniform" (= "he_uniform", bound sqrt(6 / fan_in)) is what the public
#: ReDo and GraMa code re-draws; it is 2.45 times as wide as the default of PyTorch's Linear and Conv.
NAMED: dict[str, Callable[[Tensor, torch.Generator], None]] = {
    "kaiming_uniform": _kaiming_uniform,
    "he_uniform": _kaiming_uniform,
    "kaiming_normal": _kaiming_normal,
    "lecun": _lecun,
    "xavier": _xavier,
    "orthogonal": _orthogonal,
    "zeros": _zeros,
}


def _own_initialiser(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether a subclass brings its own ``reset_parameters``: then its base's default is not its law."""
    return getattr(type(module), "reset_parameters", None) is not getattr(base, "reset_parameters", None)


def default_refusal(module: nn.Module) -> str | None:
    """Why the class default of this layer is not known, or None."""
    for base in (nn.Linear, *_CONV, nn.Embedding, nn.Bilinear):
        if isinstance(module, base):
            if base in _CONV:
                base = nn.Conv2d  # all of them inherit one and the same reset_parameters
            if _own_initialiser(module, base):
                return f"{type(module).__name__} overrides reset_parameters of {base.__name__}"
            return None
    if isinstance(module, nn.MultiheadAttention) or is_conv1d(module):
        return None
    return f"no default initialiser is known for {type(module).__name__}"


def _default_weight(module: nn.Module, name: str, t: Tensor, g: torch.Generator) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.normal_(t, generator=g)
        if module.padding_idx is not None:
            t[module.padding_idx].zero_()
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.xavier_uniform_(t, generator=g)
    elif is_conv1d(module):
        nn.init.normal_(t, std=_CONV1D_STD, generator=g)
    else:
        fan_in = t.shape[1] if isinstance(module, nn.Bilinear) else fans(t)[0]
        bound = 1.0 / math.sqrt(fan_in) if fan_in else 0.0
        nn.init.uniform_(t, -bound, bound, generator=g)


def _default_bias(module: nn.Module, t: Tensor, g: torch.Generator) -> None:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.MultiheadAttention) or is_conv1d(module) or not isinstance(weight, Tensor):
        t.zero_()
        return
    fan_in = weight.shape[1] if isinstance(module, nn.Bilinear) else fans(weight)[0]
    bound = 1.0 / math.sqrt(fan_in) if fan_in else 0.0
    nn.init.uniform_(t, -bound, bound, generator=g)


def _like_stored(stored: Tensor, t: Tensor, g: torch.Generator) -> None:
    """Draw from the law that the stored initial value shows: constant, uniform or normal, same scale."""
    values = stored.detach().to("cpu", torch.float64)
    if values.shape != t.shape or not bool(torch.isfinite(values).all()):
        raise InputError(
            "the stored initial value does not fit the parameter",
            found=f"{tuple(values.shape)}, finite: {bool(torch.isfinite(values).all())}",
            do=f"give a finite tensor of shape {tuple(t.shape)}",
        )
    count, mean = values.numel(), values.mean().item()
    std = values.std(correction=0).item()
    if std == 0.0:
        t.fill_(mean)
        return
    centre = mean if abs(mean) > 5.0 * std / math.sqrt(count) else 0.0
    reach = (values - centre).abs().max().item() / std
    if count < _FEW or reach < _UNIFORM_SHAPE:
        bound = math.sqrt(3.0) * std
        nn.init.uniform_(t, centre - bound, centre + bound, generator=g)
    else:
        nn.init.normal_(t, centre, std, generator=g)


def check_initial(module: nn.Module, initial: Initial) -> str | None:
    """Why `draw` would refuse this layer and law, or None."""
    if isinstance(initial, Tensor) or callable(initial):
        return None
    if initial == "auto":
        return default_refusal(module)
    if initial not in NAMED:
        return f"unknown initialiser {initial!r}; known: auto, {', '.join(NAMED)}"
    return None


@torch.no_grad()
def draw(
    module: nn.Module,
    parameter_name: str,
    generator: torch.Generator,
    initial: Initial = "auto",
    transposed: bool = False,
) -> Tensor:
    """A full fresh tensor for one parameter of a layer.

    Args:
        module: the layer; `Linear`, `Conv1/2/3d`, `ConvTranspose1/2/3d`, `Embedding`, `Bilinear`,
            `MultiheadAttention` and the `Conv1D` of transformers have known defaults.
        parameter_name: the parameter inside the module. A one-dimensional one is a bias: it gets the class
            default whatever ``initial`` says of the weight, or, if ``initial`` is a tensor, that law.
        generator: see `supple.fresh.generator`; the values are drawn on its device.
        initial: "auto" is the class default; a name of `NAMED`; a callable
            ``f(tensor, generator=generator)`` that fills in place (any function of `torch.nn.init`);
            or the parameter's stored initial value, whose law (constant, uniform, normal) and scale are
            copied. Orthogonal structure cannot be read off a stored value.
        transposed: the matrix is stored as (inputs, outputs), so that its law is drawn for its transpose (x @ W); known
            of the Conv1D of GPT-2.

    Returns:
        A tensor of the parameter's shape, dtype and device.

    Raises:
        InputError: unknown law, unknown class under "auto", or a non-finite result.

    >>> layer = nn.Linear(100, 4)
    >>> w = draw(layer, "weight", torch.Generator().manual_seed(0))
    >>> w.shape, bool(w.abs().max() <= 0.1)
    (torch.Size([4, 100]), True)
    """
    parameter = getattr(module, parameter_name)
    reason = check_initial(module, initial)
    if reason is not None and not (parameter.dim() < 2 and initial != "auto"):
        raise InputError(
            f"cannot draw a fresh {parameter_name}",
            found=reason,
            do="pass initial=callable(tensor, generator=...), a known name, or the stored initial value",
        )
    transposed = parameter.dim() == 2 and (transposed or is_conv1d(module))
    dtype = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    shape = parameter.shape[::-1] if transposed else parameter.shape
    fresh = torch.empty(shape, dtype=dtype, device=generator.device)
    if isinstance(initial, Tensor):
        _like_stored(initial.T if transposed else initial, fresh, generator)
    elif parameter.dim() < 2:
        _default_bias(module, fresh, generator)
    elif callable(initial):
        initial(fresh, generator=generator)
    elif initial == "auto":
        _default_weight(module, parameter_name, fresh, generator)
    else:
        NAMED[initial](fresh, generator)
    if callable(initial) and not bool(torch.isfinite(fresh).all()):
        raise InputError(
            f"the initialiser left values of {parameter_name} that are not finite",
            do="fill the whole tensor in place",
        )
    return (fresh.T if transposed else fresh).to(device=parameter.device, dtype=parameter.dtype)
