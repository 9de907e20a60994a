"""C-CHAIN: independence of the reference batch, an undisturbed network, the coefficient, odd inputs."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from supple.errors import AttachError, InputError
from supple.interventions import CChain


def steps(model, optimizer, count, *, seed=0, inputs=6, classes=4, handle=None):
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(8, inputs, generator=g)
        y = torch.randint(0, classes, (8,), generator=g)
        optimizer.zero_grad()
        loss = nnf.cross_entropy(model(x), y)
        if handle is not None:
            handle.observe_loss(loss)
        loss.backward()
        optimizer.step()


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))


def churn_of(coef, probe):
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    CChain(coef=coef).attach(model, optimizer)
    total = 0.0
    for step in range(60):
        before = model(probe).detach()
        steps(model, optimizer, 1, seed=step)
        if step > 10:
            total += (model(probe).detach() - before).square().mean().item()
    return total


def test_it_lowers_the_churn_it_is_named_after():
    probe = torch.randn(64, 6, generator=torch.Generator().manual_seed(99))
    assert churn_of(30.0, probe) < 0.5 * churn_of(0.0, probe)


def test_loss_form_equals_hook_form():
    ends = []
    for hook in (True, False):
        model = small().double()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        handle = CChain(coef=5.0, hook=hook).attach(model, optimizer)
        g = torch.Generator().manual_seed(0)
        for _ in range(40):
            x, y = torch.randn(8, 6, generator=g).double(), torch.randint(0, 4, (8,), generator=g)
            optimizer.zero_grad()
            loss = nnf.cross_entropy(model(x), y)
            if not hook:
                loss = loss + handle.penalty()
            loss.backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (ends[0] - ends[1]).abs().max().item() == 0.0


def test_dropout_buffers_flags_and_random_state_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    model[1].eval()  # a norm that the user froze
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = CChain(coef=10.0).attach(model, optimizer)
    steps(model, optimizer, 4)
    frozen = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(b, frozen[n]) for n, b in model.named_buffers())
    assert [m.training for m in model] == [True, False, True, True, True]
    # nothing moved since the last call: eval behaviour has no dropout noise to count as churn
    quiet = torch.optim.SGD(model.parameters(), lr=0.0)
    handle.detach()
    handle = CChain(coef=10.0).attach(model, quiet)
    steps(model, quiet, 5)
    assert handle.readings()["penalty"] == 0.0


def test_noise_in_the_forward_itself_is_the_same_before_and_after():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            return self.layer(x + torch.randn_like(x))

    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = CChain(coef=1.0).attach(model, optimizer)
    steps(model, optimizer, 5)
    assert handle.readings()["penalty"] == 0.0


def test_eval_and_no_grad_passes_are_not_collected():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = CChain().attach(model, optimizer)
    model.eval()
    model(torch.ones(2, 6))
    model.train()
    with torch.no_grad():
        model(torch.ones(2, 6))
    assert not handle.past.batches
    steps(model, optimizer, 3)
    assert len(handle.past.batches) == 3


def test_copies_and_pickles_of_the_model_do_not_write_into_the_memory():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = CChain().attach(model, optimizer)
    steps(model, optimizer, 2)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.optim.swa_utils.AveragedModel(model),
    ):
        other.train()
        other(torch.ones(2, 6))
        assert len(handle.past.batches) == 2
    handle.detach()
    model(torch.ones(2, 6))
    assert len(handle.past.batches) == 2
    assert not model._forward_pre_hooks


def test_gradient_accumulation_excludes_all_batches_of_the_step():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = CChain(memory=32).attach(model, optimizer)
    for step in range(6):
        optimizer.zero_grad()
        for part in range(3):
            model(torch.full((2, 6), float(step * 3 + part))).sum().backward()
        optimizer.step()
        if handle.reference is not None:
            assert handle.reference.batch.tensors[0].max() < step * 3


def test_automatic_coefficient_follows_the_running_means_and_the_cap():
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    handle = CChain(coef=2.0, target=1e-3, window=10, start=4).attach(model, optimizer)
    steps(model, optimizer, 4, handle=handle)
    assert float(handle.coefficient()) == 2.0  # fewer than `start` values
    steps(model, optimizer, 20, seed=1, handle=handle)
    wanted = 1e-3 * handle.loss_window.mean() / (handle.churn_window.mean() + 1e-8)
    assert float(handle.coefficient()) == pytest.approx(min(wanted.item(), 100.0), rel=1e-5)

    capped = CChain(target=1e6, cap=7.0, window=5, start=2).attach(model, optimizer)
    handle.detach()
    with pytest.warns(UserWarning, match="cap of 7"):
        steps(model, optimizer, 10, seed=2, handle=capped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        steps(model, optimizer, 10, seed=3, handle=capped)
    assert capped.readings()["coefficient"] == 7.0


def test_a_loss_that_is_not_finite_does_not_count():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    handle = CChain(target=1e-3, window=5, start=2).attach(model, optimizer)
    steps(model, optimizer, 6, handle=handle)
    handle.observe_loss(float("inf"))
    optimizer.zero_grad()
    model(torch.randn(8, 6)).sum().backward()
    optimizer.step()
    assert torch.isfinite(torch.as_tensor(handle.coefficient()))


def test_task_restarts_coefficient_and_reference():
    for restart in (True, False):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = CChain(target=1e-3, coef=3.0, window=5, start=2, restart=restart).attach(model, optimizer)
        steps(model, optimizer, 10, handle=handle)
        handle.task("next")
        assert (handle.reference is None) is restart
        assert (handle.filled == 0) is restart


def test_held_out_inputs_serve_as_the_reference():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = torch.randn(5, 6)
    handle = CChain(batch_from="inputs").attach(model, optimizer, inputs=probe)
    steps(model, optimizer, 1)
    assert torch.equal(handle.reference.batch.tensors[0], probe)
    steps(model, optimizer, 3)
    assert handle.readings()["penalty"] > 0
    assert not model._forward_pre_hooks
    with pytest.raises(AttachError, match="inputs=batch"):
        CChain(batch_from="inputs").attach(model, optimizer)


class Structured(nn.Module):
    """Keyword and nested inputs, a mapping as output."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, *, data, scale=1.0, flag=None):
        assert flag is None
        return {"logits": self.layer(data["x"]) * scale, "other": None}


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_structured_inputs_and_outputs(fraction):
    model = Structured()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    handle = CChain(fraction=fraction).attach(model, optimizer)
    for step in range(5):
        optimizer.zero_grad()
        model(data={"x": torch.randn(4, 6)}, scale=2.0)["logits"].square().sum().backward()
        optimizer.step()
        if step >= 2:
            assert handle.reference.outputs.shape == (4 * fraction, 4)
    assert handle.readings()["penalty"] > 0


