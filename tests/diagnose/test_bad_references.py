"""References, histories and earlier tasks that were handed over by mistake."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.diagnose import lab
from torch import nn

import supple
from supple.errors import InputError
from supple.status import Mechanism, Status


def diagnose(net: nn.Module, **options: Any) -> supple.diagnose.types.DiagnosisReport:
    return supple.diagnose(net, lab.probe(64), F.cross_entropy, budget=0, **options)


# -- references -----------------------------------------------------------------------------------


def test_a_network_is_not_compared_with_itself() -> None:
    net = lab.built(lab.he_factory(), 0)
    kept = net.state_dict()  # no copy: training changes it
    lab.kill_(net, 0.6)
    for itself in (net, kept):
        with pytest.raises(InputError, match="shares its memory"):
            diagnose(net, reference=itself)
        with pytest.raises(InputError, match="shares its memory"):
            supple.trainability(net, lab.probe(64), F.cross_entropy, reference=itself, budget=1)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        with pytest.raises(InputError, match="shares its memory"):
            supple.trial(net, opt, lab.probe(64), F.cross_entropy, reference=itself, budget=5)
    report = diagnose(net, reference=copy.deepcopy(lab.built(lab.he_factory(), 0).state_dict()))
    assert report.finding(Mechanism.DEAD_UNITS).status is Status.PRESENT


def test_a_monitor_takes_the_state_of_its_beginning() -> None:
    net = lab.built(lab.he_factory(), 0)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = supple.Monitor(
        net, opt, probe=lab.probe(64), loss_fn=F.cross_entropy, reference=net.state_dict()
    )
    lab.kill_(net, 0.6)
    report = monitor.diagnose(budget=0)
    monitor.detach()
    assert report.finding(Mechanism.DEAD_UNITS).status is Status.PRESENT


@pytest.mark.parametrize("factory", [lambda: 1 / 0, lambda width: nn.Linear(width, 2), lambda: {}["x"]])
def test_a_factory_that_fails_is_told_in_one_message(factory: Any) -> None:
    with pytest.raises(InputError, match="the reference factory failed"):
        diagnose(lab.built(lab.he_factory(), 0), reference=factory)


def test_a_factory_with_another_activation_is_another_architecture() -> None:
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10))
    with pytest.raises(InputError, match=r"GELU, not ReLU; where: 1"):
        diagnose(net, reference=lambda: nn.Sequential(nn.Linear(20, 32), nn.GELU(), nn.Linear(32, 10)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_twins_come_in_the_number_type_of_the_model(dtype: torch.dtype) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))

    torch.manual_seed(0)
    net, x, y = make().to(dtype), torch.randn(64, 20, dtype=dtype), torch.randint(10, (64,))
    report = supple.diagnose(net, (x, y), F.cross_entropy, reference=make, budget=0)
    assert report.finding(Mechanism.DEAD_UNITS).status is Status.ABSENT
    twin = supple.observe.resolve(make, net).twin(0)  # type: ignore[union-attr]
    assert {t.dtype for t in twin.state_dict().values() if t.is_floating_point()} == {dtype}


# -- histories ------------------------------------------------------------------------------------


def test_the_monitor_of_a_network_with_other_layers_is_refused() -> None:
    other = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10))
    x, y = torch.randn(64, 20), torch.randint(10, (64,))
    opt = torch.optim.SGD(other.parameters(), lr=0.1)
    monitor = supple.Monitor(other, opt, probe=(x, y), loss_fn=F.cross_entropy)
    net = lab.built(lab.he_factory(), 0)
    with pytest.raises(InputError, match="another network"):
        diagnose(net, history=monitor)
    report = supple.diagnose(copy.deepcopy(other), (x, y), F.cross_entropy, history=monitor, budget=0)
    monitor.detach()
    assert report.meta["reference"] == "initial"


# -- earlier tasks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "word"),
    [
        (lab.probe(8), "an earlier task is"),
        ([lab.probe(8)], "an earlier task is"),
        ("abc", "an earlier task is"),
        ([("t", lab.probe(8)[0])], "a pair"),
        ([("t", (torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64)))], "empty"),
        ([("t", (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)))], "fails on the inputs"),
        ([("t", lab.probe(8), "high")], "best value"),
    ],
)
def test_earlier_tasks_of_another_form_are_refused(earlier: Any, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        diagnose(lab.built(lab.he_factory(), 0), earlier=earlier)
    assert "earlier" in str(caught.value)


def test_what_forgetting_assumes_is_said_where_the_verdict_is() -> None:
    net = lab.built(lab.he_factory(), 0)
    told = diagnose(net, earlier=[("t", lab.probe(64), 0.5)]).finding(Mechanism.FORGETTING)
    assumed = diagnose(net, earlier=[("t", lab.probe(64))]).finding(Mechanism.FORGETTING)
    assert "assumes" not in told.reason
    assert "assumes that it had been learned to 100 %" in assumed.reason


def test_a_factory_that_seeds_itself_is_told() -> None:
    def seeded() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return lab.mlp()

    report = supple.diagnose(lab.mlp(), lab.probe(64), F.cross_entropy, reference=seeded, budget=0)
    assert any("same network every time" in words for words in report.meta["weak"])
    report = supple.diagnose(lab.mlp(), lab.probe(64), F.cross_entropy, reference=lab.mlp, budget=0)
    assert not any("same network every time" in words for words in report.meta["weak"])


def test_a_bad_budget_is_refused_before_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def never(*_: object, **__: object) -> None:
        raise AssertionError("looked")

    monkeypatch.setattr(importlib.import_module("supple.diagnose.run"), "observe", never)
    with pytest.raises(InputError, match="budget must be"):
        supple.diagnose(lab.mlp(), lab.probe(64), F.cross_entropy, reference=lab.mlp, budget=-1)
