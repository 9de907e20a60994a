"""From diagnosis to act: plans are read before they are written, trials measure on copies only."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from tests.diagnose import lab
from torch import nn

from supple.diagnose.plan import plan, select_units
from supple.diagnose.run import run
from supple.diagnose.trial import trial
from supple.diagnose.types import DiagnosisReport, Prescription, PrescriptionLine
from supple.errors import AttachError, InputError
from supple.interventions import ReGraMa
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle
from supple.interventions.registry import register
from supple.status import Mechanism


def sick() -> tuple[nn.Module, torch.optim.Optimizer, DiagnosisReport]:
    net = lab.kill_(lab.built(lab.he_factory(), 0), 0.6)
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    x, y = lab.probe()
    F.cross_entropy(net(x), y).backward()
    opt.step()
    return net, opt, run(net, (x, y), F.cross_entropy, optimizer=opt, reference=lab.he_factory(), budget=0)


def snapshot(net: nn.Module, opt: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [*(v.clone() for v in net.state_dict().values()),
            *(v.clone() for s in opt.state.values() for v in s.values())]  # fmt: skip


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- plan -----------------------------------------------------------------------------------------


def test_a_plan_is_readable_and_writes_nothing_until_applied() -> None:
    net, opt, report = sick()
    before = snapshot(net, opt)
    made = plan(net, opt, report)
    text = str(made)
    assert "nothing is written" in text
    assert "ReGraMa(tau=0.1, every='task')" in text
    assert "38 in 0" in text
    assert max(map(len, text.splitlines())) <= 80
    assert same(before, snapshot(net, opt))
    assert not opt._optimizer_step_post_hooks


def test_applying_resets_the_dead_units_and_returns_the_handle() -> None:
    net, opt, report = sick()
    x, y = lab.probe()
    outputs = net(x)
    (handle,) = plan(net, opt, report).apply_()
    assert isinstance(handle.intervention, ReGraMa)
    assert bool((net[0].bias > -40).all())
    assert torch.allclose(net(x), outputs, atol=0.3)  # dead units were silent, and stay so until they learn
    newborn = run(net, (x, y), F.cross_entropy, reference=lab.he_factory(), budget=0).finding("dead_units")
    assert "reset a moment ago" in newborn.reason  # without outgoing weights a unit gets no gradient yet
    handle.detach()
    for _ in range(30):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    grown = run(net, (x, y), F.cross_entropy, reference=lab.he_factory(), budget=0).finding("dead_units")
    assert grown.severity < 0.3 * report.finding("dead_units").severity
    assert not opt._optimizer_step_post_hooks


def test_a_plan_applies_once() -> None:
    net, opt, report = sick()
    made = plan(net, opt, report)
    made.apply_()
    assert "applied" in str(made)
    with pytest.raises(AttachError, match="already"):
        made.apply_()


def test_a_failing_step_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    net, opt, report = sick()
    made = plan(net, opt, report)
    before = snapshot(net, opt)

    def fail() -> None:
        raise RuntimeError("disk on fire")

    broken = [
        s if s.reset is None else dataclasses.replace(s, reset=dataclasses.replace(s.reset))
        for s in made.steps
    ]
    for step in broken:
        if step.reset is not None:
            monkeypatch.setattr(step.reset, "apply_", fail)
    made.steps = tuple(broken)
    with pytest.raises(RuntimeError, match="fire"):
        made.apply_()
    assert same(before, snapshot(net, opt))
    assert not opt._optimizer_step_post_hooks
    assert not made.applied


def with_lines(report: DiagnosisReport, *lines: PrescriptionLine) -> DiagnosisReport:
    return dataclasses.replace(report, prescription=Prescription(lines))


def test_what_needs_a_new_network_is_refused_and_so_is_the_unknown() -> None:
    net, opt, report = sick()
    fourier = PrescriptionLine(
        None, "DeepFourier", {"width": "half"}, kind="architectural", warning="needs a new network"
    )
    odd = PrescriptionLine(Mechanism.RANK_COLLAPSE, "Nonesuch")
    made = plan(net, opt, with_lines(report, fourier, odd))
    assert [s.action for s in made.steps] == ["refused", "refused"]
    assert "new network" in str(made)
    assert "Nonesuch" in str(made)
    before = snapshot(net, opt)
    assert made.apply_() == []
    assert same(before, snapshot(net, opt))


def test_a_report_of_another_network_is_refused() -> None:
    _, _, report = sick()
    other = nn.Sequential()
    other.add_module("only", nn.Linear(64, 10))
    with pytest.raises(InputError, match="another network"):
        plan(other, torch.optim.SGD(other.parameters(), lr=0.1), report)


def test_a_stored_report_can_attach_but_not_reset(tmp_path) -> None:
    net, opt, report = sick()
    report.to_json(tmp_path / "r.json")
    made = plan(net, opt, DiagnosisReport.from_json(tmp_path / "r.json"))
    assert [s.action for s in made.steps] == ["refused", "attach"]


def test_units_are_chosen_by_score_and_structure() -> None:
    _, _, report = sick()
    chosen, barred = select_units(report, report.topology, 0.1)
    assert set(chosen) == {"0", "2"}
    assert set(range(38)) <= set(chosen["0"].tolist())
    assert not barred


# -- trial ----------------------------------------------------------------------------------------


class SpoilerHandle(Handle):
    """Sets all weights to zero after each step."""

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()


@register
@dataclasses.dataclass(frozen=True)
class SpoilerForTests(Intervention):
    """A candidate that is certain to be bad."""

    cost: ClassVar[str] = "low"

    def attach(self, model: nn.Module, optimizer: Any, *, inputs: Any = None) -> Handle:
        return SpoilerHandle(self, model, optimizer)


@register
@dataclasses.dataclass(frozen=True)
class RefuserForTests(Intervention):
    """A candidate that cannot be attached."""

    def attach(self, model: nn.Module, optimizer: Any, *, inputs: Any = None) -> Handle:
        raise AttachError("not on this network")


def test_a_trial_ranks_what_it_measured_and_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lab.Clock.in_place_of_time(monkeypatch, sys.modules[trial.__module__], 4e-3)
    net, opt, _ = sick()
    before, rng = snapshot(net, opt), torch.get_rng_state()
    found = trial(
        net, opt, lab.probe(128), F.cross_entropy, reference=lab.he_factory(),
        candidates=["SpoilerForTests", "RefuserForTests", ReGraMa(tau=0.1, every="task"), "restart"], budget=12,
    )  # fmt: skip
    names = [a.name for a in found.arms]
    assert set(names) == {"nothing", "restart", "ReGraMa", "SpoilerForTests", "RefuserForTests"}
    assert names[-1] == "RefuserForTests"
    assert "not on this network" in found.arms[-1].failed
    assert names[-2] == "SpoilerForTests"
    assert names.index("ReGraMa") < names.index("nothing")
    gains = {a.name: a for a in found.arms}
    assert gains["ReGraMa"].lo > 0
    assert same(before, snapshot(net, opt))
    assert torch.equal(rng, torch.get_rng_state())
    assert max(map(len, str(found).splitlines())) <= 80
    assert found.to_dict()["arms"][0]["name"] == names[0]


def test_a_trial_reorders_the_prescription_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lab.Clock.in_place_of_time(monkeypatch, sys.modules[trial.__module__], 1e-3)
    net, opt, _ = sick()
    found = trial(net, opt, lab.probe(64), F.cross_entropy, candidates=["SpoilerForTests"], budget=4)
    lines = (PrescriptionLine(None, "SpoilerForTests"), PrescriptionLine(None, "nothing"))
    ordered = found.reorder(Prescription(lines))
    assert [x.intervention for x in ordered.lines] == ["nothing", "SpoilerForTests"]
    assert "trial" in ordered.note


@pytest.mark.parametrize("price", [0.001, 0.005])
def test_the_budget_of_a_trial_is_kept(price: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = lab.Clock.in_place_of_time(monkeypatch, sys.modules[trial.__module__], price)
    net, opt, _ = sick()
    found = trial(net, opt, lab.probe(64), F.cross_entropy, candidates=["nothing"], budget=3)
    assert found.seconds == clock.now
    assert clock.now <= 3.0
    with pytest.raises(InputError, match="budget is too small"):
        trial(net, opt, lab.probe(64), F.cross_entropy, candidates=["nothing"], budget=0.01)


@pytest.mark.parametrize(
    ("options", "word"),
    [({}, "reference"), ({"candidates": ["restart"]}, "reference"), ({"candidates": ["Nonesuch"]}, "Nonesuch"),
     ({"candidates": [3]}, "candidate")],
)  # fmt: skip
def test_trials_refuse_what_they_cannot_do(options: dict[str, Any], word: str) -> None:
    net, opt, _ = sick()
    with pytest.raises(InputError, match=word):
        trial(net, opt, lab.probe(64), F.cross_entropy, **options)
