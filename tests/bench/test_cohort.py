"""The cohort engine equals the loop, slot by slot, and a slot that diverges harms no other."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from supple.bench import methods, run
from supple.bench.cohort import Stack, rhythm, run_cohort, supports
from supple.bench.cohort.chain import StackedCChain
from supple.bench.cohort.group import Group
from supple.bench.cohort.stack import cross_entropy_gradient
from supple.bench.learner import Learner
from supple.bench.networks import keyed
from supple.errors import InputError
from supple.interventions import CChain
from supple.models import MLP
from supple.store import load

from .tiny import interrupt, tiny, tiny_labels, weigh

METHODS = ["plain", "fresh", "linear", "cchain"]


@pytest.mark.parametrize("hidden", [(), (5,), (7, 6)])
def test_backward_equals_autograd(hidden: tuple[int, ...]) -> None:
    nets = [keyed(lambda: MLP((4, *hidden, 3)).double(), s, "net") for s in range(3)]
    stack = Stack(nets)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 9, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(3, (3, 9), generator=draw)
    stack.backward(cross_entropy_gradient(stack.forward(x), F.one_hot(y, 3)))
    for i, net in enumerate(nets):
        F.cross_entropy(net(x[i]), y[i]).backward()
        for name, parameter in net.named_parameters():
            assert torch.allclose(stack.gradients[name][i], parameter.grad, atol=1e-12), name


@pytest.mark.parametrize("make", [tiny, tiny_labels])
def test_slots_equal_the_loop(tmp_path: Path, make) -> None:
    specs = [make(tasks=2, method=m, seed=s, measure_every=1) for m in METHODS for s in (0, 1)]
    for spec, folder in zip(specs, run_cohort(specs, tmp_path / "cohort", measure=weigh), strict=True):
        ours, theirs = load(folder), load(run(spec, tmp_path / "loop", measure=weigh))
        assert ours.summary.keys() == theirs.summary.keys()
        assert ours.array_names == theirs.array_names
        for a, b in zip(ours.records, theirs.records, strict=True):
            assert dataclasses.replace(a, value=0.0) == dataclasses.replace(b, value=0.0)
            # rounding grows along a trajectory; an answer or two may flip
            assert a.value == pytest.approx(b.value, rel=5e-3, abs=5e-3), a
        worn = theirs.state()["learner"]["model"]
        for name, tensor in ours.state()["learner"]["model"].items():
            assert torch.allclose(tensor, worn[name], atol=2e-2), name


@pytest.mark.parametrize("restart", [True, False])
def test_stacked_c_chain_equals_the_intervention(restart: bool) -> None:
    """40 steps of SGD in float64 with a boundary in the middle, two slots with coefficients of their own."""
    rules = [CChain(coef=c, seed=s, memory=4, restart=restart) for s, c in enumerate((5.0, 20.0))]
    nets = [keyed(lambda: MLP((4, 6, 3)).double(), s, "net") for s in range(2)]
    stack, chain = Stack(nets), StackedCChain(rules)
    chain.coef_S11 = chain.coef_S11.double()
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.3) for n in nets]
    handles = [r.attach(n, o) for r, n, o in zip(rules, nets, optimizers, strict=True)]
    draw = torch.Generator().manual_seed(0)
    for step in range(40):
        x = torch.randn(2, 5, 4, generator=draw, dtype=torch.float64)
        y = torch.randint(3, (2, 5), generator=draw)
        if step == 20:
            chain.task()
            for handle in handles:
                handle.task()
        outputs = stack.forward(chain.extend(x))
        stack.backward(chain.join(cross_entropy_gradient(outputs[:, :5], F.one_hot(y, 3)), outputs))
        stack.flat.sub_(stack.flat.grad, alpha=0.3)
        for i, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            optimizer.zero_grad()
            F.cross_entropy(net(x[i]), y[i]).backward()
            optimizer.step()
            for name, parameter in net.named_parameters():
                assert torch.allclose(stack.parameters[name][i], parameter, atol=1e-10), (step, name)


def test_what_differs_in_rhythm_is_not_stacked_together() -> None:
    kinds = {rhythm(tiny(method=m)) for m in ("plain", "l2", "l2init", "fresh", "linear", "cchain")}
    assert len(kinds) == 4  # the pulls share a stack with plain training
    assert supports(tiny(method="cchain")) is None
    for settings in ({"target": 1e-3}, {"kind": "mse"}, {"fraction": 0.5}):
        assert "stacked with a fixed coefficient" in supports(tiny(method="cchain", settings=settings))
    assert "no stacked form" in supports(tiny(method="crelu"))


def test_a_kill_between_two_exports_loses_nothing(tmp_path: Path) -> None:
    specs = [tiny(seed=s, tasks=2) for s in (0, 1)]
    folders = run_cohort(specs, tmp_path, measure=weigh)
    before = (folders[1] / "records.jsonl").read_bytes()
    shutil.rmtree(folders[1])
    told: list[float] = []
    run_cohort(specs, tmp_path, measure=weigh, progress=told.append)
    assert told == []  # nothing was computed again
    assert (folders[1] / "records.jsonl").read_bytes() == before


def test_pulls_equal_the_penalties_in_the_loss() -> None:
    """The stacked L2 and L2-Init against autograd of coef · ‖θ − anchor‖² over one step of SGD."""
    base = tiny_labels()
    group = Group(
        [dataclasses.replace(base, method=m, settings={"coef": 0.05}) for m in ("l2", "l2init", "plain")]
    )
    task = base.protocol.stream(0).task(0)
    nets = [methods.get("plain").build(base.protocol, 0) for _ in range(3)]
    starts = [[p.detach().clone() for p in n.parameters()] for n in nets]
    anchors = [[torch.zeros_like(p) for p in starts[0]], starts[1], None]
    for net, anchor in zip(nets, anchors, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=base.protocol.lr)
        for x, y in task.batches(base.protocol.batch, base.protocol.epochs):
            loss = F.cross_entropy(net(x), y)
            if anchor is not None:
                loss = loss + 0.05 * sum(
                    (p - a).square().sum() for p, a in zip(net.parameters(), anchor, strict=True)
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    group.learn({0: task})
    for slot, net in enumerate(nets):
        ours, _ = group.network(slot)
        for a, b in zip(ours.parameters(), net.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_a_slot_as_a_module_continues_like_the_loop() -> None:
    spec = tiny()
    group, learner = Group([spec, dataclasses.replace(spec, seed=1)]), Learner(spec)
    tasks = {s: spec.protocol.stream(s).task(0) for s in (0, 1)}
    group.learn(tasks)
    learner.learn(tasks[0])
    model, optimizer = group.network(0)
    x, y = next(tasks[0].batches(64))
    for net, opt in ((model, optimizer), (learner.model, learner.optimizers[0])):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    for a, b in zip(model.parameters(), learner.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_diverged_slot_harms_no_other() -> None:
    specs = [tiny(method=m, seed=s) for m in ("plain",) for s in (0, 1, 2)]
    task = {s: specs[0].protocol.stream(s).task(0) for s in (0, 1, 2)}
    healthy, sick = Group(specs), Group(specs)
    for parameter in sick.stack.parameters.values():
        parameter.data[1] = torch.nan
    a, b = healthy.learn(task), sick.learn(task)
    assert b[1][:2] == (0, 28 * 64)
    assert [a[0], a[2]] == [b[0], b[2]]
    rows, others = (g.stack.rows(g.stack.flat) for g in (healthy, sick))
    assert torch.equal(rows[0], others[0])
    assert torch.equal(rows[2], others[2])


def test_an_interrupted_cohort_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    specs = [tiny(tasks=5, method=m, seed=s, measure_every=1) for m in METHODS for s in (0, 1)]
    with pytest.raises(KeyboardInterrupt):
        run_cohort(specs, tmp_path / "a", measure=interrupt)
    disturbed = run_cohort(specs, tmp_path / "a", measure=weigh)
    for left, right in zip(disturbed, run_cohort(specs, tmp_path / "b", measure=weigh), strict=True):
        for name in ("records.jsonl", "summary.json"):
            assert (left / name).read_bytes() == (right / name).read_bytes()
        a, b = (load(f).state()["learner"]["model"] for f in (left, right))
        assert all(torch.equal(a[k], b[k]) for k in a)
    seen: list[float] = []
    run_cohort(specs, tmp_path / "a", measure=weigh, progress=seen.append)
    assert seen == []


def test_what_has_no_stacked_form_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no stacked form.*found: layernorm"):
        run_cohort([tiny(), tiny(method="layernorm")], tmp_path)
    with pytest.raises(InputError, match="one protocol"):
        run_cohort([tiny(), tiny_labels()], tmp_path)
    with pytest.raises(InputError, match="same tasks"):
        run_cohort([tiny(), tiny(seed=1, measure_every=1)], tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="found: Tanh; where: 1"):
        Stack([torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2))])
