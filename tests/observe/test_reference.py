"""References: what is accepted, what a twin is, what is refused and how it is said."""

import random
import threading

import numpy as np
import pytest
import torch
from tests.observe.cases import CASES, build, mlp
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from supple.errors import InputError
from supple.observe import Reference, clean_copy, resolve


def test_a_factory_gives_numbered_twins_and_leaves_the_random_state():
    torch.manual_seed(0)
    model = mlp()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    reference = resolve(mlp, model)
    a, b, again = reference.twin(0), reference.twin(1), reference.twin(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()
    assert torch.equal(a[0].weight, again[0].weight)
    assert not torch.equal(a[0].weight, b[0].weight)
    assert (reference.kind, reference.strength, reference.distinct) == ("factory", "strong", True)
    assert resolve(reference, model) is reference
    assert resolve(None, model) is None


def test_a_state_gives_one_network():
    torch.manual_seed(0)
    model = mlp()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    reference = resolve(state, model)
    with torch.no_grad():
        model[0].weight.zero_()
    state["0.weight"].zero_()
    twin = reference.twin(3)
    assert twin[0].weight.abs().sum() > 0
    assert isinstance(reference, Reference)
    assert (reference.kind, reference.distinct) == ("round-0", False)
    assert resolve(mlp(), model).kind == "round-0"


def test_reset_is_weak_and_draws_anew():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Embedding(3, 4))
    with torch.no_grad():
        model[0].weight.fill_(100.0)
        model[1].running_mean.fill_(5.0)
    reference = resolve("reset", model)
    twin = reference.twin(0)
    assert twin[0].weight.abs().max() <= 0.5
    assert twin[1].running_mean.abs().max() == 0
    assert (model[0].weight == 100.0).all()
    assert reference.strength == "weak"
    assert not torch.equal(twin[0].weight, reference.twin(1)[0].weight)
    assert torch.equal(twin[0].weight, reference.twin(0)[0].weight)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.token = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("fresh", "only word"),
        (3, "int"),
        (lambda: nn.Linear(5, 8), "does not fit"),
        (lambda: 3, "must return a module"),
        ({"0.weight": torch.zeros(1)}, "missing"),
    ],
)
def test_refusals(reference, words):
    with pytest.raises(InputError, match=words):
        resolve(reference, mlp())


def test_a_reset_that_would_miss_parameters_names_them():
    model = nn.Sequential(Bare(), nn.ReLU())
    with pytest.raises(InputError, match="where: 0;"):
        resolve("reset", model)


def test_the_network_itself_is_no_reference():
    model = mlp()
    with pytest.raises(InputError, match="under study"):
        resolve(lambda: model, model)


@pytest.mark.parametrize("name", CASES)
def test_states_and_copies_over_the_zoo(name):
    model, _, _ = build(name)
    twin = resolve(model.state_dict(), model).twin(0)
    own = {k.removeprefix("_orig_mod."): v for k, v in model.state_dict().items()}
    assert all(torch.equal(v, own[k]) for k, v in twin.state_dict().items())
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}


def test_a_copy_keeps_the_hooks_that_compute_weights():
    torch.manual_seed(0)
    model = nn.Sequential(l1_unstructured(nn.Linear(4, 4), "weight", 0.5), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda *_: pytest.fail("a foreign hook ran on the copy"))
    twin = clean_copy(model)
    with torch.no_grad():
        twin[0].weight_orig.mul_(2)
    x = torch.randn(3, 4)
    expected = x @ (model[0].weight * 2).T + model[0].bias
    torch.testing.assert_close(twin[0](x), expected)


def test_a_model_that_cannot_be_copied():
    model = mlp()
    model.lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied"):
        clean_copy(model)
