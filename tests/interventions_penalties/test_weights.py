"""Wasserstein, Parseval, FeatureRank, WeightClipping, NormalizeAndProject, TRAC, Combination against plain loops."""

import math

import numpy as np
import pytest
import torch
from tests.reference import penalties as twin
from tests.reference import weights
from torch import nn
from torch.nn import functional as nnf

from supple.errors import AttachError, InputError, SuppleError
from supple.functional import feature_rank_penalty
from supple.interventions import (
    TRAC,
    Combination,
    FeatureRank,
    L2Init,
    NormalizeAndProject,
    Parseval,
    PlasticityInjection,
    ReDo,
    SpectralRegularization,
    Wasserstein,
    WeightClipping,
    create,
)
from supple.interventions.trac import erfi

LR = 1e-2


def start(model):
    return {n: p.detach().numpy().copy() for n, p in model.named_parameters()}


def steps(problem, model, optimizer, look=lambda t: None):
    for t, (x, y) in enumerate(problem.batches):
        optimizer.zero_grad()
        nnf.cross_entropy(model(x), y).backward()
        optimizer.step()
        look(t)


def check(problem, penalty, made, tolerance=1e-9):
    model = problem.model()
    expected = twin.train(start(model), problem.numpy(), LR, made(start(model)))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    penalty.attach(model, optimizer, inputs=problem.batches[0][0])
    errors = []
    steps(problem, model, optimizer, lambda t: errors.append(
        max(abs(p.detach().numpy() - expected[t][n]).max() for n, p in model.named_parameters())
    ))  # fmt: skip
    assert len(errors) == 300
    assert max(errors) < tolerance


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_wasserstein(problem, reduction):
    rule = Wasserstein(coef=0.03, reduction=reduction)
    check(problem, rule, lambda p0: weights.Wasserstein(p0, 0.03, reduction == "mean"))


def test_parseval(problem):
    rule = Parseval(coef=1e-3, scale=2.0, width=64)
    check(problem, rule, lambda p0: weights.Parseval(["0.weight"], 1e-3, 2.0, 64))


def test_parseval_takes_the_output_from_the_trace_or_the_last_matrix():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Conv1d(1, 2, 1), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = Parseval().attach(model, optimizer)
    assert [m.name for m in handle.parts.matrices] == ["0.weight", "2.weight"]
    assert "3.weight" in handle.skipped
    assert len(Parseval(output=True).attach(model, optimizer).parts.matrices) == 3
    single = nn.Linear(3, 2)
    with pytest.raises(AttachError, match="no hidden weight matrix"):
        Parseval().attach(single, torch.optim.SGD(single.parameters(), lr=0.1))


def test_feature_rank(problem):
    """The gradient goes through the features of the step's own batch."""

    def made(p0):
        def penalty(t, p):
            x = problem.numpy()[t][0]
            h = np.tanh(x @ p["0.weight"].T + p["0.bias"])
            d_z = weights.feature_rank_gradient(h) * (1 - h**2)
            return {"0.weight": 0.05 * d_z.T @ x, "0.bias": 0.05 * d_z.sum(0)}

        return penalty

    check(problem, FeatureRank(coef=0.05), made, 1e-7)  # the eigenvalues of a Gram matrix


@pytest.mark.parametrize("batched", [True, False])
def test_the_features_of_a_convolution_are_its_channels(batched):
    torch.manual_seed(0)
    trunk, head = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh()), nn.Conv2d(3, 2, 1)
    model, x = nn.Sequential(trunk, head), torch.randn(*([4] if batched else []), 2, 7, 6)
    handle = FeatureRank(coef=1.0, layer="1").attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model(x)
    expected = feature_rank_penalty(trunk(x).movedim(-3, -1).reshape(-1, 3))
    assert handle.penalty().item() == pytest.approx(expected.item())


def test_features_may_come_by_keyword():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(input=self.trunk(x).tanh())

    model, x = ByKeyword(), torch.randn(10, 3)
    handle = FeatureRank(coef=1.0, layer="head").attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model(x)
    expected = feature_rank_penalty(model.trunk(x).tanh())
    assert handle.penalty().item() == pytest.approx(expected.item())


def test_feature_rank_finds_its_layer_or_says_that_it_cannot():
    x = torch.randn(10, 3)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)

        def forward(self, x):
            h = self.trunk(x).tanh()
            return self.a(h), self.b(h)

    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AttachError, match=r"one output layer.*a, b"):
        FeatureRank().attach(model, optimizer, inputs=x)
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(AttachError, match="no such module"):
        FeatureRank(layer="head").attach(model, optimizer)
    handle = FeatureRank(layer="a").attach(model, optimizer)
    model(x)
    expected = feature_rank_penalty(model.trunk(x).tanh())
    assert handle.penalty().item() == pytest.approx(5e-4 * expected.item())


