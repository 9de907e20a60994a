"""Dormancy, GraMa and utilities against their twins, under rescaling, in half types, on broken input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import units as twin
from torch import Tensor, nn
from torch.testing import assert_close

from supple import functional as F
from supple.errors import InputError

FEW = settings(max_examples=40, deadline=None)
values = st.floats(-1e3, 1e3, width=32)


@st.composite
def activations(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Any layout: samples first, units on any other axis, dead units likely."""
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    unit_dim = draw(st.integers(1, len(shape) - 1))
    h = draw(hnp.arrays(np.float32, tuple(shape), elements=values))
    live = draw(hnp.arrays(np.bool_, (shape[unit_dim],)))
    mask = live.reshape([-1 if i == unit_dim else 1 for i in range(len(shape))])
    return np.where(mask, h, np.float32(0)), unit_dim


def close(found: Tensor, wanted: object, rtol: float = 1e-5) -> None:
    assert_close(
        found.double(), torch.as_tensor(wanted, dtype=torch.float64), rtol=rtol, atol=1e-7, equal_nan=True
    )


@FEW
@given(activations())
def test_scores_equal_their_twins(case: tuple[np.ndarray, int]) -> None:
    h, dim = case
    x = torch.from_numpy(h)
    close(F.dormant_scores(x, dim), twin.dormant_scores(h, dim))
    close(F.dormant_scores(x, dim - x.dim()), twin.dormant_scores(h, dim))
    close(F.grama_scores(x, "preactivation", dim), twin.grama_scores(h, "preactivation", dim))
    close(F.grama_scores(x), twin.grama_scores(h, "weight", 0))
    close(F.dead_units(x, dim), twin.dead(h, dim))
    close(F.always_on(x, dim), twin.always_on(h, dim))


@FEW
@given(activations(), st.sampled_from(["tanh", "sigmoid"]))
def test_saturation_equals_its_twin(case: tuple[np.ndarray, int], kind: str) -> None:
    h, dim = case
    x = getattr(torch, kind)(torch.from_numpy(h).double() / 100)
    close(F.saturation_scores(x, kind, dim), twin.saturated(x.numpy(), kind, dim))
    wanted = np.mean(twin.saturated(x.numpy(), kind, dim) >= 0.95)
    close(F.saturated_fraction(x, kind, dim), wanted)


@pytest.mark.parametrize("centred", [True, False])
def test_cloned_units_equal_their_twin(centred: bool) -> None:
    torch.manual_seed(0)
    h = torch.relu(torch.randn(20, 6, 2))
    h[:, 3] = 2 * h[:, 1] + (1 if centred else 0)  # a copy up to scale, and shift where it does not count
    h[:, 5] = 0
    found = F.cloned_units(h, centred=centred)
    close(found, twin.cloned(h.numpy(), centred=centred))
    assert found[1] > 0.9999
    assert found[3] > 0.9999
    assert found[5] == 0
    assert (found[[0, 2, 4]] < 0.95).all()


@FEW
@given(activations(), st.floats(-30, 30))
def test_scale_and_order_do_not_matter(case: tuple[np.ndarray, int], exponent: float) -> None:
    x, dim = torch.from_numpy(case[0]).double(), case[1]
    scale = 10.0**exponent
    order = torch.randperm(x.shape[dim], generator=torch.Generator().manual_seed(0))
    for score in (
        lambda v: F.dormant_scores(v, dim),
        lambda v: F.grama_scores(v, "preactivation", dim),
        lambda v: F.cloned_units(v, dim),
    ):
        base = score(x)
        assert_close(score(x * scale), base, equal_nan=True, rtol=1e-9, atol=1e-9)
        assert_close(score(x.index_select(dim, order)), base[order], equal_nan=True, rtol=1e-9, atol=1e-9)


def test_scores_average_one() -> None:
    torch.manual_seed(0)
    assert F.dormant_scores(torch.randn(7, 5, 3)).mean().item() == pytest.approx(1)
    assert F.grama_scores(torch.randn(7, 5)).mean().item() == pytest.approx(1)


