"""What a norm's scale returns to: the parameter that makes it 1, also where the model computes the scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supple.errors import TopologyError
from supple.interventions import ReDo, plan_reset
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


# -- norms and scales whose vectors have several dimensions ------------------------------------------
class Shaped(nn.Module):
    """A convolution of 16 channels, something learned of this shape behind it, a reader."""

    def __init__(self, shape: tuple[int, ...], last: bool = False) -> None:
        super().__init__()
        self.conv, self.out, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 2, 1), last
        self.scale = nn.Parameter(torch.full(shape, 3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.last:
            x = F.layer_norm(x.permute(0, 2, 3, 1), self.scale.shape, self.scale).permute(0, 3, 1, 2)
        elif self.scale.dim() == 3 and self.scale[0].numel() > 1:
            x = F.layer_norm(x, self.scale.shape, self.scale)
        else:
            x = x * self.scale
        return self.out(x.relu())


SHAPES = {
    "channels, height, width": ((16, 2, 2), False, 0),
    "height, width, channels": ((2, 2, 16), True, 2),
    "a vector in four dimensions": ((1, 16, 1, 1), False, 1),
    "a vector in three": ((16, 1, 1), False, 0),
}


@pytest.mark.parametrize("case", SHAPES)
def test_the_entries_of_a_channel_return_wherever_they_are_and_have_fresh_state(case: str) -> None:
    shape, last, dim = SHAPES[case]
    torch.manual_seed(0)
    model, x = Shaped(shape, last), torch.randn(4, 3, 2, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    topology = trace(model, x)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    handle = ReDo(tau=0.0, every=1000).attach(
        model, optimizer, topology=topology
    )  # holds the ages of what is reset
    for _ in range(30):
        step()
    slot = optimizer.state[model.scale]["exp_avg_sq"]
    before = model.scale.detach().clone(), slot.clone()
    plan_reset(model, optimizer, topology, {"conv": torch.tensor([1, 5])}, seed=0, step=1).apply_()
    mine, others = torch.tensor([1, 5]), torch.tensor([i for i in range(16) if i not in (1, 5)])
    for tensor, fresh, old in zip((model.scale.detach(), slot), (1.0, 0.0), before, strict=True):
        assert (tensor.index_select(dim, mine) == fresh).all()
        assert torch.equal(tensor.index_select(dim, others), old.index_select(dim, others))
    with torch.no_grad():  # so that the re-born channels have a gradient
        model.out.weight[:, mine] = 0.1
    step()
    moved = (model.scale.detach().index_select(dim, mine) - 1.0).abs()
    assert 0.0 < float(moved.max()) <= 1e-2 * (1 + 1e-4)
    handle.detach()


def test_a_norm_of_positions_that_all_channels_share_stays_unless_all_are_reset() -> None:
    class Positions(Shaped):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.layer_norm(self.conv(x), (2, 2), self.scale).relu())

    model, x = Positions((2, 2)), torch.randn(4, 3, 2, 2)
    topology, optimizer = trace(model, x), torch.optim.SGD(model.parameters(), 0.1)
    plan_reset(model, optimizer, topology, {"conv": torch.tensor([1, 5])}, seed=0, step=1).apply_()
    assert (model.scale == 3.0).all()
    plan_reset(model, optimizer, topology, {"conv": torch.arange(16)}, seed=0, step=1).apply_()
    assert (model.scale == 1.0).all()
