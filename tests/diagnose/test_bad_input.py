"""What a new user hands over by mistake: one clear message, and nothing of the training state is touched."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.diagnose import lab
from torch import Tensor, nn

from supple.diagnose.plan import plan
from supple.diagnose.run import run
from supple.diagnose.trainability import trainability
from supple.diagnose.trial import trial
from supple.errors import InputError
from supple.interventions.registry import create
from supple.observe.batch import user_code
from supple.status import Mechanism, Status


def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = lab.built(lab.he_factory(), 0)
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


def detached(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets).detach()


# -- budgets, models, optimizers, candidates ------------------------------------------------------


@pytest.mark.parametrize("budget", [-1, math.nan, "3", [3], True])
def test_a_budget_is_a_number_of_seconds(budget: Any) -> None:
    net, opt = fresh()
    with pytest.raises(InputError, match="number of seconds"):
        trainability(net, lab.probe(64), F.cross_entropy, twin=lambda i: lab.he_factory()(), budget=budget)
    with pytest.raises(InputError, match="number of seconds"):
        trial(net, opt, lab.probe(64), F.cross_entropy, candidates=["nothing"], budget=budget)


def test_a_trial_without_time_is_refused_with_advice_that_helps() -> None:
    net, opt = fresh()
    with pytest.raises(InputError, match="positive number") as caught:
        trial(net, opt, lab.probe(64), F.cross_entropy, candidates=["nothing"], budget=0)
    assert "raise budget to 0 s" not in str(caught.value)


@pytest.mark.parametrize("model", [None, torch.relu, {}, nn.ReLU()])
def test_trials_and_plans_need_a_model_that_trains(model: Any) -> None:
    net, opt = fresh()
    with pytest.raises(InputError, match=r"torch\.nn\.Module|trainable parameter"):
        trial(model, opt, lab.probe(64), F.cross_entropy, candidates=["nothing"])
    report = run(net, lab.probe(64), F.cross_entropy, budget=0)
    with pytest.raises(InputError, match=r"torch\.nn\.Module|trainable parameter"):
        plan(model, opt, report)


def test_trials_and_plans_need_an_optimizer() -> None:
    net, opt = fresh()
    report = run(net, lab.probe(64), F.cross_entropy, budget=0)
    for wrong in ("adam", torch.optim.Adam, torch.optim.lr_scheduler.StepLR(opt, 1)):
        with pytest.raises(InputError, match="optimizer must be"):
            trial(net, wrong, lab.probe(64), F.cross_entropy, candidates=["nothing"])  # type: ignore[arg-type]
        with pytest.raises(InputError, match="optimizer must be"):
            plan(net, wrong, report)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no parameter of this model"):
        plan(net, fresh()[1], report)
    with pytest.raises(InputError, match="report of a diagnosis"):
        plan(net, opt, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("candidates", ["ReGraMa", create("ReGraMa")])
def test_candidates_are_a_list(candidates: Any) -> None:
    net, opt = fresh()
    with pytest.raises(InputError, match="candidates must be a list"):
        trial(net, opt, lab.probe(64), F.cross_entropy, candidates=candidates)


def test_a_trial_on_a_handful_of_samples_is_refused() -> None:
    net, opt = fresh()
    with pytest.raises(InputError, match="too few probe samples"):
        trial(net, opt, lab.probe(4), F.cross_entropy, candidates=["nothing"])


# -- a loss without a gradient, and trials that tell nothing ---------------------------------------


def test_a_loss_without_a_gradient_is_said_and_not_raised_from_autograd() -> None:
    net, opt = fresh()
    found = run(net, lab.probe(64), detached, optimizer=opt, reference=lab.he_factory(), budget=1)
    first = found.finding(Mechanism.PLASTICITY_LOSS)
    assert first.status is Status.NOT_MEASURED
    assert "does not depend on a trainable parameter" in first.reason
    with pytest.raises(InputError, match="does not depend on a trainable parameter"):
        trial(net, opt, lab.probe(64), detached, candidates=["nothing"], budget=5)


class FixedBatch(nn.Module):
    """A network that trains on 64 samples, no more and no fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = lab.he_factory()()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) != 64:
            raise RuntimeError("64 samples, please")
        return self.net(x)