def test_weight_clipping(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    handle = WeightClipping(kappa=0.6).attach(model, optimizer)
    p = start(model)
    bound = {"0": 0.6 / math.sqrt(6), "2": 0.6 / math.sqrt(9)}
    touched = 0
    for t, (x, y) in enumerate(problem.numpy()):
        g = twin.cross_entropy_gradient(p, x, y)
        moved = {n: p[n] - 0.3 * g[n] for n in p}
        p = {n: np.clip(w, -bound[n[0]], bound[n[0]]) for n, w in moved.items()}
        touched += sum(int((moved[n] != p[n]).sum()) for n in p)
        optimizer.zero_grad()
        nnf.cross_entropy(model(problem.batches[t][0]), problem.batches[t][1]).backward()
        optimizer.step()
        for n, w in model.named_parameters():
            assert abs(w.detach().numpy() - p[n]).max() < 1e-9
    assert touched > 100
    assert not handle.skipped


def test_weight_clipping_leaves_norms_and_the_output_alone_and_says_so():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = WeightClipping(output=False).attach(model, optimizer)
    assert handle.bounds == {n: 3.0 / math.sqrt(18) for n in ("0.weight", "0.bias")}
    assert {"1.weight", "1.bias", "4.weight", "4.bias"} <= set(handle.skipped)
    traced = WeightClipping(output=False).attach(model, optimizer, inputs=torch.randn(4, 2, 3, 3))
    assert traced.bounds == handle.bounds
    with pytest.raises(InputError, match="kappa"):
        WeightClipping(kappa=0)


def test_clipping_at_the_initial_bound_leaves_fresh_convolutions_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(8, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 3))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    WeightClipping(kappa=1.0).attach(model, optimizer)
    model(torch.randn(2, 8, 5, 5)).sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_every_optimizer_has_its_weights_projected_after_its_own_step():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)
    )  # fmt: skip
    x, y = torch.randn(16, 4), torch.arange(16) % 3
    pair = [torch.optim.SGD(part.parameters(), lr=1.0) for part in (model[:3], model[3:])]
    handle = NormalizeAndProject(every=2).attach(model, pair, inputs=x)
    norms = [float(model[i].weight.detach().norm()) for i in (0, 3)]
    kept = []
    for _ in range(4):
        nnf.cross_entropy(model(x), y).backward()
        for optimizer in pair:
            optimizer.step()
        now = [float(model[i].weight.detach().norm()) for i in (0, 3)]
        kept.append([n == pytest.approx(start, rel=1e-6) for n, start in zip(now, norms, strict=True)])
    assert kept == [[False, False], [True, True], [False, False], [True, True]]
    handle.load_state_dict(handle.state_dict())


def test_a_weight_that_is_not_finite_is_not_projected():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.ReLU(), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = NormalizeAndProject().attach(model, optimizer, inputs=torch.randn(4, 2))
    model[0].weight.data[0, 0] = math.inf
    before = model[0].weight.detach().clone()
    handle.apply_()
    assert torch.equal(model[0].weight, before)


def test_normalize_and_project():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 4)).double()
    plain = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 4)).double()
    plain.load_state_dict(model.state_dict())
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 4
    pair = [(m, torch.optim.Adam(m.parameters(), lr=0.01)) for m in (model, plain)]
    NormalizeAndProject(every=3).attach(model, pair[0][1], inputs=x)
    norm, head = (float(plain[i].weight.detach().norm()) for i in (0, 3))
    for t in range(1, 301):
        for net, optimizer in pair:
            optimizer.zero_grad()
            nnf.cross_entropy(net(x), y).backward()
            optimizer.step()
        if t % 3 == 0:
            w = plain[0].weight.detach().numpy()
            plain[0].weight.data = torch.from_numpy(w * norm / np.linalg.norm(w))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-9)
    assert float(model[3].weight.detach().norm()) != pytest.approx(head, rel=0.05)  # the head is free


def test_projection_without_norms_is_refused_with_the_way_out():
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AttachError, match=r"none behind 0; do: .*insert_norms_"):
        NormalizeAndProject().attach(model, optimizer, inputs=torch.randn(3, 6))
    with pytest.raises(AttachError, match="inputs="):
        NormalizeAndProject().attach(model, optimizer)
    assert not optimizer._optimizer_step_post_hooks


def test_erfi_is_that_of_quadrature():
    for x in (-3.0, -0.1, 0.0, 1e-6, 0.5, 2.0, 5.0):
        assert float(erfi(torch.tensor(x, dtype=torch.float64))) == pytest.approx(weights.erfi(x), rel=1e-10)
    assert math.isfinite(float(erfi(torch.tensor(25.0, dtype=torch.float64))))


