"""Agents as runs of the bench: what is recorded is what happened, kills lose nothing, the study reads it."""

from __future__ import annotations

import copy
import dataclasses
import math
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import pytest
import torch

from supple.agents import PPO
from supple.bench import RunSpec, agent_probe, collect, run, run_list, with_engine
from supple.bench.agent import AgentLearner
from supple.bench.agent_probe import trainability
from supple.bench.protocols import PROTOCOLS, Control, create
from supple.bench.protocols.control import PAPER
from supple.bench.studies import RlGym
from supple.errors import InputError
from supple.models import MLP
from supple.store import load

from .tiny import twice

SHORT = {
    "tasks": 3, "iterations": 2, "steps_per_iteration": 80, "copies": 4, "limit": 20, "batch": 40, "epochs": 2,
    "hidden": (8, 8),
}  # fmt: skip
BOXED = pytest.mark.skipif(find_spec("Box2D") is None, reason="needs the extra rl-box2d")
CONTROL = [
    pytest.param(p.name, marks=[BOXED, pytest.mark.rl] if "lunar" in p.name else [])
    for p in PROTOCOLS.values()
    if issubclass(p, Control)
]


@pytest.fixture(autouse=True)
def short_probes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks whether the networks still learn trains for long; only its own test needs that."""
    own = "trainability" in request.node.name
    monkeypatch.setattr(agent_probe, "TASKS", 2 if own else 1)
    monkeypatch.setattr(agent_probe, "STEPS", 150 if own else 4)


def spec(name: str = "cartpole-offsets", method: str = "plain", seed: int = 0, **changed) -> RunSpec:
    protocol = create(name, "small", **{**SHORT, **changed})
    return RunSpec(protocol=protocol, method=method, seed=seed, checkpoint_every=1)


@pytest.mark.parametrize("name", CONTROL)
def test_returns_equal_the_plain_loop(tmp_path: Path, name: str) -> None:
    """The same agent, stepped by hand, with its own count of episode returns."""
    s = spec(name)
    records = load(run(s, tmp_path)).records
    learner = AgentLearner(s)
    expected, entropies = [], []
    for index in range(3):
        learner.env.task(index)
        learner.agent.observation = learner.env.reset()
        found = [learner.agent.iterate() for _ in range(2)]
        expected.append(fmean(r for i in found for r in i.returns))
        entropies.append(found[-1].entropy)
    assert records.select(instrument="online_return").values() == expected
    assert records.select(instrument="policy_entropy").values() == entropies
    assert [r.step for r in records.select(instrument="online_return")] == [8, 16, 24]
    assert all(math.isfinite(r.value) for r in records)


@pytest.mark.parametrize("method", ["plain", "fresh", "redo", "cchain", "shrink_perturb"])
def test_an_interrupted_agent_ends_like_an_undisturbed_one(tmp_path: Path, method: str) -> None:
    s = dataclasses.replace(spec(method=method, tasks=4), measure_every=1)
    a, b = twice(s, tmp_path)
    for x, y in zip(
        a.state()["learner"]["model"].values(), b.state()["learner"]["model"].values(), strict=True
    ):
        assert torch.equal(x, y)


def test_the_oracle_is_new_in_every_task_and_the_plain_agent_is_not() -> None:
    for method, renewed in (("fresh", True), ("plain", False)):
        learner = AgentLearner(spec(method=method))
        tasks = learner.protocol.sequence(0)
        learner.start(0)
        learner.learn(tasks.task(0))
        before = copy.deepcopy(learner.model.state_dict())
        learner.start(1)
        same = all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())
        assert same is not renewed
        assert (len(learner.optimizers[0].state) == 0) is renewed
        assert learner.env.index == 1


def test_the_loss_for_the_instruments_is_that_of_the_agent() -> None:
    learner = AgentLearner(spec())
    learner.start(0)
    task = learner.protocol.sequence(0).task(0)
    with pytest.raises(InputError, match="no experience"):
        task.probe(8)
    learner.learn(task)
    x, columns = task.probe(10_000)
    agent: PPO = learner.agent
    order = torch.arange(len(columns))
    policy, value, entropy = agent.losses(agent.rollout, order)
    expected = policy - 0.01 * entropy + 0.5 * value
    assert learner.protocol.loss(learner.model(x), columns).item() == pytest.approx(expected.item(), rel=1e-5)


def test_cchain_acts_on_the_policy_alone_and_hears_the_loss() -> None:
    learner = AgentLearner(spec(method="cchain", iterations=4))
    learner.start(0)
    seen = []
    assert learner.agent.on_loss == [learner.handle.observe_loss]
    learner.agent.on_loss.append(lambda loss: seen.append(loss.item()))
    learner.learn(learner.protocol.sequence(0).task(0))
    assert len(seen) == learner.steps == 4 * 2 * 2
    learner.model(learner.agent.rollout.observations[:8])
    term = learner.handle.penalty()
    grads = torch.autograd.grad(term, list(learner.model.value.parameters()), allow_unused=True)
    assert all(g is None or not g.any() for g in grads)
    assert term.item() > 0


def test_trainability_tells_a_network_that_learns_from_one_that_cannot() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 4, dtype=torch.float64)

    def fresh(seed: int, outputs: int = 2) -> MLP:
        torch.manual_seed(seed)
        return MLP((4, 32, 32, outputs), init="default").double()

    def score(net: MLP, actions: int = 2, unlearn: bool = False) -> float:
        """Beside copies of the network as it was made: 1 says that nothing was lost."""
        made = fresh(9, actions or 1)
        return trainability(net, lambda i: copy.deepcopy(made), x, actions, 3e-3, 0, unlearn=unlearn)

    dead, saturated, silent = fresh(9), fresh(9), fresh(9, 1)
    with torch.no_grad():
        dead.fc1.bias.fill_(-100.0)  # no unit of the first layer fires
        silent.fc1.bias.fill_(-100.0)
        saturated.head.bias.copy_(torch.tensor([40.0, -40.0]))  # a policy without entropy, healthy otherwise
    assert score(fresh(9)) == score(fresh(9, 1), 0) == 1.0
    assert score(dead) < 0.2
    assert score(silent, 0) < 0.2
    assert score(saturated) == pytest.approx(1.0, abs=1e-9)  # the old answers are subtracted
    assert score(saturated, unlearn=True) < 0.7


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"iid": True}, "no i.i.d. control"),
        ({"copies": 3}, "multiple of copies"),
        ({"batch": 200}, "at least one batch"),
        ({"limit": 400}, "one whole episode"),
        ({"iterations": 0}, "iterations must be at least 1"),
    ],
)
def test_what_makes_no_agent_is_refused(changed: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        spec(**changed)


def test_the_published_setting() -> None:
    p = create("cartpole-offsets", "paper")
    assert (p.samples, p.updates, p.tasks, p.hidden, p.lr) == (160_000, 25_000, 10, (256, 256, 256), 1e-3)
    assert create("mountaincar-offsets", "paper").scale == 0.02
    assert PAPER["copies"] == 1


def test_the_study_reads_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RlGym, "methods", ("plain", "fresh", "l2init"))
    monkeypatch.setattr(RlGym, "more", {"cartpole-offsets": ("fire_boundary",)})
    for name in RlGym.suite:
        presets = dict(PROTOCOLS[name].presets, demo=SHORT)
        monkeypatch.setattr(PROTOCOLS[name], "presets", presets)
    specs = with_engine(RlGym.specs("demo", [0, 1]), "auto")
    assert {s.engine for s in specs} == {"loop"}
    assert run_list(specs, tmp_path, workers=0).ok
    answer = RlGym.read(tmp_path)
    assert answer.seeds == 2
    assert len(answer.agents) == 7
    by = {(a.protocol, a.method): a for a in answer.agents}
    for name in RlGym.suite:
        low, mid, high = (by[name, m] for m in ("plain", "l2init", "fresh"))
        assert mid.returns.value == pytest.approx(fmean(mid.course[1:]))
        if high.returns.value > low.returns.value:
            gap = high.returns.value - low.returns.value
            assert mid.share.value == pytest.approx((mid.returns.value - low.returns.value) / gap)
            assert high.share.value == pytest.approx(1.0)
        else:
            assert mid.share is None
        assert set(mid.health) == set(RlGym.health)
        assert [len(v) for v in mid.ends.values()] == [2, 2]
        records = load(tmp_path / name / "l2init" / "seed-1").records
        assert list(mid.ends["return"][1]) == records.select(instrument="end_return").values()
        assert list(mid.ends["policy entropy"][1]) == records.select(instrument="policy_entropy").values()
        assert mid.health["policy entropy"] is not None
        assert 0 <= mid.health["dormant"] <= 1
    assert "cartpole-offsets" in str(answer)
    renamed = {"l2init": "shrink_perturb_boundary"}
    longer = tuple(dataclasses.replace(a, method=renamed.get(a.method, a.method)) for a in answer.agents)
    table = str(dataclasses.replace(answer, agents=longer)).split("cartpole-offsets\n")[1].splitlines()[:5]
    assert len(set(map(len, table))) == 1  # a long name moves no column
    assert answer.to_dict()["agents"][0]["method"] == "plain"
    table = str(collect(tmp_path))
    assert max(map(len, table.splitlines())) <= 90
