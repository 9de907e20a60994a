"""Rows of the `full` bundle on kernels, curvature, gradients and steps, against dense float64 algebra."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from tests.observe.cases import build
from torch import nn
from torch.nn import functional as nnf

from supple.observe import Monitor, clean_copy, learning, observe
from supple.observe.batch import main_output, pick
from supple.topology.inputs import call

ZOO = (
    "mlp", "residual", "recurrent", "mapping", "shared", "grouped", "convnet", "vit", "attention",
    "actor_critic", "unet", "compiled", "checkpointed", "frozen",
)  # fmt: skip


def double(item):
    if isinstance(item, torch.Tensor):
        return item.double() if item.is_floating_point() else item
    if isinstance(item, dict):
        return {k: double(v) for k, v in item.items()}
    return tuple(double(x) for x in item) if isinstance(item, tuple) else item


def case(name):
    model, (inputs, targets), loss_fn = build(name)
    return model.double().eval(), (double(inputs), double(targets)), loss_fn


class Dense:
    """Per-sample Jacobians (n, C, P), loss gradients (n, C) and Hessians (n, C, C), one backward pass each."""

    def __init__(self, model, batch, loss_fn, index):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        samples = _samples(batch[0])
        jacobians, gradients, hessians, self.losses = [], [], [], []
        for i in index:
            x, y = (pick(side, torch.tensor([i]), samples) for side in batch)
            outputs = call(model, x, None)
            z = main_output(outputs)
            loss = loss_fn(outputs, y)
            self.losses.append(float(loss.detach()))
            (r,) = torch.autograd.grad(loss, z, create_graph=True)
            jacobians.append(self._rows(z))
            hessians.append([self._second(g, z) for g in r.reshape(-1)])
            gradients.append(r.detach().reshape(-1).numpy())
        self.j, self.r = np.stack(jacobians), np.stack(gradients)
        self.h = np.array(hessians)

    def _rows(self, z):
        return np.stack([
            np.concatenate([
                g.reshape(-1).numpy()
                for g in torch.autograd.grad(f, self.parameters, retain_graph=True, materialize_grads=True)
            ])
            for f in z.reshape(-1)
        ])  # fmt: skip

    @staticmethod
    def _second(g, z):
        if not g.requires_grad:
            return np.zeros(z.numel())
        (row,) = torch.autograd.grad(g, z, retain_graph=True, materialize_grads=True)
        return row.reshape(-1).numpy()


def _samples(inputs):
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    return len(first[0] if isinstance(first, tuple) else first)


def eigenvalues(matrix):
    return np.clip(np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1], 0, None)


def of_spectrum(values):
    p = values / values.sum()
    kept = p[p > 0]
    return {
        "max": values[0], "trace": values.sum(), "effective_rank": np.exp(-(kept * np.log(kept)).sum()),
        "rank99": 1 + int((np.cumsum(p) < 0.99 * (1 - 1e-9)).sum()),
    }  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_kernel_and_curvature_rows_are_those_of_dense_jacobians(name):
    model, batch, loss_fn = case(name)
    samples = _samples(batch[0])
    seen = observe(model, batch, loss_fn, instruments=["curvature"])
    row = seen.records.last(instrument="ntk_full_trace")
    assert row.status == "measured", row.note
    n = row.samples
    index = [round(i * (samples - 1) / (n - 1)) for i in range(n)]
    plain = getattr(model, "_orig_mod", model)
    dense = Dense(plain, batch, loss_fn, index)
    flat = dense.j.reshape(-1, dense.j.shape[2])
    scalar = dense.j.sum(1) / np.sqrt(dense.j.shape[1])
    expected = {}
    for kind, kernel in (("full", flat @ flat.T), ("scalar", scalar @ scalar.T)):
        numbers = of_spectrum(eigenvalues(kernel))
        expected |= {f"ntk_{kind}_{k}": numbers[k] for k in ("trace", "effective_rank", "rank99")}
    # in the space of parameters where it is small enough: the identity itself is what is tested
    factor = np.concatenate([_root(h) @ j for h, j in zip(dense.h, dense.j, strict=True)])
    own = np.einsum("nc,ncp->np", dense.r, dense.j)
    for matrix, rows in (("ggn", factor), ("fisher", own)):
        square = rows.T @ rows if rows.shape[1] < 1500 else rows @ rows.T
        values = eigenvalues(square / n)
        expected |= {f"{matrix}_{k}": v for k, v in of_spectrum(values).items()}
    for key, value in expected.items():
        assert seen.value(key) == pytest.approx(value, rel=1e-6), key


def _root(hessian):
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    return vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T


@pytest.mark.parametrize("name", ["mlp", "mapping", "attention", "shared"])
def test_hessian_max_is_the_top_of_the_dense_hessian(name):
    model, batch, loss_fn = case(name)
    row = observe(model, batch, loss_fn, instruments=["curvature"]).records.last(instrument="hessian_max")
    samples = _samples(batch[0])
    index = torch.linspace(0, samples - 1, row.samples).round().long()
    x, y = (pick(side, index, samples) for side in batch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        grads = torch.autograd.grad(loss_fn(call(model, x, None), y), parameters, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in grads])
        rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in flat]
        rows = [torch.cat([h.reshape(-1) for h in row]) for row in rows]
    top = float(torch.linalg.eigvalsh(torch.stack(rows))[-1])
    assert row.status == "measured"
    assert row.value <= top * (1 + 1e-9)
    assert row.value == pytest.approx(top, rel=max(3 * row.error, 1e-3))


def test_too_many_outputs_are_told():
    model = nn.Linear(4, 400)
    batch = (torch.randn(16, 4), torch.randn(16, 400))
    seen = observe(model, batch, nn.functional.mse_loss, instruments=["curvature"])
    row = seen.records.last(instrument="ggn_trace")
    assert row.status == "not_measured"
    assert "2048" in row.note
    # the Hessian needs no kernel
    assert seen.records.last(instrument="hessian_max").status == "measured"


def test_a_loss_of_nan_is_invalid():
    model = nn.Linear(4, 3)
    batch = (torch.randn(16, 4), torch.randn(16, 3))
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    names = ["curvature", "gradient_signal", "one_step_gain", "churn"]
    seen = observe(model, batch, nn.functional.mse_loss, instruments=names)
    assert {r.status for r in seen.records} == {"invalid"}


def test_readiness_row():
    model, batch, loss_fn = case("mlp")
    n = _samples(batch[0])
    dense = Dense(model, batch, loss_fn, range(n))
    g = np.einsum("nc,ncp->np", dense.r, dense.j)
    total, squares = g.sum(0) @ g.sum(0), (g**2).sum()
    signal = (total - squares) / (n * (n - 1))
    noise = squares / n - signal
    reliability = signal / (signal + noise / n)
    strength = signal / np.mean(dense.losses)
    seen = observe(model, batch, loss_fn, instruments=["gradient_signal"])
    assert seen.records.last(instrument="optimization_readiness").samples == n
    value = lambda variant="": seen.value("optimization_readiness", variant=variant)
    assert value() == pytest.approx(strength * reliability, rel=1e-8)
    assert (value("strength"), value("reliability")) == pytest.approx((strength, reliability), rel=1e-8)


def test_one_step_gain_is_what_a_step_by_hand_gains():
    model, batch, loss_fn = case("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    seen = observe(model, batch, loss_fn, optimizer=optimizer, instruments=["one_step_gain"])
    twin = copy.deepcopy(model)
    x, y = batch
    old = [float(loss_fn(twin(x[i::2]), y[i::2]).detach()) for i in (0, 1)]
    loss_fn(twin(x[::2]), y[::2]).backward()
    torch.optim.SGD(twin.parameters(), lr=0.3).step()
    new = [float(loss_fn(twin(x[i::2]), y[i::2]).detach()) for i in (0, 1)]
    for variant, a, b in zip(("batch", "held_out"), old, new, strict=True):
        assert seen.value("one_step_gain", variant=variant) == pytest.approx((a - b) / a, rel=1e-9)


def test_trainability_is_measured_by_learning(monkeypatch):
    monkeypatch.setattr(learning, "BUDGET", 2.5)

    def build():
        return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))

    torch.manual_seed(0)
    model, batch = build(), (torch.randn(24, 6), torch.arange(24) % 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def look(reference=build):
        return observe(
            model, batch, nn.functional.cross_entropy, optimizer=optimizer, instruments="trainability",
            reference=reference,
        ).records.last(instrument="trainability", variant="")  # fmt: skip

    assert look(reference=None).status == "not_measured"
    with torch.no_grad():
        model[0].bias.fill_(-50)  # every unit is dead: only the last bias can learn
    row = look()
    assert row.status == "measured"
    assert row.lo <= row.value <= row.hi
    assert row.value < 0.5


# -- the run itself -------------------------------------------------------------------------------
def step(model, optimizer, batch):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def watched(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.3), nn.Linear(9, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch = (torch.randn(32, 5), torch.arange(32) % 3)
    monitor = Monitor(
        model, optimizer, probe=batch, loss_fn=nn.functional.cross_entropy, instruments=["loss", "churn"], **settings
    )  # fmt: skip
    return model, optimizer, batch, monitor


def kl(before, after, x):
    with torch.no_grad():
        p, q = (clean_copy(m).eval()(x).double().log_softmax(-1) for m in (before, after))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_churn_of_the_run_over_lags_and_since_the_start():
    model, optimizer, batch, monitor = watched(every=4, lags=(1, 3, 6))
    past = [clean_copy(model)]
    for _ in range(12):
        step(model, optimizer, batch)
        past.append(clean_copy(model))
    monitor.detach()
    for look in (4, 8, 12):
        rows = monitor.records.select(instrument="churn", step=look)
        told = {r.variant: r for r in rows if r.variant.startswith("kl,")}
        lags = [k for k in (1, 3, 6) if k <= look]
        assert set(told) == {f"kl,lag={k}" for k in lags} | {"kl,initial"}
        for k in lags:
            assert told[f"kl,lag={k}"].value == pytest.approx(
                kl(past[look - k], past[look], batch[0]), rel=1e-5
            )
        assert told["kl,initial"].value == pytest.approx(kl(past[0], past[look], batch[0]), rel=1e-5)
    assert not [r for r in monitor.records.select(instrument="churn", step=0) if "lag" in r.variant]


def test_a_new_probe_starts_the_lags_anew():
    model, optimizer, batch, monitor = watched(every=2, lags=(1, 3))
    first = clean_copy(model)
    for _ in range(3):
        step(model, optimizer, batch)
    other = (batch[0] + 1, batch[1])
    monitor.task("second", probe=other)
    step(model, optimizer, batch)
    told = {r.variant: r.value for r in monitor.records.select(instrument="churn", step=4)}
    assert "kl,lag=1" in told
    assert "kl,lag=3" not in told  # those outputs were on the other probe
    assert told["kl,initial"] == pytest.approx(kl(first, model, other[0]), rel=1e-5)
    monitor.detach()


def test_resumed_lags_are_the_same():
    model, optimizer, batch, monitor = watched(every=4, lags=(3,))
    for _ in range(2):
        step(model, optimizer, batch)
    kept = copy.deepcopy(
        (model.state_dict(), optimizer.state_dict(), monitor.state_dict(), torch.get_rng_state())
    )
    for _ in range(2):
        step(model, optimizer, batch)
    monitor.detach()
    again, optimizer, batch, resumed = watched(every=4, lags=(3,))
    again.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    resumed.load_state_dict(kept[2])
    torch.set_rng_state(kept[3])
    for _ in range(2):
        step(again, optimizer, batch)
    resumed.detach()
    rows, same = ([dataclasses.asdict(r) for r in m.records.select(step=4)] for m in (monitor, resumed))
    assert str(rows) == str(same)


def test_without_churn_no_lag_is_kept_and_wrong_lags_are_refused():
    with pytest.raises(ValueError, match="lags"):
        watched(every=4, lags=(0,))
    model, optimizer, batch, monitor = watched(every=lambda s: s == 2, lags=())
    for _ in range(2):
        step(model, optimizer, batch)
    assert not [r for r in monitor.records if "lag" in r.variant]
    monitor.detach()


def test_forgetting_is_the_fall_since_a_task_ended():
    model, optimizer, batch, monitor = watched(every=1)
    monitor.task("a")
    for _ in range(15):
        step(model, optimizer, batch)
    ended = float((clean_copy(model).eval()(batch[0]).argmax(-1) == batch[1]).double().mean())
    other = (batch[0], (batch[1] + 1) % 3)
    monitor.task("b", probe=other)
    for _ in range(15):
        step(model, optimizer, other)
    now = float((clean_copy(model).eval()(batch[0]).argmax(-1) == batch[1]).double().mean())
    row = monitor.records.last(instrument="forgetting", variant="a")
    assert ended - now > 0.2
    assert row.value == pytest.approx(ended - now)
    assert monitor.records.last(instrument="forgetting", variant="").value == pytest.approx(ended - now)
    monitor.task("a", probe=batch)  # it comes again: no longer an earlier task
    step(model, optimizer, batch)
    last = monitor.records.select(instrument="forgetting", step=31)
    assert {r.variant for r in last} == {"b", ""}
    monitor.detach()


def test_a_frozen_network_is_told_and_makes_no_step():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).requires_grad_(False)
    batch = (torch.randn(8, 3), torch.arange(8) % 2)
    seen = observe(net, batch, nnf.cross_entropy, instruments=("churn", "one_step_gain", "curvature"))
    assert all(row.status in ("invalid", "not_measured") for row in seen.records)
    assert any("trainable parameter" in row.note for row in seen.records if row.instrument == "churn")
