"""Rows on weights: estimates with their error, rounding noise, tied weights, embeddings, growth."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.observe.cases import mlp
from tests.zoo import BY_NAME
from torch import nn

from supple.observe import Monitor, observe, spectrum


def look(model, x, instruments, **more):
    return observe(
        model,
        (x, torch.zeros(len(x))),
        lambda out, _: out.square().mean(),
        instruments=instruments,
        **more,
    )


def test_estimates_state_an_error_that_holds(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 2))
    x = torch.randn(16, 300)
    exact = look(model, x, "spectrum")
    monkeypatch.setattr(spectrum, "EXACT_SIDE", 100)
    seen = look(model, x, "spectrum")
    for name in ("sigma_ratio", "sigma_max", "effective_rank", "stable_rank", "participation_ratio"):
        row = seen.records.last(instrument=name, layer="0", variant="")
        true = exact.value(name, "0")
        assert row.value == pytest.approx(true, rel=0.05)
        assert 0 < row.error < 0.2
        assert abs(row.value / true - 1) <= row.error
        assert "estimate" in row.note
    for name in ("sigma_min", "srank", "below_noise_floor"):
        row = seen.records.last(instrument=name, layer="0")
        assert (row.status, "exact spectrum" in row.note) == ("not_measured", True)


@pytest.mark.parametrize(("dtype", "noisy"), [(torch.bfloat16, True), (torch.float32, False)])
def test_rounding_noise_of_a_low_rank_weight(dtype, noisy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(64, 5) @ torch.randn(5, 64))
    model = model.to(dtype)
    seen = look(model, torch.randn(32, 64, dtype=dtype), "spectrum")
    share = seen.value("below_noise_floor", "0")
    assert (share > 0.7) == noisy
    assert (seen.value("below_noise_floor", "0", "floor") > 0) == noisy
    assert ("rounding noise" in seen.records.last(instrument="srank", layer="0").note) == noisy
    # a healthy weight is not flagged because it is stored in 16 bits
    assert seen.value("below_noise_floor", "2") == 0
    assert seen.value("below_noise_floor") == share


def test_a_tied_weight_is_measured_once_and_embeddings_stand_apart():
    case = BY_NAME["gpt"]
    model = case.make()
    seen = look(model, case.batch(), ["weight_norm", "spectrum"])
    norms = {r.layer: r for r in seen.records.select(instrument="weight_norm", variant="") if r.layer != "*"}
    assert norms["wte"].status == "not_measured"
    assert "tied: its weight is that of head" in norms["wte"].note
    assert norms["wpe"].note == "embedding table"
    assert seen.value("weight_norm", "*", "embedding") == pytest.approx(
        float(model.wpe.weight.detach().norm())
    )
    others = [model.qkv, model.proj, model.fc, model.out, model.head]
    total = np.sqrt(sum(float(m.weight.detach().double().square().sum()) for m in others))
    assert seen.value("weight_norm") == pytest.approx(total)
    assert seen.records.last(instrument="srank", layer="wte").status == "not_measured"
    assert seen.value("srank", "head", "delta=0.01") > 0


def test_growth_of_a_parametrised_weight_is_that_of_the_weight_in_use():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 8)), nn.ReLU(), nn.Linear(8, 3))
    start = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model[0].parametrizations.weight.original0 *= 2
    seen = look(model, torch.randn(16, 5), "weight_norm", reference=start)
    assert seen.value("weight_norm", "0", "growth,twin") == pytest.approx(2)


def test_monitor_tells_growth_against_the_first_weights_and_the_twin():
    torch.manual_seed(0)
    model = mlp()
    batch = (torch.randn(32, 5), torch.arange(32) % 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def twin():
        fresh = mlp()
        with torch.no_grad():
            for p in fresh.parameters():
                p.fill_(0.5)
        return fresh

    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    monitor = Monitor(
        model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=5, instruments="weight_norm",
        reference=twin,
    )  # fmt: skip
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    norm = {n: float(model.get_parameter(n).detach().norm()) for n in start}

    def read(which, layer):
        return monitor.records.last(instrument="weight_norm", layer=layer, variant=f"growth,{which}", step=5)

    for layer in "024":
        name = f"{layer}.weight"
        assert read("initial", layer).value == pytest.approx(norm[name] / float(start[name].norm()), rel=1e-5)
        assert read("twin", layer).value == pytest.approx(
            norm[name] / 0.5 / start[name].numel() ** 0.5, rel=1e-5
        )
    weights = [f"{x}.weight" for x in "024"]
    ratio = sum(norm[n] ** 2 for n in weights) / sum(float(start[n].norm()) ** 2 for n in weights)
    assert read("initial", "*").value == pytest.approx(ratio**0.5, rel=1e-5)
    first = monitor.records.select(instrument="weight_norm", variant="growth,initial", step=0)
    assert {round(r.value, 6) for r in first} == {1.0}
    # a monitor that resumes tells growth against the same weights
    again = Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, instruments="weight_norm")
    again.load_state_dict(monitor.state_dict())
    row = again.measure().last(instrument="weight_norm", layer="*", variant="growth,initial")
    assert row.value == pytest.approx(ratio**0.5, rel=1e-5)


def test_no_other_network_is_told():
    seen = look(mlp(), torch.randn(16, 5), "weight_norm")
    row = seen.records.last(instrument="weight_norm", variant="growth,twin")
    assert (row.status, "reference=" in row.note) == ("not_measured", True)