def test_refusals():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for settings in (
        {"kind": "tv"},
        {"fraction": 0.0},
        {"memory": 1},
        {"cap": float("inf")},
        {"target": -1.0},
        {"batch_from": "probe"},
    ):
        with pytest.raises(InputError):
            CChain(**settings)
    handle = CChain().attach(model, optimizer)
    optimizer.step()
    optimizer.step()
    with pytest.raises(AttachError, match="seen no training pass"):
        optimizer.step()
    handle.detach()
    handle = CChain(target=1e-3, start=3).attach(model, optimizer)
    with pytest.raises(AttachError, match="observe_loss"):
        steps(model, optimizer, 8)
    handle.detach()
    odd = CChain(output=lambda out: "text").attach(model, optimizer)
    with pytest.raises(InputError, match="which output"):
        steps(model, optimizer, 4)
    odd.detach()


def test_attached_to_a_compiled_model_it_still_sees_the_batches():
    model = small()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps(compiled, optimizer, 2)
    handle = CChain(coef=1.0).attach(compiled, optimizer)
    steps(compiled, optimizer, 5)
    assert handle.readings()["penalty"] > 0


@pytest.mark.parametrize("source", ["recent", "reservoir"])
def test_every_past_batch_is_called_as_it_was_called(source):
    class Optional(nn.Linear):
        def forward(self, x, more=None):
            return super().forward(x if more is None else x + more)

    model = Optional(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = CChain(batch_from=source).attach(model, optimizer)
    for t in range(12):
        optimizer.zero_grad()
        model(*(torch.randn(4, 3) for _ in range(1 + t % 2))).square().mean().backward()
        optimizer.step()
    assert handle.step == 12