def test_what_only_takes_the_whole_probe_is_told_by_step_0_and_by_a_trial() -> None:
    weights = torch.rand(64)

    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        return (weights * F.cross_entropy(outputs, targets, reduction="none")).mean()

    for make, loss, word in (
        (lab.he_factory(), weighted, "loss_fn"),
        (FixedBatch, F.cross_entropy, "any size"),
    ):
        net = make()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        first = run(net, lab.probe(64), loss, optimizer=opt, reference=make, budget=1)
        found = first.finding(Mechanism.PLASTICITY_LOSS)
        assert found.status is Status.NOT_MEASURED
        assert word in found.reason
        with pytest.raises(InputError, match=word):
            trial(net, opt, lab.probe(64), loss, candidates=["nothing"], budget=5)


@pytest.mark.parametrize(("rate", "word"), [(1e9, "diverges"), (0.0, "no candidate learns more than")])
def test_a_trial_in_which_nothing_learns_names_no_winner(
    rate: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.Clock.in_place_of_time(monkeypatch, sys.modules[trial.__module__], 1e-3)
    net, _ = fresh()
    opt = torch.optim.SGD(net.parameters(), lr=rate)
    found = trial(net, opt, lab.probe(64), F.cross_entropy, candidates=["L2Init"], budget=2)
    assert word in found.problem
    assert not found.clear
    assert "First:" not in str(found)
    assert word in str(found).replace("\n", " ")
    report = run(net, lab.probe(64), F.cross_entropy, budget=0)
    assert "Not reordered" in found.reorder(report.prescription).note
    assert found.to_dict()["problem"] == found.problem


@pytest.mark.parametrize("price", [1.3e-3, 2.6e-3, 3.9e-3, 5.2e-3])
def test_the_budget_that_is_advised_is_enough(price: float, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.Clock.in_place_of_time(monkeypatch, sys.modules[trial.__module__], price)
    net, opt = fresh()

    def tried(budget: float) -> object:
        return trial(net, opt, lab.probe(64), F.cross_entropy, candidates=["nothing"], budget=budget)

    with pytest.raises(InputError) as caught:
        tried(0.3)
    advised = int(str(caught.value.do).split("raise budget to ")[1].split(" s")[0])
    assert tried(advised)


# -- plans are checked in full ---------------------------------------------------------------------


class Shared(nn.Module):
    """One hidden layer that is run twice: no unit of it can be reset alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(20, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(F.relu(self.first(x))))
        return self.last(F.relu(self.twice(x)))


def test_what_cannot_be_attached_is_refused_in_the_plan_not_when_it_is_applied() -> None:
    torch.manual_seed(0)
    net, x, y = Shared(), torch.randn(128, 20), torch.randint(10, (128,))
    with torch.no_grad():
        net.first.bias[:32] = net.twice.bias[:32] = -50
    opt = torch.optim.Adam(net.parameters())
    report = run(net, (x, y), F.cross_entropy, optimizer=opt, reference=Shared, budget=0)
    assert report.finding(Mechanism.DEAD_UNITS).status is Status.PRESENT
    rng = torch.get_rng_state()
    made = plan(net, opt, report)
    assert torch.equal(rng, torch.get_rng_state())
    assert [s.line.intervention for s in made.steps if s.action == "attach"] == []
    assert any("finds no layer" in s.text for s in made.refused)
    assert made.apply_() == []


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen, self.hidden, self.last = (
            nn.GRU(8, 16, batch_first=True),
            nn.Linear(16, 32),
            nn.Linear(32, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.hidden(self.seen(x)[0][:, -1])))


def test_no_activation_is_prescribed_that_cannot_be_exchanged() -> None:
    torch.manual_seed(0)
    net, x, y = Recurrent(), torch.randn(128, 6, 8), torch.randint(5, (128,))
    with torch.no_grad():
        net.hidden.bias[:20] = -50
    report = run(net, (x, y), F.cross_entropy, reference=Recurrent, budget=0)
    assert report.finding(Mechanism.DEAD_UNITS).status is Status.PRESENT
    assert [line.intervention for line in report.prescription.lines] == ["ReGraMa"]


def test_out_of_memory_stays_what_it_is() -> None:
    """It says nothing about the input: whoever catches it may try a smaller probe."""
    with pytest.raises(torch.OutOfMemoryError), user_code("the model fails"):
        raise torch.OutOfMemoryError("no room")
