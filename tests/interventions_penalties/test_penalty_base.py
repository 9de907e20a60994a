"""The hook form equals the loss form; nothing is added twice, to frozen parameters, or on skipped steps."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from supple.errors import AttachError, InputError
from supple.interventions import L2, L2Init


def run(problem, penalty, *, in_loss=False, steps=40, opt=torch.optim.Adam, **settings):
    model = problem.model()
    optimizer = opt(model.parameters(), lr=1e-2, **settings)
    handle = penalty.attach(model, optimizer)
    for x, y in problem.batches[:steps]:
        optimizer.zero_grad()
        loss = nnf.cross_entropy(model(x), y)
        if in_loss:
            loss = loss + handle.penalty()
        loss.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("cls", [L2, L2Init])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("foreach", [True, False])
def test_hook_form_equals_loss_form_exactly(problem, cls, dtype, foreach):
    problem.dtype = dtype
    problem.batches = [(x.to(dtype), y) for x, y in problem.batches]
    hooked = run(problem, cls(coef=0.05), foreach=foreach)
    in_loss = run(problem, cls(coef=0.05, hook=False), in_loss=True, foreach=foreach)
    plain = run(problem, cls(coef=0.0), foreach=foreach)
    assert (hooked - in_loss).abs().max().item() == 0.0
    assert (hooked - plain).abs().max().item() > 1e-3


def test_a_term_in_the_loss_is_not_added_again(problem):
    with pytest.warns(UserWarning, match="hook=False"):
        both = run(problem, L2(coef=0.05), in_loss=True)
    assert torch.equal(both, run(problem, L2(coef=0.05)))


def test_reading_the_term_does_not_switch_the_hook_off(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = L2(coef=0.5).attach(model, optimizer)
    before = model[0].weight.detach().clone()
    float(handle.penalty().detach())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert torch.allclose(model[0].weight, before * (1 - 0.1 * 2 * 0.5))
    assert handle.readings()["penalty"] > 0
    assert handle.readings()["coefficient"] == 0.5


def test_missing_gradient_is_created_and_frozen_is_left(problem):
    model = problem.model()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    L2(coef=0.5).attach(model, optimizer)
    frozen, free = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    optimizer.step()  # no backward at all
    assert torch.equal(model[0].weight, frozen)
    assert model[0].weight.grad is None
    assert torch.allclose(model[2].weight, free * 0.9)


def test_several_optimizers_share_the_parameters_out(problem):
    model = problem.model()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD([*model[2].parameters(), model[0].bias], lr=0.1)
    L2(coef=0.5).attach(model, [first, second])
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    first.step()
    assert torch.allclose(model[0].bias, 0.9 * start["0.bias"])
    assert torch.equal(model[2].weight, start["2.weight"])
    first.zero_grad()
    second.step()
    assert torch.allclose(model[2].weight, 0.9 * start["2.weight"])
    assert torch.allclose(model[0].bias, 0.9 * start["0.bias"])  # it belongs to the first


def test_fused_optimizer_with_grad_scaler_equals_the_unscaled_run(problem):
    problem.dtype = torch.float32
    data = [(x.float(), y) for x, y in problem.batches[:40]]

    def go(scaled):
        model = problem.model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
        handle = L2(coef=0.05).attach(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled, growth_interval=1000)
        for step, (x, y) in enumerate(data):
            optimizer.zero_grad()
            loss = nnf.cross_entropy(model(x), y)
            if step == 7:
                if not scaled:
                    continue
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return torch.cat([p.detach().flatten() for p in model.parameters()]), handle.step

    (plain, steps_plain), (scaled, steps_scaled) = go(False), go(True)
    assert torch.equal(plain, scaled)  # the scale is a power of two: no rounding
    assert steps_plain == steps_scaled == 39


def test_not_fused_grad_scaler_counts_only_real_steps(problem):
    model = problem.model().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    handle = L2(coef=0.05).attach(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, (x, y) in enumerate(problem.batches[:6]):
        optimizer.zero_grad()
        loss = nnf.cross_entropy(model(x.float()), y) * (float("inf") if step == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert handle.step == 5


def test_half_precision_parameters_get_a_float32_term():
    model = nn.Linear(300, 300, bias=False).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = L2(coef=0.25).attach(model, optimizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = handle.penalty()
        optimizer.step()
    assert value.dtype == torch.float32
    assert model.weight.grad.dtype == torch.bfloat16
    exact = 0.25 * (model.weight.detach().double() * 2).square().sum()  # the step halved the weights
    assert value.item() == pytest.approx(exact.item(), rel=1e-2)


def test_closure_is_refused_by_name_and_the_way_out_works(problem):
    model = problem.model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    x, y = problem.batches[0]
    for hook in (True, False):
        handle = L2(coef=0.01, hook=hook).attach(model, optimizer)

        def closure(handle=handle):
            optimizer.zero_grad()
            loss = nnf.cross_entropy(model(x), y) + handle.penalty()
            loss.backward()
            return loss

        if hook:
            with pytest.raises(AttachError, match=r"L2 cannot act in optimizer.step\(closure\)"):
                optimizer.step(closure)
        else:
            assert optimizer.step(closure) > 0
        handle.detach()


def test_refusals_name_what_is_wrong(problem):
    model, other = problem.model(), problem.model()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(AttachError, match="no parameter of the model"):
        L2().attach(model, optimizer)
    with pytest.raises(AttachError, match="covers no parameter"):
        L2(filter_fn=lambda m, n: False).attach(other, optimizer)
    assert not optimizer._optimizer_step_pre_hooks  # a refusal leaves no hook behind
    with pytest.raises(InputError, match="coef"):
        L2(coef=-1.0)
    with pytest.raises(InputError, match="coef"):
        L2Init(coef=float("nan"))
    sparse = nn.Sequential(nn.Embedding(5, 2, sparse=True))
    opt = torch.optim.SGD(sparse.parameters(), lr=0.1)
    L2().attach(sparse, opt)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse"):
        opt.step()


def test_detached_handle_adds_nothing_and_changed_parameters_are_noticed(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = L2(coef=0.5).attach(model, optimizer)
    handle.detach()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    L2(coef=0.5).attach(model, optimizer)
    model[2] = nn.Linear(9, 4)
    with pytest.raises(AttachError, match="changed after L2"):
        optimizer.step()


def test_norms_and_filter_select(problem):
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {n for held in L2().attach(model, optimizer).held for n in held}
    assert names == {"0.weight", "0.bias"}
    names = {n for held in L2(norms=True).attach(model, optimizer).held for n in held}
    assert names == {"0.weight", "0.bias", "1.weight", "1.bias"}
    only = L2(filter_fn=lambda m, n: n.endswith("weight"))
    assert {n for held in only.attach(model, optimizer).held for n in held} == {"0.weight"}


def test_l2_init_round_trip_keeps_the_initial_parameters(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = L2Init(coef=0.5).attach(model, optimizer)
    model[0].weight.data.add_(1.0)
    state = handle.state_dict()
    again = L2Init(coef=0.5).attach(model, optimizer)
    assert again.penalty().item() == 0.0
    again.load_state_dict(state)
    assert again.penalty().item() == handle.penalty().item() > 0
    state["state"]["initial"].pop("0.bias")
    with pytest.raises(InputError, match=r"0\.bias"):
        again.load_state_dict(state)
    with pytest.raises(InputError, match="does not belong to L2 "):
        L2().attach(model, optimizer).load_state_dict(handle.state_dict())
