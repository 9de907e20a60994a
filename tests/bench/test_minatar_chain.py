"""The chain of MinAtar games as runs of the bench: target, buffer and ε over tasks, kills, refusals, the study."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from supple.agents import Replay
from supple.bench import RunSpec, methods, run, run_list
from supple.bench.agent import AgentLearner, link, rewrites_at_boundary
from supple.bench.protocols import PROTOCOLS, create
from supple.bench.studies import RlMinatar
from supple.cli import main
from supple.cli.bench_choice import chosen
from supple.errors import InputError
from supple.interventions import CChain, Combination, ReGraMa, ShrinkAndPerturb
from supple.interventions.cchain import CChainHandle
from supple.store import load

from .tiny import twice, weigh

pytest.importorskip("minatar")

SHORT = {
    "tasks": 3, "iterations": 4, "steps_per_iteration": 80, "copies": 8, "channels": (4,), "hidden": (8,), "batch": 8,
    "capacity": 200, "target_every": 7, "random_steps": 80, "update_every": 8, "epsilon_steps": 300,
}  # fmt: skip
REFUSED = {"linear", "shallow", "batchnorm", "dropout"}


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainability probe says is tested with the agents of `test_control`."""
    monkeypatch.setattr("supple.bench.agent_probe.STEPS", 4)


def spec(method: str = "plain", seed: int = 0, settings: dict | None = None, **changed) -> RunSpec:
    protocol = create("minatar-chain", "small", **{**SHORT, **changed})
    return RunSpec(
        protocol=protocol, method=method, seed=seed, checkpoint_every=1, settings=settings or {},
    )  # fmt: skip


def begun(method: str = "plain", **more) -> AgentLearner:
    learner = AgentLearner(spec(method, **more))
    learner.start(0)
    return learner


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(network.state_dict()))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(t, b[n]) for n, t in a.items())


def test_returns_equal_the_plain_loop(tmp_path: Path) -> None:
    """The agent stepped by hand, every return counted from the rewards of its games."""
    s = spec(tasks=2)
    records = load(run(s, tmp_path)).records
    learner = AgentLearner(s)
    agent, expected, updates, losses = learner.agent, [], [], []
    for index in range(2):
        learner.env.task(index)
        agent.task()
        assert learner.env.game == ("space_invaders", "breakout")[index]
        total, ended, found = np.zeros(8), [], []
        step = learner.env.step

        def counted(actions, step=step, total=total, ended=ended):
            seen = step(actions)
            total += seen.reward
            done = seen.terminated | seen.truncated
            ended.extend(total[done])
            total[done] = 0
            return seen

        learner.env.step = counted
        found = [agent.iterate() for _ in range(4)]
        del learner.env.step
        expected.append(fmean(ended))
        losses.append(fmean(i.loss for i in found if i.updates))
        updates.append(agent.updates)
    assert records.select(instrument="online_return").values() == pytest.approx(expected)
    assert records.select(instrument="online_loss").values() == losses
    assert [r.step for r in records.select(instrument="max_q")] == updates
    assert updates == [s.protocol.updates, 2 * s.protocol.updates]
    assert all(math.isfinite(r.value) for r in records)


@pytest.mark.parametrize("method", ["plain", "fresh", "redo", "cchain", "shrink_perturb"])
def test_an_interrupted_agent_ends_like_an_undisturbed_one(tmp_path: Path, method: str) -> None:
    own = {"every": 9} if method == "redo" else {"start": 5, "window": 20} if method == "cchain" else {}
    s = dataclasses.replace(spec(method, settings=own, tasks=4), measure_every=1)
    a, b = twice(s, tmp_path)
    assert same(a.state()["learner"]["model"], b.state()["learner"]["model"])
    assert a.state()["learner"]["carried"] == {}  # nothing comes after the last task


def test_a_checkpoint_between_tasks_holds_target_buffer_and_counts() -> None:
    learner = begun()
    tasks = learner.protocol.sequence(0)
    learner.learn(tasks.task(0))
    agent, state = learner.agent, learner.state_dict()["carried"]
    assert same(state["target"], agent.target.state_dict())
    assert state["replay"]["columns"]["observations"].shape == (200, 125)  # bits
    other = AgentLearner(learner.spec)
    other.load_state_dict(learner.state_dict())
    assert not same(weights(agent.net), weights(agent.target))
    for name in ("net", "target"):
        assert same(weights(getattr(agent, name)), weights(getattr(other.agent, name)))
    assert all((agent.replay.columns[n] == other.agent.replay.columns[n]).all() for n in agent.replay.columns)
    assert other.agent.epsilon == agent.epsilon < 1


