"""Whole diagnoses on the lab's networks: ill ones are found, healthy ones are left alone, nothing moves."""

from __future__ import annotations

import math
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from tests.diagnose import lab
from torch import nn

from supple.diagnose.run import run
from supple.diagnose.trainability import trainability
from supple.diagnose.types import DiagnosisReport
from supple.errors import InputError
from supple.records import Records
from supple.status import Mechanism, Status

MECHANISMS = [m for m in Mechanism if m not in (Mechanism.PLASTICITY_LOSS, Mechanism.FORGETTING)]
FAMILIES = {
    "he": lab.he_factory(),
    "default": lab.mlp,
    "he 48-48": lab.he_factory((64, 48, 48, 10)),
    "convnet": lab.convnet,
    "leaky": lambda: lab.mlp(activation=nn.LeakyReLU),
    "norm": lambda: lab.mlp(norm=True),
    "tanh": lambda: lab.mlp(activation=nn.Tanh),
    "bottleneck": lambda: lab.mlp((64, 64, 8, 64, 10)),
}


def look(net: nn.Module, factory: lab.Factory, **options) -> DiagnosisReport:
    options.setdefault("budget", 0)
    return run(net, lab.probe(), F.cross_entropy, reference=factory, **options)


def present(report: DiagnosisReport) -> set[str]:
    return {str(f.mechanism) for f in report.present}


# -- the healthy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_ten_fresh_networks_of_ten_are_left_alone(name: str) -> None:
    for seed in range(10):
        report = look(lab.built(FAMILIES[name], 100 + seed), FAMILIES[name])
        assert not report.present, str(report)
        assert report.finding("dead_units").status is not Status.NOT_MEASURED


