"""What a norm's scale returns to: the parameter that makes it 1, also where the model computes the scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supple.errors import TopologyError
from supple.interventions import plan_reset
from supple.topology import trace

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda w: w,
    "one more": lambda w: 1.0 + w,  # Gemma
    "one more, in float32": lambda w: 1.0 + w.float(),
    "a multiple": lambda w: 2.0 * w,
    "exponential": lambda w: w.exp(),
}


class Net(nn.Module):
    """A hidden layer behind an RMS norm whose scale is a form of its parameter."""

    def __init__(self, form: str, fused: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.linspace(-0.5, 0.5, 6))
        self.form, self.fused = FORMS[form], fused

    def forward(self, x: Tensor) -> Tensor:
        x, scale = self.one(x), self.form(self.scale)
        if self.fused:
            return self.two(F.rms_norm(x, (6,), scale.to(x.dtype)).relu())
        return self.two(
            (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale).to(x.dtype).relu()
        )


def reset(form: str, fused: bool, dtype: torch.dtype, start: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = Net(form, fused)
    if start is not None:
        nn.init.constant_(model.scale, start)
    model, x = model.to(dtype), torch.randn(3, 4, dtype=dtype)
    topology = trace(model, x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan_reset(model, optimizer, topology, {"one": torch.tensor([1, 4])}, seed=0, step=1).apply_()
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("form", "fresh"),
    [("plain", 1.0), ("one more", 0.0), ("one more, in float32", 0.0), ("a multiple", 1.0)],
)
def test_a_scale_returns_to_what_leaves_the_unit_as_it_is(
    form: str, fresh: float, fused: bool, dtype: torch.dtype
) -> None:
    model = reset(form, fused, dtype)
    assert model.scale[[1, 4]].tolist() == [fresh, fresh]
    others = torch.linspace(-0.5, 0.5, 6).to(dtype)[[0, 2, 3, 5]]
    assert torch.equal(model.scale[[0, 2, 3, 5]].detach(), others)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scale_of_another_form_is_refused_unless_its_start_shows_the_fresh_value(fused: bool) -> None:
    with pytest.raises(TopologyError, match="a scale is computed from scale"):
        reset("exponential", fused, torch.float64)
    assert not reset("exponential", fused, torch.float64, start=0.0).scale.any()  # exp(0) = 1