def test_only_the_network_of_the_oracle_is_new_in_a_task() -> None:
    for method, renewed in (("fresh", True), ("plain", False)):
        learner = begun(method)
        tasks = learner.protocol.sequence(0)
        learner.learn(tasks.task(0))
        before, target, old = weights(learner.model), weights(learner.agent.target), learner.agent
        columns, clock = copy.deepcopy(old.replay.columns), (old.decided, old.updates)
        learner.start(1)
        agent = learner.agent
        assert agent.net is learner.model
        assert agent.optimizer is learner.optimizers[0]
        assert same(before, weights(agent.net)) is not renewed
        assert same(weights(agent.net), weights(agent.target)) is renewed
        assert renewed or same(target, weights(agent.target))
        assert (len(agent.optimizer.state) == 0) is renewed
        assert all((agent.replay.columns[n] == c).all() for n, c in columns.items())
        assert (agent.decided, agent.updates) == clock
        assert agent.random_left == 80


def test_the_target_has_the_resets_and_follows_shrink_and_perturb() -> None:
    learner = begun("redo", settings={"every": 5, "tau": 0.9}, target_every=1000)
    first = weights(learner.agent.target)
    learner.learn(learner.protocol.sequence(0).task(0))
    assert learner.handle.log
    assert not same(first, weights(learner.agent.target))
    for method in ("plain", "shrink_perturb"):
        learner = begun(method, target_every=1000)
        tasks, agent = learner.protocol.sequence(0), learner.agent
        learner.learn(tasks.task(0))
        first = weights(agent.target)
        learner.start(1)
        assert same(first, weights(agent.target))
        draw = lambda a=agent: a.replay.sample(8, torch.Generator().manual_seed(0))
        agent.learn(draw())
        anew = weights(agent.net)
        assert same(weights(agent.target), anew if method == "shrink_perturb" else first)
        agent.learn(draw())
        assert not same(weights(agent.target), weights(agent.net))  # once a task


@pytest.mark.parametrize("method", ["shrink_perturb_boundary", "fire_boundary"])
def test_what_rewrites_the_network_at_the_boundary_renews_the_target_there(method: str) -> None:
    learner = begun(method, target_every=1000)
    learner.learn(learner.protocol.sequence(0).task(0))
    first = weights(learner.agent.net)
    assert not same(first, weights(learner.agent.target))
    learner.start(1)
    assert not same(first, weights(learner.agent.net))
    assert same(weights(learner.agent.net), weights(learner.agent.target))


def test_a_combination_serves_its_parts() -> None:
    learner = begun()
    cchain = CChain(kind="mse", coef=1.0, target=0.01)
    rule = Combination([cchain, ReGraMa(every=5), ShrinkAndPerturb(every="boundary")])
    handle = rule.attach(learner.model, learner.optimizers, inputs=learner.protocol.example())
    link(handle, learner.agent)
    assert learner.agent.on_loss == [handle.handles[0].observe_loss]
    assert any(network is learner.agent.target for network in handle.handles[1]._followers)
    assert rewrites_at_boundary(handle)
    handle.detach()


def test_the_loss_for_the_instruments_is_that_of_the_agent() -> None:
    learner = begun()
    task = learner.protocol.sequence(0).task(0)
    learner.learn(task)
    x, columns = task.probe(10_000)
    agent = learner.agent
    batch = agent.replay.newest(200)
    assert learner.protocol.loss(learner.model(x), columns).item() == pytest.approx(
        agent.loss(batch).item(), rel=1e-5
    )


def test_the_newest_transitions_come_first() -> None:
    replay = Replay(5, (1,))
    for i in range(7):
        replay.add(np.full((1, 1), i), np.array([i]), np.ones(1), np.zeros((1, 1)), np.array([False]))
    assert replay.newest(3).actions.tolist() == [6, 5, 4]
    assert replay.newest(99).actions.tolist() == [6, 5, 4, 3, 2]