# -- the traps ------------------------------------------------------------------------------------
def test_a_dead_relu_unit_is_found_by_both_forms_and_not_by_the_postactivation_gradient() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(6, 8), nn.Linear(8, 3)
    with torch.no_grad():
        first.bias[:3] = -100
    z = first(torch.randn(32, 6))
    h = torch.relu(z)
    z.retain_grad()
    h.retain_grad()
    nn.functional.cross_entropy(second(h), torch.randint(0, 3, (32,))).backward()
    assert z.grad is not None
    assert h.grad is not None
    assert first.weight.grad is not None
    for scores in (F.grama_scores(first.weight.grad), F.grama_scores(z.grad, "preactivation")):
        assert (scores[:3] == 0).all()
        assert (scores[3:] > 0.05).all()
    assert (F.grama_scores(h.grad, "preactivation")[:3] > 0.2).all()


@pytest.mark.parametrize("size", [1e-3, 1e-10, 1e-12, 1e-30])
def test_a_small_gradient_does_not_make_a_layer_inactive(size: float) -> None:
    torch.manual_seed(0)
    grad = torch.rand(10, 4) + 0.5
    assert_close(F.grama_scores(grad * size), F.grama_scores(grad), rtol=1e-5, atol=0)


def test_a_layer_without_gradient_is_not_judged() -> None:
    for grad in (torch.zeros(4, 3), torch.full((4, 3), 1e-42)):
        scores = F.grama_scores(grad)
        assert scores.isnan().all()
        assert F.dormant_fraction(scores, 0.1).isnan()
    assert F.grama_scores(torch.ones(4, 3), minimum=2.0).isnan().all()


def test_a_layer_that_is_all_zero_is_all_dormant() -> None:
    scores = F.dormant_scores(torch.zeros(5, 4))
    assert F.dormant_fraction(scores, 0.0) == 1
    assert (F.dead_units(torch.zeros(5, 4)) == 1).all()


def test_threshold_is_inclusive() -> None:
    assert F.dormant_fraction(torch.tensor([0.1, 0.2], dtype=torch.float64), 0.1) == 0.5


def test_transposed_convolution_and_tokens() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 6, 3, 3)
    assert_close(F.grama_scores(weight, unit_dim=1), F.grama_scores(weight.transpose(0, 1)))
    h = torch.randn(3, 7, 5)
    assert_close(F.dormant_scores(h, unit_dim=-1), F.dormant_scores(h.transpose(1, 2)))