@pytest.mark.parametrize("name", ["he", "default", "norm", "tanh"])
def test_one_learned_task_raises_no_alarm(name: str) -> None:
    net = lab.built(FAMILIES[name], 3)
    lab.d2(net, 1, 3, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    assert not look(net, FAMILIES[name]).present


def test_low_rank_and_dead_by_design_cancel_against_the_twin() -> None:
    for harm in (lambda n: lab.collapse_(n, 0.4), lambda n: lab.kill_(n, 0.5)):
        factory = lambda harm=harm: harm(lab.he_factory()())
        assert not look(lab.built(factory, 1), factory).present


# -- the ill --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_worn_network_is_found_with_its_dead_layers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.Clock.in_place_of_time(monkeypatch, sys.modules[trainability.__module__], 4e-3)
    net, batch = lab.worn_d2(seed)
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    report = run(net, batch, F.cross_entropy, reference=lab.he_factory(), optimizer=opt, budget=20)
    assert report.finding("plasticity_loss").status is Status.PRESENT
    dead = report.finding("dead_units")
    assert dead.status is Status.PRESENT
    assert "2" in dead.layers
    assert dead.evidence[0].value == pytest.approx(0.41, abs=0.08)
    assert report.finding("rank_collapse").status is Status.ABSENT
    assert report.prescription.lines[0].intervention == "ReGraMa"
    assert any(s.kind == "activation" and "relu" in s.text for s in report.sources)
    assert max(map(len, str(report).splitlines())) <= 80


CONSTRUCTED = [
    ("dead .5", lambda n: lab.kill_(n, 0.5), "dead_units"),
    ("dead .8", lambda n: lab.kill_(n, 0.8), "dead_units"),
    ("rank .2", lambda n: lab.collapse_(n, 0.2), "rank_collapse"),
    ("rank .4", lambda n: lab.collapse_(n, 0.4), "rank_collapse"),
    ("common mode 4", lambda n: lab.common_mode_(n, 4.0), "ntk_degeneration"),
    ("common mode 10", lambda n: lab.common_mode_(n, 10.0), "ntk_degeneration"),
]


@pytest.mark.parametrize(("case", "harm", "mechanism"), CONSTRUCTED, ids=[c[0] for c in CONSTRUCTED])
@pytest.mark.parametrize("name", ["he", "he 48-48"])
def test_each_constructed_illness_is_named_and_no_other(case: str, harm, mechanism: str, name: str) -> None:
    for seed in range(3):
        net = harm(lab.built(FAMILIES[name], 40 + seed))
        assert present(look(net, FAMILIES[name])) == {mechanism}


def test_dead_units_do_not_pass_for_a_degenerate_kernel() -> None:
    """Random labels kill units until the kernel's cosine rises: the cause is named, not the echo."""
    factory = FAMILIES["he"]
    net = lab.memorise(lab.built(factory, 1), 10, 1)
    report = look(net, factory)
    assert report.finding("dead_units").status is Status.PRESENT
    assert report.finding("ntk_degeneration").status is not Status.PRESENT


def test_saturated_tanh_units_are_found_where_dormancy_sees_nothing() -> None:
    net = lab.built(FAMILIES["tanh"], 0)
    with torch.no_grad():
        net[0].weight *= 60
    report = look(net, FAMILIES["tanh"])
    assert report.finding("saturation").status is Status.PRESENT
    assert "0" in report.finding("saturation").layers


def test_cloned_units_and_grown_weights_are_found() -> None:
    net = lab.built(FAMILIES["he"], 0)
    with torch.no_grad():
        for layer in lab.hidden_linears(net):
            layer.weight[32:] = layer.weight[:32]
    assert "cloned_units" in present(look(net, FAMILIES["he"]))
    grown = lab.built(FAMILIES["he"], 0)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter *= 6
    assert "weight_growth" in present(look(grown, FAMILIES["he"]))


def test_forgetting_without_loss_of_plasticity_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    lab.Clock.in_place_of_time(monkeypatch, sys.modules[trainability.__module__], 4e-3)
    net = lab.built(FAMILIES["he"], 4)
    make = lambda p: torch.optim.SGD(p, lr=0.1)
    _, seen = lab.d2(net, 2, 4, optimizer=make)
    (xa, ya), (xb, yb) = seen
    report = run(
        net,
        (xb[:256], yb[:256]),
        F.cross_entropy,
        reference=FAMILIES["he"],
        optimizer=make(net.parameters()),
        earlier=[("first", (xa[:300], ya[:300]))],
        budget=20,
    )
    assert report.finding("forgetting").status is Status.PRESENT
    assert report.finding("plasticity_loss").status is Status.ABSENT
    assert not {"dead_units", "rank_collapse", "ntk_degeneration"} & present(report)
    assert "replay" in report.prescription.note


# -- never healthy by accident --------------------------------------------------------------------


def test_without_reference_nothing_is_called_absent() -> None:
    report = run(lab.mlp(), lab.probe(), F.cross_entropy)
    assert {f.status for f in report.findings} == {Status.NOT_MEASURED}
    assert all(f.reason for f in report.findings)
    assert "reference" in str(report)


@pytest.mark.parametrize("where", ["weights", "inputs"])
def test_nan_is_invalid(where: str) -> None:
    net = lab.mlp()
    x, y = lab.probe(64)
    if where == "weights":
        with torch.no_grad():
            net[0].weight[0, 0] = math.nan
    else:
        x = x.clone()
        x[0, 0] = math.nan
    report = run(net, (x, y), F.cross_entropy, reference=lab.mlp)
    assert report.finding("plasticity_loss").status is Status.INVALID
    assert report.finding("dead_units").status is Status.INVALID
    assert Status.ABSENT not in {
        report.finding(m).status for m in ("plasticity_loss", "dead_units", "ntk_degeneration")
    }
    assert "NaN" in report.to_json()


def test_a_tiny_probe_decides_nothing_about_units_or_kernel() -> None:
    net = lab.kill_(lab.built(FAMILIES["he"], 0), 0.8)
    report = run(net, lab.probe(12), F.cross_entropy, reference=FAMILIES["he"], budget=0)
    assert report.finding("dead_units").status in (Status.INCONCLUSIVE, Status.NOT_MEASURED)
    assert report.finding("ntk_degeneration").status in (Status.INCONCLUSIVE, Status.NOT_MEASURED)


def test_a_layer_that_died_as_a_whole_is_found() -> None:
    net = lab.built(FAMILIES["he"], 0)
    with torch.no_grad():
        net[2].bias -= 100
    report = look(net, FAMILIES["he"])
    assert report.finding("dead_units").status in (Status.PRESENT, Status.INVALID)
    assert report.finding("dead_units").status is Status.PRESENT, str(report)
    kernel = report.finding("ntk_degeneration")
    assert kernel.status is Status.INCONCLUSIVE, "a silent layer alone makes the kernel that of a constant"
    assert "2 is silent" in kernel.reason
    assert report.prescription.primary[0].intervention == "ReGraMa"


@pytest.mark.parametrize(
    ("model", "batch", "word"),
    [
        (lab.mlp(), (torch.zeros(0, 64), torch.zeros(0, dtype=torch.long)), "empty"),
        (lab.mlp(), torch.zeros(3, 64), "pair"),
        (nn.ReLU(), (torch.zeros(3, 64), torch.zeros(3, dtype=torch.long)), "trainable"),
        (lab.mlp(), (torch.zeros(3, 63), torch.zeros(3, dtype=torch.long)), "63"),
        (lambda x: x, (torch.zeros(3, 64), torch.zeros(3, dtype=torch.long)), "Module"),
    ],
)
def test_bad_input_is_refused_with_what_was_found(model, batch, word: str) -> None:
    with pytest.raises(InputError, match=word):
        run(model, batch, F.cross_entropy, reference=None)


def test_history_must_be_records_or_a_monitor() -> None:
    with pytest.raises(InputError, match="history"):
        run(lab.mlp(), lab.probe(64), F.cross_entropy, history=[1, 2])
    assert run(lab.mlp(), lab.probe(64), F.cross_entropy, history=Records()).findings


# -- cost and traces ------------------------------------------------------------------------------


def test_nothing_of_the_training_state_moves_and_no_hook_stays() -> None:
    net = lab.convnet()
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    x, y = lab.probe(64)
    F.cross_entropy(net(x), y).backward()
    opt.step()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    grads = [p.grad.clone() for p in net.parameters()]
    moments = [opt.state[p]["exp_avg"].clone() for p in net.parameters()]
    rng = torch.get_rng_state()
    run(net, (x, y), F.cross_entropy, optimizer=opt, reference=lab.convnet, budget=1)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    assert all(
        torch.equal(opt.state[p]["exp_avg"], m) for p, m in zip(net.parameters(), moments, strict=True)
    )
    assert all(not m._forward_hooks and not m._backward_hooks for m in net.modules())
    assert not opt._optimizer_step_pre_hooks
    assert not opt._optimizer_step_post_hooks
    assert net.training


def test_a_look_without_step_0_takes_a_second_at_most() -> None:
    factory = lambda: lab.mlp((64, 256, 256, 64, 10))  # 100k parameters
    net = lab.built(factory, 0)
    look(net, factory)  # imports and first-call costs are not the measurement's
    begun = time.process_time()
    look(net, factory)
    assert time.process_time() - begun < 1.0


def test_the_report_survives_json(tmp_path) -> None:
    report = look(lab.kill_(lab.built(FAMILIES["he"], 0), 0.5), FAMILIES["he"])
    path = tmp_path / "report.json"
    report.to_json(path)
    again = DiagnosisReport.from_json(path)
    assert again.findings == report.findings
    assert str(again) == str(report)


def test_three_twins_are_looked_at_where_one_look_is_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks of 0.6 s leave room for a third twin, looks of 3 s do not."""
    import importlib

    diagnosis = importlib.import_module("supple.diagnose.run")
    for seconds, twins in ((0.6, 3), (3.0, 1)):
        clock = iter(i * seconds for i in range(1000))
        monkeypatch.setattr(diagnosis, "time", type("Clock", (), {"monotonic": lambda c=clock: next(c)}))
        report = look(lab.built(FAMILIES["he"], 1), FAMILIES["he"])
        assert report.meta["twins"] == twins