def test_cchain_hears_the_loss_and_keeps_its_coefficient_over_tasks() -> None:
    learner = begun("cchain", settings={"start": 5, "window": 20})
    handle, tasks = learner.handle, learner.protocol.sequence(0)
    assert isinstance(handle, CChainHandle)
    learner.learn(tasks.task(0))
    assert handle.losses_seen == learner.steps == learner.protocol.updates
    value = float(handle.coefficient())
    assert value != 50.0
    learner.start(1)
    assert float(handle.coefficient()) == value  # the published DDQN code does not restart it
    p = create("minatar-chain", "paper")
    published = {
        "kind": "mse",
        "coef": 50.0,
        "target": 0.01,
        "start": 10_000,
        "window": 50_000,
        "restart": False,
    }
    assert published.items() <= methods.get("cchain").settings_in(p).items()


@pytest.mark.parametrize("method", [m for m in methods.METHODS if m not in REFUSED])
def test_every_method_with_a_form_learns_across_a_boundary(method: str) -> None:
    learner = begun(method, iterations=2, tasks=2)
    tasks = learner.protocol.sequence(0)
    for index in range(2):
        learner.start(index)
        assert math.isfinite(learner.learn(tasks.task(index)).loss)


def test_methods_without_a_form_are_refused_by_name() -> None:
    protocol = create("minatar-chain")
    assert set(chosen(protocol, "all")) == set(methods.METHODS) - REFUSED
    for method in REFUSED:
        with pytest.raises(InputError, match="network 'q_network' of minatar-chain has no form"):
            chosen(protocol, f"plain,{method}")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"iid": True}, "no i.i.d. control"),
        ({"copies": 3}, "multiple of copies"),
        ({"games": ("pong",)}, "a chain is of MinAtar games"),
        ({"games": ("freeway",)}, "one whole episode"),
        ({"random_steps": 320}, "longer than its random steps"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"optimizer": "muon"}, "an agent has one optimizer"),
        ({"target_every": 0}, "counts must be positive"),
    ],
)
def test_what_makes_no_agent_is_refused(changed: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        spec(**changed)


@pytest.mark.parametrize("name", ["minatar-chain", "rl-minatar"])
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "minatar", None)
    assert main(["bench", "run", name, "--out", str(tmp_path / "runs")]) == 2
    assert "pip install 'supple[rl]'" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_the_published_setting() -> None:
    p = create("minatar-chain", "paper")
    config, default = p.settings_of_agent(), type(p.settings_of_agent())()
    assert config == default  # the defaults of the agent are the published values
    assert (p.tasks, p.samples, p.updates) == (3, 2_000_000, 1_990_000)


def test_the_study_counts_in_oracles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RlMinatar, "methods", ("plain", "fresh", "cchain"))
    monkeypatch.setattr(
        PROTOCOLS["minatar-chain"],
        "presets",
        {"demo": {**SHORT, "games": ("breakout", "asterix"), "iterations": 6}},
    )
    specs = RlMinatar.specs("demo", [0, 1])
    assert run_list(specs, tmp_path, workers=0, measure=weigh).ok
    answer = RlMinatar.read(tmp_path)
    assert answer.seeds == 2
    by = {a.method: a for a in answer.agents}
    online = lambda m, s: (
        load(tmp_path / f"minatar-chain/{m}/seed-{s}").records.select(instrument="online_return").values()
    )
    oracle = [fmean(pair) for pair in zip(online("fresh", 0), online("fresh", 1), strict=True)]
    for method, agent in by.items():
        mine = [fmean(pair) for pair in zip(online(method, 0), online(method, 1), strict=True)]
        assert agent.course == pytest.approx(mine)
        shares = [m / o if o > 0 else None for m, o in zip(mine, oracle, strict=True)]
        assert agent.relative == pytest.approx(shares)
        later = [s for s in shares[1:] if s is not None]
        assert agent.returns.value == pytest.approx(fmean(later))
        assert agent.health["max |Q|"] > 0
    assert by["fresh"].returns.value == pytest.approx(1.0)
    assert "task by task: breakout, asterix, breakout" in str(answer)
