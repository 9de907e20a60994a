"""What the instruments say, against numpy written out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.observe.cases import CASES, build, mlp
from torch import nn

import supple
from supple.errors import InputError
from supple.observe import observe
from supple.observe.instruments import available, select


def double(t):
    return t.detach().double().numpy()


def numpy_pass(model, x, y):
    """Pre-activations, activations and pre-activation gradients of the 3-layer ReLU network, in float64."""
    w = [(double(m.weight), double(m.bias)) for m in model if isinstance(m, nn.Linear)]
    x = double(x)
    z1 = x @ w[0][0].T + w[0][1]
    h1 = np.maximum(z1, 0)
    z2 = h1 @ w[1][0].T + w[1][1]
    h2 = np.maximum(z2, 0)
    out = h2 @ w[2][0].T + w[2][1]
    p = np.exp(out - out.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    g = p.copy()
    g[np.arange(len(y)), y] -= 1
    g /= len(y)
    g2 = (g @ w[2][0]) * (z2 > 0)
    g1 = (g2 @ w[1][0]) * (z1 > 0)
    return [h1, h2], [g1, g2], out, p, [g1.T @ x, g2.T @ h1, g.T @ h2], [g1, g2, g]


@pytest.fixture(scope="module")
def worn():
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        model[0].bias[:2] = -50.0
        model[2].bias[3] = -50.0
        model[2].weight[5] *= 1e-3
        model[2].bias[5] = 1e-4
    x, y = torch.randn(64, 5), torch.arange(64) % 3
    return model, (x, y), numpy_pass(model, x, y.numpy()), observe(model, (x, y), F.cross_entropy)


def test_unit_instruments_against_numpy(worn):
    _, _, (hs, gs, *_), seen = worn
    flags = {tau: [] for tau in ("0.025", "0.1")}
    for name, h in zip("02", hs, strict=True):
        scores = np.abs(h).mean(0) / np.abs(h).mean()
        np.testing.assert_allclose(seen.arrays[f"dormant_scores/{name}"], scores, rtol=1e-5, atol=1e-7)
        for tau, found in flags.items():
            found.extend(scores <= float(tau))
            assert seen.value("dormant", name, f"tau={tau}") == np.mean(scores <= float(tau))
        assert seen.value("dead", name) == np.mean((h == 0).all(0))
        assert seen.value("always_on", name) == np.mean((h > 0).all(0))
    for tau, found in flags.items():
        assert seen.value("dormant", "*", f"tau={tau}") == np.mean(found)
    for name, g in zip("02", gs, strict=True):
        scores = np.abs(g).mean(0) / np.abs(g).mean()
        np.testing.assert_allclose(seen.arrays[f"grama_scores/{name}"], scores, rtol=1e-4, atol=1e-7)
        assert seen.value("grama", name, "preactivation,tau=0.1") == np.mean(scores <= 0.1)
    assert seen.value("dead", "*") >= 3 / 16


def test_weight_gradient_form(worn):
    _, _, (_, _, _, _, weight_grads, _), seen = worn
    for name, g in zip("02", weight_grads, strict=False):
        scores = np.abs(g).mean(1) / np.abs(g).mean()
        assert seen.value("grama", name, "weight,tau=0.025") == np.mean(scores <= 0.025)


def test_output_instruments_against_numpy(worn):
    _, (_, y), (_, _, out, p, grads, bias_grads), seen = worn
    assert seen.loss == pytest.approx(-np.log(p[np.arange(64), y.numpy()]).mean(), rel=1e-5)
    assert seen.value("loss") == seen.loss
    assert seen.value("accuracy") == (out.argmax(1) == y.numpy()).mean()
    assert seen.value("max_logit") == pytest.approx(np.abs(out).max(), rel=1e-5)
    assert seen.value("entropy") == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-5)
    norm = np.sqrt(sum((g**2).sum() for g in grads) + sum((g.sum(0) ** 2).sum() for g in bias_grads))
    assert seen.value("gradient_norm") == pytest.approx(norm, rel=1e-4)
    assert seen.value("gradient_norm", "2") == pytest.approx(np.sqrt((grads[1] ** 2).sum()), rel=1e-4)


def test_weight_instruments_against_numpy(worn):
    model, _, _, seen = worn
    for name in "024":
        w = double(model[int(name)].weight)
        s = np.linalg.svd(w, compute_uv=False)
        k = len(s)
        np.testing.assert_allclose(seen.arrays[f"spectrum/{name}"], s, atol=1e-5 * s[0])
        p = s / s.sum()
        rank = np.exp(-(p * np.log(p)).sum())
        for variant, value in {"": rank, "relative": rank / k}.items():
            assert seen.value("effective_rank", name, variant) == pytest.approx(value, rel=1e-5)
        assert seen.value("sigma_ratio", name) == pytest.approx(s[0] / s.sum(), rel=1e-5)
        assert seen.value("sigma_max", name) == pytest.approx(s[0], rel=1e-5)
        assert seen.value("sigma_min", name) == pytest.approx(s[-1], abs=1e-5 * s[0])
        assert seen.value("stable_rank", name, "relative") == pytest.approx(
            (s**2).sum() / s[0] ** 2 / k, rel=1e-5
        )
        assert seen.value("srank", name, "delta=0.01") == np.searchsorted(np.cumsum(s) / s.sum(), 0.99) + 1
        assert seen.value("weight_norm", name) == pytest.approx(np.linalg.norm(w), rel=1e-6)
        assert seen.value("weight_rms", name) == pytest.approx(np.sqrt((w**2).mean()), rel=1e-6)
    hidden = [seen.value("effective_rank", n, "relative") for n in "02"]
    assert seen.value("effective_rank", "*", "relative") == pytest.approx(np.mean(hidden))
    assert seen.value("sigma_max") == max(seen.value("sigma_max", n) for n in "02")


def test_feature_ranks_against_numpy(worn):
    _, _, (hs, *_), seen = worn
    for name, h in zip("02", hs, strict=True):
        for form, x in {"raw": h, "centred": h - h.mean(0)}.items():
            s = np.linalg.svd(x, compute_uv=False)
            p = s[s > 1e-12] / s.sum()
            rank = np.exp(-(p * np.log(p)).sum())
            assert seen.value("feature_effective_rank", name, form) == pytest.approx(rank, rel=1e-4)
            found = seen.value("feature_effective_rank", name, f"{form},relative")
            assert found == pytest.approx(rank / 8, rel=1e-4)


def test_ntk_statistics_against_per_sample_jacobians(worn):
    model, (x, _), _, seen = worn
    rows = []
    for i in range(64):
        out = model(x[i : i + 1])[0]
        grads = [torch.autograd.grad(o, list(model.parameters()), retain_graph=True) for o in out]
        rows.append(np.stack([np.concatenate([double(g).ravel() for g in gs]) for gs in grads]))
    j = np.stack(rows)
    kernel = np.einsum("icp,jcp->ij", j, j)
    e = np.linalg.eigvalsh(kernel)[::-1].clip(0)
    d = np.sqrt(np.diag(kernel))
    cosine = kernel / d / d[:, None]
    np.testing.assert_allclose(seen.arrays["ntk_spectrum"], e, atol=1e-5 * e[0])
    assert seen.value("ntk_trace") == pytest.approx(e.sum(), rel=1e-4)
    assert seen.value("ntk_rank99") == np.searchsorted(np.cumsum(e) / e.sum(), 0.99) + 1
    assert seen.value("ntk_mean_cosine") == pytest.approx((cosine.sum() - 64) / (64 * 63), rel=1e-4)
    p = e[e > 1e-12 * e[0]] / e.sum()
    assert seen.value("ntk_effective_rank") == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)
    assert seen.records.last(instrument="ntk_trace").samples == 64


def test_gradient_signal_against_per_sample_gradients(worn):
    model, (x, y), _, _ = worn
    seen = observe(model, (x[:20], y[:20]), F.cross_entropy, instruments="gradient_signal")
    g = np.stack(
        [
            np.concatenate(
                [
                    double(t).ravel()
                    for t in torch.autograd.grad(
                        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters())
                    )
                ]
            )
            for i in range(20)
        ]
    )
    diversity = (g**2).sum() / (g.sum(0) ** 2).sum()
    assert seen.value("gradient_diversity") == pytest.approx(diversity, rel=1e-4)
    signal = ((g.sum(0) ** 2).sum() - (g**2).sum()) / (20 * 19)
    noise = ((g - g.mean(0)) ** 2).sum() / 19
    assert seen.value("gradient_snr") == pytest.approx(max(signal, 0) / noise, rel=1e-3)
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    assert seen.value("gradient_mean_cosine") == pytest.approx(((unit @ unit.T).sum() - 20) / 380, rel=1e-3)


def test_churn_against_a_step_made_by_hand():
    torch.manual_seed(0)
    model, x, y = mlp(), torch.randn(40, 5), torch.arange(40) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=0.1)
    seen = observe(model, (x, y), F.cross_entropy, optimizer=optimizer, instruments="churn")
    before = double(model(x))
    loss = F.cross_entropy(model(x[::2]), y[::2])
    grads = torch.autograd.grad(loss, list(model.parameters()))
    twin = mlp()
    with torch.no_grad():
        for new, old, grad in zip(twin.parameters(), model.parameters(), grads, strict=True):
            new.copy_(old - 0.3 * (grad + 0.1 * old))
    after = double(twin(x))
    change = np.abs(after - before)
    assert seen.value("churn", variant="mse") == pytest.approx(((after - before)[1::2] ** 2).mean(), rel=1e-4)
    assert seen.value("churn", variant="relative") == pytest.approx(
        change[1::2].mean() / change[::2].mean(), rel=1e-4
    )
    p, q = (np.exp(o) / np.exp(o).sum(1, keepdims=True) for o in (before, after))
    kl = (p * np.log(p / q)).sum(1)[1::2].mean()
    assert seen.value("churn", variant="kl") == pytest.approx(kl, rel=1e-3)
    assert seen.value("churn", variant="flip") == (before.argmax(1) != after.argmax(1))[1::2].mean()
    assert seen.records[0].note.startswith("SGD lr=0.3")
    assert not optimizer.state


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
        lambda p: torch.optim.AdamW([{"params": list(p), "lr": 1e-2, "initial_lr": 1.0}], weight_decay=0.3),
        lambda p: torch.optim.RMSprop(p, lr=torch.tensor(1e-3)),
        lambda p: torch.optim.LBFGS(p),
        lambda p: torch.optim.Adafactor(p),
    ],
)
def test_churn_takes_the_users_optimizer_or_says_what_it_took(make):
    torch.manual_seed(0)
    model = mlp()
    optimizer = make(model.parameters())
    seen = observe(model, (torch.randn(16, 5), torch.arange(16) % 3), F.cross_entropy, optimizer=optimizer,
                   instruments="churn")  # fmt: skip
    row = seen.records.last(instrument="churn", variant="relative")
    assert row.status == "measured"
    assert type(optimizer).__name__ in row.note


@pytest.mark.parametrize("name", CASES)
def test_every_layer_is_measured_or_named_with_a_reason(name):
    model, batch, loss_fn = build(name)
    seen = observe(model, batch, loss_fn, instruments="full")
    for row in seen.records:
        assert row.status == "measured" or row.note, row
        assert (row.status == "measured") == np.isfinite(row.value), row
    for layer in seen.topology.layers:
        assert seen.records.select(instrument="dormant", layer=layer), layer
        assert seen.records.select(instrument="effective_rank", layer=layer), layer
    assert seen.value("loss") > 0


def test_grouped_convolutions_by_group():
    model, batch, loss_fn = build("grouped")
    seen = observe(model, batch, loss_fn, instruments="spectrum")
    w = double(model[3].weight).reshape(2, 4, -1)
    tops = [np.linalg.svd(m, compute_uv=False)[0] for m in w]
    for i in range(2):
        assert seen.records.last(instrument="sigma_max", part=f"group{i}").value == pytest.approx(
            tops[i], rel=1e-5
        )
    assert seen.value("sigma_max", "3") == pytest.approx(np.mean(tops), rel=1e-5)


def test_tokens_count_units_not_tokens():
    model, batch, loss_fn = build("tokens")
    with torch.no_grad():
        model.g.bias[:3] = -100.0
    seen = observe(model, batch, loss_fn, instruments="economy")
    assert seen.arrays["dormant_scores/g"].shape == (12,)
    assert seen.value("dead", "g") == 3 / 12
    assert seen.value("dead", "u") == 3 / 12  # the other factor of a product that is zero
    assert "nonlinearity" in seen.records.last(instrument="dormant", layer="o").note


def test_saturated_and_cloned_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias[:2] = 30.0
        model[2].weight[1] = 2 * model[2].weight[0]
        model[2].bias[1] = 2 * model[2].bias[0]
    seen = observe(
        model,
        (torch.randn(64, 5), torch.arange(64) % 3),
        F.cross_entropy,
        instruments=["saturated", "cloned"],
    )
    assert seen.value("saturated", "0") == 2 / 8 == seen.value("saturated")
    assert seen.value("cloned", "2") == 2 / 8


def test_a_model_whose_adapter_trains_outside_of_it_is_looked_at():
    """Singular-value adapters freeze the model: units are measured, gradients of weights are not."""
    torch.manual_seed(0)
    model = mlp()
    adapter = supple.nn.svf_(model)
    assert all(p.requires_grad for p in adapter.parameters())
    seen = observe(
        model, (torch.randn(32, 5), torch.arange(32) % 3), F.cross_entropy, instruments=["dead", "grama"]
    )
    assert seen.value("dead") == seen.value("dead")
    row = seen.records.last(instrument="grama", layer="*")
    assert row.status != "measured"
    assert "frozen" in row.note


def test_a_wholly_dead_layer_is_dead_by_gradient_too():
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    seen = observe(model, (torch.randn(32, 5), torch.arange(32) % 3), F.cross_entropy, instruments="economy")
    assert seen.value("grama", "2", "preactivation,tau=0.025") == 1
    assert seen.value("dormant", "2", "tau=0.025") == 1 == seen.value("dead", "2")


def test_growth_against_a_reference():
    torch.manual_seed(0)
    model = mlp()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model[2].weight *= 3
    batch = (torch.randn(16, 5), torch.arange(16) % 3)
    seen = observe(model, batch, F.cross_entropy, instruments="weight_norm", reference=start)
    assert seen.value("weight_norm", "2", "growth,twin") == pytest.approx(3)
    assert seen.value("weight_norm", "0", "growth,twin") == pytest.approx(1)


# -- never healthy by accident --------------------------------------------------------------------
PROBE = (
    "dormant",
    "dead",
    "grama",
    "saturated",
    "churn",
    "ntk_rank99",
    "loss",
    "cloned",
    "feature_effective_rank",
)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_in_the_probe(value):
    torch.manual_seed(0)
    x = torch.randn(32, 5)
    x[3, 2] = value
    seen = observe(mlp(), (x, torch.arange(32) % 3), F.cross_entropy)
    for name in PROBE:
        rows = seen.records.select(instrument=name)
        assert len(rows), name
        assert {r.status for r in rows} == {"invalid"}, name
        assert all("probe inputs" in r.note for r in rows)
    assert seen.value("weight_norm", "2") > 0


@pytest.mark.parametrize("where", [0, 2, 4])
def test_bad_numbers_in_the_weights(where):
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        model[where].weight[0, 0] = float("nan")
    seen = observe(model, (torch.randn(32, 5), torch.arange(32) % 3), F.cross_entropy)
    for name in ("loss", "grama", "churn", "ntk_rank99"):
        assert {r.status for r in seen.records.select(instrument=name)} == {"invalid"}, name
    assert seen.records.last(instrument="effective_rank", layer=str(where)).status == "invalid"
    if where < 4:
        assert seen.records.last(instrument="dormant", layer=str(where)).status == "invalid"
        assert seen.records.last(instrument="dormant", layer="*").status == "invalid"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_too_few_samples(n):
    torch.manual_seed(0)
    seen = observe(mlp(), (torch.randn(n, 5), torch.arange(n) % 3), F.cross_entropy)
    for name in ("dormant", "dead", "grama", "ntk_rank99", "cloned"):
        for row in seen.records.select(instrument=name, layer="*"):
            assert row.status == "not_measured" and row.note, row  # noqa: PT018
    assert seen.records.last(instrument="feature_effective_rank", layer="*").status == "not_measured"


def test_no_gradient_anywhere_is_not_a_dead_network():
    torch.manual_seed(0)
    model = mlp()
    batch = (torch.randn(32, 5), torch.arange(32) % 3)
    seen = observe(model, batch, lambda o, t: F.cross_entropy(o, t) * 0.0, instruments="grama")
    assert {r.status for r in seen.records} == {"not_measured"}
    seen = observe(model.requires_grad_(False), batch, F.cross_entropy, instruments="grama")
    assert {r.status for r in seen.records} == {"invalid"}


def test_a_network_without_hidden_layer():
    seen = observe(nn.Linear(5, 3), (torch.randn(32, 5), torch.arange(32) % 3), F.cross_entropy)
    for name in ("dormant", "dead", "grama", "effective_rank"):
        assert seen.records.last(instrument=name, layer="*").status == "not_measured"


@pytest.mark.parametrize(
    ("batch", "loss_fn", "words"),
    [
        (torch.zeros(3, 5), F.cross_entropy, "pair"),
        ((torch.zeros(0, 5), torch.zeros(0)), F.cross_entropy, "empty"),
        (("text", torch.zeros(3)), F.cross_entropy, "no tensor"),
        ((torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)), F.cross_entropy, "fails on the probe"),
        ((torch.zeros(3, 5), torch.zeros(9, dtype=torch.long)), F.cross_entropy, "loss_fn"),
        ((torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)), lambda o, t: o, "scalar"),
        ((torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)), lambda o, t: 1.0, "scalar"),
    ],
)
def test_a_probe_of_the_wrong_form_is_refused(batch, loss_fn, words):
    model = mlp()
    with pytest.raises(InputError, match=words):
        observe(model, batch, loss_fn)
    assert not any(m._forward_hooks for m in model.modules())
    assert model.training


def test_names_of_instruments():
    assert {i.name for i in select("economy")} < set(available())
    assert [i.name for i in select(["dead", "ntk"])] == ["dead", "ntk"]
    with pytest.raises(InputError, match="choose from economy"):
        select("everything")
