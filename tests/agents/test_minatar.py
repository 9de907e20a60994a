"""MinAtar as a batch environment: against the games themselves, resumed in mid-episode, and learned by the agents."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch

from supple.agents import DQN, PPO, DQNConfig, PPOConfig
from supple.agents.plain import arrays, plain
from supple.errors import InputError, MissingExtraError
from supple.interventions import ReDo, ResetEvent
from supple.store.encode import decode, encode
from supple.streams.rl import GameChain, VectorMinAtar
from supple.streams.rl.minatar import CHAIN, GAMES

rl = pytest.mark.rl


def need() -> Any:
    return pytest.importorskip("minatar")


def walk(env: Any, steps: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [env.step(rng.integers(6, size=env.copies)) for _ in range(steps)]


def same(one: Any, two: Any) -> None:
    for name in ("observation", "reward", "terminated", "truncated", "final"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert one.returns == two.returns


@rl
@pytest.mark.parametrize("game", GAMES)
def test_equal_to_the_game_step_by_step(game: str) -> None:
    minatar = need()
    env = VectorMinAtar(game, copies=2, seed=5, sticky=0.25, ramping=False)
    theirs = []
    for i in range(2):
        theirs.append(minatar.Environment(game, sticky_action_prob=0.25, difficulty_ramping=False))
        theirs[-1].seed(int(np.random.SeedSequence([5, i]).generate_state(1)[0]))
        theirs[-1].reset()
    rng = np.random.default_rng(0)
    total, ends = np.zeros(2), 0
    for _ in range(1000):  # 2,000 steps of the two copies
        actions = rng.integers(6, size=2)
        step = env.step(actions)
        returns = []
        for i, other in enumerate(theirs):
            reward, end = other.act(actions[i])
            total[i] += reward
            assert (step.reward[i], step.terminated[i]) == (reward, end)
            final, channels = other.state(), other.n_channels
            np.testing.assert_array_equal(step.final[i, :channels].transpose(1, 2, 0), final)
            assert not step.final[i, channels:].any()
            if end:
                returns.append(total[i])
                total[i], ends = 0.0, ends + 1
                other.reset()
            now = step.observation[i, :channels].transpose(1, 2, 0)
            np.testing.assert_array_equal(now, other.state())
        assert step.returns == tuple(returns)
        assert not step.truncated.any()
    assert ends > 0 or game in ("freeway", "seaquest")


@rl
@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("when", [0, 37, 400])
def test_same_seed_same_course_and_resume_in_mid_episode(game: str, when: int) -> None:
    need()
    one, two = (VectorMinAtar(game, copies=2, limit=300, seed=3) for _ in range(2))
    for x, y in zip(walk(one, when), walk(two, when), strict=True):
        same(x, y)
    tables: dict[str, torch.Tensor] = {}
    stored = json.loads(json.dumps(encode(plain(one.state_dict()), tables)))  # through a file and back
    three = VectorMinAtar(game, copies=2, limit=300, seed=99)
    walk(three, 11)
    three.load_state_dict(arrays(decode(stored, tables)))
    for x, y in zip(walk(one, 400, 1), walk(three, 400, 1), strict=True):
        same(x, y)
    other = VectorMinAtar(game, copies=2, limit=300, seed=4)
    courses = [np.stack([s.observation for s in walk(e, 50, 1)]) for e in (two, other)]
    assert when == 0 or not np.array_equal(*courses)


@rl
@pytest.mark.parametrize("game", ["seaquest", "space_invaders"])
def test_a_state_is_no_view_of_the_game(game: str) -> None:
    need()
    env = VectorMinAtar(game, copies=1, seed=0)
    walk(env, 60)
    state = env.state_dict()
    first = walk(env, 100, 1)
    for _ in range(2):  # neither the game's course nor a load has changed it
        env.load_state_dict(state)
        for x, y in zip(first, walk(env, 100, 1), strict=True):
            same(x, y)


@rl
def test_copies_differ_and_sticky_actions_are_an_argument() -> None:
    need()
    step = walk(VectorMinAtar("asterix", copies=3, seed=0), 200)[-1]
    assert not np.array_equal(step.observation[0], step.observation[1])
    env = VectorMinAtar("space_invaders", copies=1, seed=0, sticky=0.0)
    assert env.step(np.array([1])).observation[0, 0, 9, 4] == 1.0  # one to the left of column 5
    env = VectorMinAtar("space_invaders", copies=1, seed=0, sticky=1.0)
    assert env.step(np.array([1])).observation[0, 0, 9, 5] == 1.0  # the last action was nothing, for ever


@rl
def test_the_idle_submarine_and_the_limit_are_cut() -> None:
    need()
    nothing = np.zeros(1, dtype=np.int64)
    env = VectorMinAtar("seaquest", copies=1, seed=0, idle=20)
    steps = [env.step(nothing) for _ in range(40)]
    assert [i for i, s in enumerate(steps) if s.truncated[0]] == [19, 39]
    env = VectorMinAtar("seaquest", copies=1, limit=15, seed=0)
    steps = [env.step(nothing) for _ in range(40)]
    assert [i for i, s in enumerate(steps) if s.truncated[0]] == [14, 29]
    env = VectorMinAtar("space_invaders", copies=1, seed=0, idle=10)
    shot = [env.step(np.array([5])) for _ in range(14)]  # it has shot an alien by then: not idle
    assert sum(s.reward[0] for s in shot[:9]) > 0
    assert not any(s.truncated[0] or s.terminated[0] for s in shot)


@rl
def test_the_chain() -> None:
    need()
    chain = GameChain(copies=2, seed=1)
    seen = []
    for index in range(5):
        chain.task(index)
        seen.append((chain.game, chain.reset()))
        assert chain.env.idle == (1000 if chain.game == "seaquest" else None)
    assert [game for game, _ in seen] == [*CHAIN, *CHAIN[:2]]
    walk(chain, 60)
    other = GameChain(copies=2, seed=1)
    other.load_state_dict(chain.state_dict())
    assert (other.index, other.game) == (4, "asterix")
    for x, y in zip(walk(chain, 100, 1), walk(other, 100, 1), strict=True):
        same(x, y)
    again = GameChain(copies=2, seed=1)
    again.task(4)
    fresh = GameChain(copies=2, seed=1)
    fresh.task(1), fresh.reset(), walk(fresh, 5), fresh.task(4)  # a task is the same whatever came before it
    courses = [walk(again, 50), walk(fresh, 50)]
    for x, y in zip(*courses, strict=True):
        same(x, y)
    fresh.task(1)  # the same game, another course
    assert not all(np.array_equal(x.final, y.final) for x, y in zip(walk(fresh, 50), courses[0], strict=True))


def small(**settings: Any) -> DQNConfig:
    kept = {"channels": (4,), "hidden": (16,), "batch": 8, "capacity": 500, "steps_per_iteration": 60}
    return DQNConfig(**{**kept, "random_steps": 20, "epsilon_steps": 100, "target_every": 10, **settings})


@rl
def test_dqn_over_the_chain_resumes_bit_for_bit() -> None:
    need()
    agents = [DQN(GameChain(copies=2, limit=40, seed=0), small(), seed=seed) for seed in (0, 9)]
    one, two = agents
    assert one.replay.columns["observations"].dtype == np.bool_
    for index in range(3):
        one.env.task(index)
        one.task()
        assert one.iterate().updates == 40
    table: dict[str, torch.Tensor] = {}
    two.load_state_dict(decode(encode(one.state_dict(), table), table))
    for _ in range(2):
        assert one.iterate() == two.iterate()
    for p, q in zip(one.net.parameters(), two.net.parameters(), strict=True):
        assert torch.equal(p, q)


@rl
def test_resets_of_a_convolution_reach_the_target() -> None:
    need()
    agent = DQN(VectorMinAtar("asterix", copies=2, seed=0), small(target_every=10_000))
    with torch.no_grad():
        agent.net.conv1.bias[1] = agent.net.fc1.bias[3] = -50.0
    agent.sync_target()
    handle = ReDo(tau=0.0, every=10).attach(agent.net, agent.optimizer)
    handle.follow(agent.target)
    agent.iterate()
    assert agent.target.conv1.bias[1] == 0
    assert agent.target.fc1.bias[3] == 0
    born = {u for e in handle.log if isinstance(e, ResetEvent) and e.layer == "fc1" for u in e.units}
    readers = [u for u in range(16) if u not in born]  # a reader that is born itself has fresh weights
    assert readers
    assert (agent.target.fc1.weight.view(16, 4, 64)[readers, 1] == 0).all()


@rl
def test_ppo_plays_flattened_images() -> None:
    need()
    agent = PPO(VectorMinAtar("breakout", copies=4, seed=0), PPOConfig(steps_per_iteration=80, minibatch=40))
    assert agent.iterate().updates == 10


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minatar", None)
    with pytest.raises(MissingExtraError, match=r"supple\[rl\]"):
        VectorMinAtar("asterix")
    with pytest.raises(MissingExtraError, match=r"supple\[rl\]"):
        GameChain()


@rl
def test_refusals() -> None:
    with pytest.raises(InputError, match="unknown MinAtar game"):
        VectorMinAtar("pong")
    with pytest.raises(InputError, match="sticky"):
        VectorMinAtar("asterix", sticky=1.5)
    with pytest.raises(InputError, match="a chain is of"):
        GameChain(("asterix", "pong"))
    with pytest.raises(InputError, match="a chain is of"):
        GameChain(())
    need()
    with pytest.raises(ValueError, match="at least 1"):
        VectorMinAtar("asterix", copies=0)
    env, other = VectorMinAtar("asterix", copies=2), VectorMinAtar("breakout", copies=2)
    before = env.state_dict()
    for state in (other.state_dict(), VectorMinAtar("asterix", copies=1).state_dict()):
        with pytest.raises(InputError, match="other games"):
            env.load_state_dict(state)
    assert str(env.state_dict()) == str(before)
    with pytest.raises(InputError, match="0 or more"):
        GameChain().task(-1)
