"""Rows on units beyond activations: norm scales, unit ages, features with few samples."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.observe.cases import build, mlp
from tests.zoo import BY_NAME
from torch import nn

from supple.functional import effective_rank, null_singular_values, singular_values
from supple.interventions import ContinualBackprop
from supple.observe import Monitor, observe

SCALE = "norm,tau=0.025"


def test_grama_on_norm_scales_equals_the_gradient_of_the_scale():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[1].bias[:3] = -100.0  # dead behind the norm: their scales learn nothing
        model[3].weight[:, 3:5] = 0.0  # nobody reads units 3 and 4
    x, y = torch.randn(32, 5), torch.arange(32) % 3
    seen = observe(model, (x, y), F.cross_entropy, instruments="grama")
    F.cross_entropy(model(x), y).backward()
    for path, module in (("1", model[1]), ("4", model[4])):
        g = module.weight.grad.abs().double()
        scores = g / g.mean()
        torch.testing.assert_close(
            seen.arrays[f"grama_scale_scores/{path}"].double(), scores, rtol=1e-5, atol=1e-9
        )
        assert seen.value("grama", path, SCALE) == float((scores <= 0.025).double().mean())
    assert seen.value("grama", "1", SCALE) == 5 / 8
    assert seen.value("grama", "*", SCALE) == pytest.approx((5 + 6 * seen.value("grama", "4", SCALE)) / 14)


@pytest.mark.parametrize(
    ("name", "paths"),
    [("grouped", {"1"}), ("tokens", {"n"}), ("residual", {"b"}), ("encoder", {"0.norm1", "0.norm2"})],
)
def test_every_kind_of_norm_has_its_rows(name, paths):
    model, batch, loss_fn = build(name)
    seen = observe(model, batch, loss_fn, instruments="grama")
    rows = {r.layer for r in seen.records.select(instrument="grama", variant=SCALE, status="measured")}
    assert rows == {*paths, "*"}


def test_norms_written_by_hand_are_found_through_the_trace():
    case = BY_NAME["llama"]
    model, ids = case.make(), torch.randint(9, (4, 5))
    seen = observe(model, (ids, ids), lambda out, _: out.square().mean(), instruments="grama")
    rows = {r.layer for r in seen.records.select(instrument="grama", variant=SCALE)}
    assert rows == {"n1", "n2", "nf", "*"}


def test_norms_without_gradient_or_samples_say_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(32, 5), torch.arange(32) % 3
    few = observe(model, (x[:8], y[:8]), F.cross_entropy, instruments="grama")
    assert "needs at least 16" in few.records.last(instrument="grama", layer="1", variant=SCALE).note
    model[1].weight.requires_grad_(False)
    row = observe(model, (x, y), F.cross_entropy, instruments="grama").records.last(
        instrument="grama", layer="*", variant=SCALE
    )
    assert (row.status, "frozen" in row.note) == ("not_measured", True)
    row = observe(mlp(), (x, y), F.cross_entropy, instruments="grama").records.last(
        instrument="grama", layer="*", variant=SCALE
    )
    assert (row.status, row.note) == ("not_measured", "no normalisation with a scale")


def test_unit_ages_of_an_attached_intervention():
    torch.manual_seed(0)
    model, x, y = mlp(), torch.randn(32, 5), torch.arange(32) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = ContinualBackprop(replacement_rate=0.02, maturity=5).attach(model, optimizer, inputs=x)
    before = copy.deepcopy(model.state_dict())
    monitor = Monitor(
        model, optimizer, probe=(x, y), loss_fn=F.cross_entropy, every=30, instruments="unit_age"
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    ages = handle.ages
    assert len({int(a) for v in ages.values() for a in v}) > 1, "no unit was replaced: the test shows nothing"
    for layer, values in ages.items():
        for form, value in (("mean", values.double().mean()), ("median", values.double().median()),
                            ("max", values.double().max())):  # fmt: skip
            row = monitor.records.last(instrument="unit_age", layer=layer, variant=form, step=30)
            assert row.value == float(value)
        assert torch.equal(monitor.arrays[f"unit_ages/{layer}"], values)
    pooled = torch.cat(list(ages.values())).double()
    assert monitor.records.last(instrument="unit_age", layer="*", variant="mean").value == float(
        pooled.mean()
    )
    handle.detach()
    row = monitor.measure().last(instrument="unit_age", layer="*")
    assert (row.status, "no intervention" in row.note) == ("not_measured", True)


def test_features_with_few_samples_are_corrected_or_not_measured():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 32), nn.ReLU(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3))
    x, y = torch.randn(40, 50), torch.arange(40) % 3
    seen = observe(model, (x, y), F.cross_entropy, instruments="features")
    row = seen.records.last(instrument="feature_effective_rank", layer="0", variant="raw")
    assert (row.status, "at least 64 samples" in row.note) == ("not_measured", True)
    h = model[1](model[0](x)).detach().double()
    rank = effective_rank(singular_values(h - h.mean(0)))
    null = effective_rank(null_singular_values(39, 32))
    found = seen.value("feature_effective_rank", "0", "centred,null")
    assert found == pytest.approx(float(rank / null), rel=1e-5)
    assert 0.8 < found < 1.05  # a fresh network: as many directions as chance would give
    assert seen.value("feature_effective_rank", "*", "centred,null") == found
    row = seen.records.last(instrument="feature_effective_rank", layer="2", variant="centred,null")
    assert (row.status, "16 units" in row.note) == ("not_measured", True)
    assert seen.value("feature_participation_ratio", "2", "centred") > 1