@pytest.mark.parametrize("start_scale", [1e-8, 0.3])
def test_trac(problem, start_scale):
    model = problem.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    handle = TRAC(start=start_scale).attach(model, optimizer)
    theta, adam = start(model), twin.Adam(LR)
    tuner = weights.Trac(theta, TRAC().betas, start_scale)
    moved = []
    for t, (x, y) in enumerate(problem.numpy()):
        g = twin.cross_entropy_gradient(theta, x, y)
        stepped = {n: w.copy() for n, w in theta.items()}
        adam.step(stepped, g)
        theta = tuner.step(theta, g, stepped)
        optimizer.zero_grad()
        nnf.cross_entropy(model(problem.batches[t][0]), problem.batches[t][1]).backward()
        optimizer.step()
        for n, w in model.named_parameters():
            assert abs(w.detach().numpy() - theta[n]).max() < 1e-6 * min(1, start_scale), t
        moved.append(max(abs(theta[n] - tuner.ref[n]).max() for n in theta))
    assert handle.scales()[0] == pytest.approx(max(0.0, sum(tuner.s)), rel=1e-6)
    assert max(moved) > 0.1 * start_scale * LR


def test_trac_of_a_fused_optimizer_under_a_scaler_is_that_of_the_plain_one(problem):
    ends = []
    for scale in (None, 1024.0):
        model = problem.model().float()
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
        TRAC(start=0.3).attach(model, optimizer)
        for x, y in problem.batches[:40]:
            optimizer.zero_grad()
            loss = nnf.cross_entropy(model(x.float()), y)
            (loss if scale is None else loss * scale).backward()
            if scale is not None:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*ends, atol=1e-5)


def test_trac_in_float16_starts_from_a_scale_that_float16_does_not_have():
    torch.manual_seed(0)
    model = nn.Linear(3, 1).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = TRAC().attach(model, optimizer)
    before = model.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(4, 3, dtype=torch.float16)).square().mean().backward()
        optimizer.step()
    assert 0 < handle.scales()[0] < 1e-6
    assert torch.allclose(model.weight, before, atol=1e-3)


def test_trac_stops_where_its_scale_leaves_the_numbers():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = TRAC().attach(model, optimizer)
    handle.sigma.fill_(1e9)
    model(torch.ones(2, 3)).sum().backward()
    before = handle.s.clone()
    with pytest.raises(SuppleError, match="not finite"):
        optimizer.step()
    assert torch.equal(handle.s, before)


# -- combinations ---------------------------------------------------------------------------------
def test_a_combination_is_its_parts_attached_in_order(problem):
    parts = (SpectralRegularization(coef=0.01), L2Init(coef=0.02), WeightClipping(kappa=1.1))
    ends = []
    for together in (True, False):
        model = problem.model()
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        for part in [Combination(parts)] if together else parts:
            part.attach(model, optimizer)
        steps(problem, model, optimizer)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_a_combination_is_attached_whole_or_not_at_all(problem):
    model = problem.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    with pytest.raises(SuppleError):  # no hidden norm
        Combination([L2Init(), NormalizeAndProject()]).attach(model, optimizer, inputs=problem.batches[0][0])
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    handle = Combination([L2Init(coef=1.0), Wasserstein(coef=1.0)]).attach(model, optimizer)
    model[0].weight.data.mul_(2)
    assert handle.penalty().item() == pytest.approx(sum(h.penalty().item() for h in handle.handles))
    handle.task("next")
    assert [h.task_index for h in handle.handles] == [1, 1]
    state = handle.state_dict()
    wrong = {
        **state,
        "state": {**state["state"], "Wasserstein": {**state["state"]["Wasserstein"], "name": "L2"}},
    }
    with pytest.raises(InputError):
        handle.load_state_dict(wrong)
    handle.detach()
    assert not optimizer._optimizer_step_pre_hooks


def test_a_part_that_changes_the_optimizer_comes_first(problem):
    x, y = problem.batches[0]
    model = problem.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    held = list(optimizer.param_groups[0]["params"])
    with pytest.raises(AttachError, match="put PlasticityInjection first"):
        Combination([L2Init(), PlasticityInjection()]).attach(model, optimizer, inputs=x)
    assert len(optimizer.param_groups[0]["params"]) == len(held)
    assert not optimizer._optimizer_step_pre_hooks
    Combination([PlasticityInjection(), L2Init()]).attach(model, optimizer, inputs=x)
    nnf.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_what_a_combination_is_made_of():
    made = create("Combination", parts=[{"name": "L2Init", "coef": 0.5}, ReDo()])
    assert made.to_dict()["parts"][0]["coef"] == 0.5
    for wrong, says in (
        ([], "at least one"),
        ([ReDo(), ReDo()], "one name"),
        (["ReDo"], "made of interventions"),
    ):
        with pytest.raises(InputError, match=says):
            Combination(wrong)
