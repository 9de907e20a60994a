"""What a user may get wrong is refused by name before anything is changed."""

from __future__ import annotations

import copy
import dataclasses
import inspect

import pytest
import torch
from tests.interventions import nets
from torch import nn

from supple.errors import AttachError, InputError
from supple.interventions import (
    CCBP,
    FIRE,
    Combination,
    ContinualBackprop,
    Intervention,
    L2Init,
    LayerReset,
    ReDo,
    SelfNormalizedReset,
)
from supple.interventions.registry import available, create
from supple.interventions.settings import fits

OWN = {n: c for n, c in available().items() if c.__module__.startswith("supple.") and n != "Combination"}
FIELDS = [(n, f.name) for n, c in OWN.items() for f in dataclasses.fields(c)]
X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_setting_of_another_type_is_refused_by_name(name: str, field: str) -> None:
    with pytest.raises(InputError, match=field):
        OWN[name](**{field: object()})
    default = next(f.default for f in dataclasses.fields(OWN[name]) if f.name == field)
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        for wrong in ("0.1", float("nan")):
            with pytest.raises(InputError, match=field):
                OWN[name](**{field: wrong})


@pytest.mark.parametrize("name", OWN)
def test_no_model_and_no_optimizer_are_refused(name: str) -> None:
    assert "optimizer" in inspect.signature(OWN[name].attach).parameters
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for wrong in ("net", [model], nn.Linear):
        with pytest.raises(InputError, match="where: model"):
            OWN[name]().attach(wrong, optimizer)
    for wrong in (None, "adam", torch.optim.SGD, [], model.parameters(), [optimizer, None]):
        with pytest.raises(InputError, match="where: optimizer"):
            OWN[name]().attach(model, wrong)


def test_methods_from_elsewhere_are_checked_too_and_keep_their_own_checks() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(Intervention):
        size: int = 1

        def __post_init__(self) -> None:
            if self.size < 0:
                raise InputError("too small", found=self.size)

        def attach(self, model, optimizer, *, inputs=None):
            """Its own words."""

    with pytest.raises(InputError, match="size"):
        Mine(size="1")
    with pytest.raises(InputError, match="too small"):
        Mine(size=-1)
    assert Mine.attach.__doc__ == "Its own words."


def test_what_a_file_says_fits() -> None:
    assert ReDo(layers=["fc1"]).layers == ["fc1"]
    assert fits(1, float | None)
    assert fits(None, float | None)
    assert not fits(True, float)
    assert fits([1], tuple[int, ...])
    assert not fits("ab", tuple[str, ...])
    for settings, match in (({"taus": 1}, "taus"), ({"tau": "1"}, "tau")):
        with pytest.raises(InputError, match=match):
            create("ReDo", **settings)
        with pytest.raises(InputError, match=match):
            Combination([{"name": "ReDo", **settings}])
    for parts in (ReDo(), "ReDo", [{"nam": "ReDo"}], ["ReDo"]):
        with pytest.raises(InputError):
            Combination(parts)


# -- states -----------------------------------------------------------------------------------------
METHODS = (
    ContinualBackprop(replacement_rate=0.3, maturity=1),
    SelfNormalizedReset(),
    CCBP(every=2),
    L2Init(),
)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_state_that_does_not_fit_changes_nothing(method: Intervention) -> None:
    model = nets.MLP(6, 10, 8, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    handle = method.attach(model, optimizer, inputs=X)
    train(model, optimizer, 5)
    kept = copy.deepcopy(handle.state_dict())
    wider = nets.MLP(6, 11, 8, 2)
    other = torch.optim.Adam(wider.parameters(), 1e-2)
    foreign = method.attach(wider, other, inputs=X)
    train(wider, other, 2)
    broken = copy.deepcopy(kept)
    broken["state"] = {k: {"x": 1} if isinstance(v, dict) else v for k, v in broken["state"].items()}
    headless = {k: v for k, v in kept.items() if k != "step"}
    for state in (foreign.state_dict(), broken, headless):
        with pytest.raises(InputError):
            handle.load_state_dict(state)
        assert str(handle.state_dict()) == str(kept)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_state_of_a_handle_that_has_seen_nothing_can_be_loaded(method: Intervention) -> None:
    ends = []
    for loads in (False, True):
        torch.manual_seed(0)
        model = nets.MLP(6, 10, 8, 2)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        handle = method.attach(model, optimizer)
        if loads:
            handle.load_state_dict(handle.state_dict())
        train(model, optimizer, 6)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


# -- which layers -----------------------------------------------------------------------------------
def test_where_nothing_can_be_reset_the_way_out_is_named() -> None:
    model = nets.MLP(6, 10, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(AttachError, match="no attention"):
        ReDo(units=("heads",)).attach(model, optimizer, inputs=X)
    with pytest.raises(AttachError, match="initial="):
        ReDo(initial="glorot").attach(model, optimizer, inputs=X)


class HeadFirst(nn.Module):
    """The output layer is defined before the hidden ones."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.one, self.two = nn.Linear(5, 2), nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(x).relu()).relu())


def test_fire_knows_the_output_layer_from_the_inputs() -> None:
    model = HeadFirst()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = FIRE().attach(model, optimizer, inputs=X)
    assert list(handle.orthogonalise_()) == ["one", "two"]
    handle.detach()
    torch.nn.utils.parametrizations.weight_norm(model.one)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(AttachError, match="where: one"):
        FIRE().attach(model, optimizer, inputs=X)
    with pytest.raises(InputError, match="scale"):
        FIRE(scale=-1.0)


class Stored(nn.Module):
    """x @ W with W (inputs, outputs), as the Conv1D of GPT-2 stores it."""

    def __init__(self, reads: int, gives: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(reads, gives)), nn.Parameter(torch.zeros(gives))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize("reset", ["units", "layer"])
def test_a_matrix_stored_by_inputs_is_drawn_for_its_own_fan(reset: str) -> None:
    model = nn.Sequential(Stored(6, 600), nn.ReLU(), nn.Linear(600, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    whole = LayerReset(layers=("0",), every=1, initial="lecun")
    method = ReDo(tau=10.0, every=1, initial="lecun") if reset == "units" else whole
    method.attach(model, optimizer, inputs=X)
    train(model, optimizer, 1)
    bound = (3 / 6) ** 0.5  # lecun: sqrt(3 / fan_in)
    assert 0.98 * bound < model[0].weight.abs().max() <= bound