UNIT_FUNCTIONS = {
    "dormant_scores": F.dormant_scores,
    "grama_scores": lambda x: F.grama_scores(x, "preactivation"),
    "firing_rate": F.firing_rate,
    "dead_units": F.dead_units,
    "always_on": F.always_on,
    "saturation_scores": lambda x: F.saturation_scores(x, "tanh"),
    "saturated_fraction": lambda x: F.saturated_fraction(x, "tanh"),
    "cloned_units": F.cloned_units,
    "contribution_utility": lambda x: F.contribution_utility(x, torch.ones(x.shape[1])),
}
WHOLE_LAYER = {"dormant_scores", "grama_scores", "cloned_units", "saturated_fraction"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", UNIT_FUNCTIONS)
def test_a_value_that_is_not_finite_never_gives_a_verdict(name: str, bad: float) -> None:
    x = torch.rand(6, 4) * 0.5
    x[2, 1] = bad
    found = UNIT_FUNCTIONS[name](x)
    touched = found if name in WHOLE_LAYER else found[1]
    assert not touched.isfinite().any()


@pytest.mark.parametrize("name", UNIT_FUNCTIONS)
def test_no_sample_is_not_measured(name: str) -> None:
    assert UNIT_FUNCTIONS[name](torch.zeros(0, 4)).isnan().all()
    assert UNIT_FUNCTIONS[name](torch.zeros(3, 4, 0)).isnan().all()


def test_no_unit_and_too_few_rows() -> None:
    assert F.dormant_scores(torch.zeros(3, 0)).shape == (0,)
    assert F.dormant_fraction(torch.zeros(0), 0.1).isnan()
    assert F.cloned_units(torch.rand(2, 4)).isnan().all()
    assert F.cloned_units(torch.rand(1, 4), centred=False).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", UNIT_FUNCTIONS)
def test_half_types_are_widened_first(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8).to(dtype)
    found = UNIT_FUNCTIONS[name](x)
    assert found.dtype == torch.float32
    assert_close(found.double(), UNIT_FUNCTIONS[name](x.double()), rtol=1e-5, atol=1e-6)


def test_float16_does_not_overflow() -> None:
    x = torch.full((4096, 2), 6e4, dtype=torch.float16)
    assert_close(F.dormant_scores(x), torch.ones(2))


@pytest.mark.parametrize("name", UNIT_FUNCTIONS)
def test_vmap_over_a_cohort_equals_the_loop(name: str) -> None:
    torch.manual_seed(0)
    x = torch.relu(torch.randn(3, 10, 4))
    x[1, :, 2] = 0
    x[2, 0, 0] = math.nan
    loop = torch.stack([UNIT_FUNCTIONS[name](member) for member in x])
    assert_close(torch.func.vmap(UNIT_FUNCTIONS[name])(x), loop, equal_nan=True)


def test_vmap_over_weight_gradients_and_fractions() -> None:
    g = torch.randn(3, 5, 4)
    scores = torch.func.vmap(F.grama_scores)(g)
    assert_close(scores, torch.stack([F.grama_scores(x) for x in g]))
    fraction = torch.func.vmap(lambda s: F.dormant_fraction(s, 0.9))(scores)
    assert_close(fraction, F.dormant_fraction(scores, 0.9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.dormant_scores(torch.zeros(4)), "sample axis"),
        (lambda: F.dormant_scores(torch.zeros(4, 2), unit_dim=0), "cannot be the sample axis"),
        (lambda: F.dormant_scores(torch.zeros(4, 2), unit_dim=2), "no such axis"),
        (lambda: F.dormant_fraction(torch.zeros(4), -0.1), "tau"),
        (lambda: F.dormant_fraction(torch.zeros(4), math.nan), "tau"),
        (lambda: F.grama_scores(torch.zeros(4, 2), "activation"), "weight, preactivation"),
        (lambda: F.saturated_fraction(torch.zeros(4, 2), "relu"), "dead_units"),
        (lambda: F.contribution_utility(torch.zeros(4, 2), torch.zeros(3, 4)), "number of units"),
        (lambda: F.outgoing_magnitude(torch.zeros(4, 2), reduction="max"), "reduction"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# -- utilities ------------------------------------------------------------------------------------
def test_utilities_equal_their_twins() -> None:
    torch.manual_seed(0)
    h, out, into = torch.randn(8, 5), torch.randn(3, 5), torch.randn(5, 4)
    close(F.contribution_utility(h, out), twin.contribution(h.numpy(), out.numpy()))
    close(
        F.adaptable_contribution_utility(h, out, into), twin.adaptable(h.numpy(), out.numpy(), into.numpy())
    )
    maps, kernel = torch.randn(8, 5, 3, 3), torch.randn(4, 5, 2, 2)
    close(F.contribution_utility(maps, kernel), twin.contribution(maps.numpy(), kernel.numpy()))
    assert_close(F.outgoing_magnitude(kernel, reduction="mean") * 16, F.outgoing_magnitude(kernel))


def test_running_average_is_unbiased_once_corrected_for_age() -> None:
    running, age = torch.zeros(3), torch.zeros(3)
    for _ in range(100):
        running, age = F.running_average(running, torch.tensor([1.0, 2.0, 0.0])), age + 1
    assert running[0].item() == pytest.approx(0.634, abs=1e-3)
    assert_close(F.age_corrected(running, age), torch.tensor([1.0, 2.0, 0.0]), rtol=1e-5, atol=1e-6)
    assert F.age_corrected(torch.zeros(1), torch.zeros(1)).isnan().all()


def test_a_bf16_average_moves() -> None:
    running = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(1000):
        running = F.running_average(running, torch.tensor([0.5], dtype=torch.bfloat16), decay=0.999)
    assert running.item() == pytest.approx(0.5 + 0.5 * 0.999**1000, rel=1e-4)
