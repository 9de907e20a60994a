"""Every handle: saved in mid-run, loaded into a fresh one, the rest of the run is bit for bit the same."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.nn import functional as nnf

from supple.errors import InputError
from supple.interventions import L2, CChain, L2Init, ShrinkAndPerturb, SpectralRegularization

CASES = [
    L2(coef=0.01),
    L2Init(coef=0.05),
    SpectralRegularization(coef=0.05),
    SpectralRegularization(coef=0.05, block=4),
    CChain(coef=3.0),
    CChain(coef=3.0, refresh=3, fraction=0.5),
    CChain(target=1e-3, window=5, start=3),
    CChain(coef=3.0, batch_from="reservoir", memory=3),
    ShrinkAndPerturb(shrink=0.9, perturb=0.1, every=4),
    ShrinkAndPerturb(shrink=0.9, perturb=0.1),
]


def train(model, optimizer, handle, batches, offset=0):
    for index, (x, y) in enumerate(batches, offset):
        if index % 7 == 0:
            handle.task(f"t{index}")
        optimizer.zero_grad()
        loss = nnf.cross_entropy(model(x), y)
        if isinstance(handle.intervention, CChain):
            handle.observe_loss(loss)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("rule", CASES, ids=lambda r: f"{r.name}-{CASES.index(r)}")
@pytest.mark.parametrize("cut", [3, 16, 33])
def test_round_trip_in_mid_run(problem, rule, cut):
    def build():
        model = problem.model()
        return model, torch.optim.Adam(model.parameters(), lr=1e-2)

    model, optimizer = build()
    handle = rule.attach(model, optimizer)
    train(model, optimizer, handle, problem.batches[:cut])
    saved = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), handle.state_dict()], saved)
    train(model, optimizer, handle, problem.batches[cut:60], cut)

    saved.seek(0)
    weights, slots, state = torch.load(saved, weights_only=True)  # tensors and plain types only
    again, second = build()
    other = rule.attach(again, second)
    again.load_state_dict(weights)
    second.load_state_dict(slots)
    other.load_state_dict(state)
    train(again, second, other, problem.batches[cut:60], cut)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    flat = lambda s: copy.deepcopy(s)["state"]
    assert str(flat(handle.state_dict())) == str(flat(other.state_dict()))
    assert handle.step == other.step == 60


@pytest.mark.parametrize("rule", CASES, ids=lambda r: f"{r.name}-{CASES.index(r)}")
def test_state_of_another_version_or_with_unknown_keys_is_refused(problem, rule):
    model = problem.model()
    handle = rule.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    state = handle.state_dict()
    with pytest.raises(InputError, match="version"):
        handle.load_state_dict({**state, "version": 99})
    with pytest.raises(InputError, match="nonsense"):
        handle.load_state_dict({**state, "state": {**state["state"], "nonsense": 1}})
    keys = set(model.state_dict())
    assert keys == {"0.weight", "0.bias", "2.weight", "2.bias"}  # nothing of ours is in the model
