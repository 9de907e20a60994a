"""A chain of tasks with SB3: save and resume, the statistics of the normaliser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.rl

import gymnasium  # noqa: E402
from stable_baselines3 import DQN, PPO, SAC, TD3  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402
from tests.integrations.test_stable_baselines3 import METHODS, agent, same  # noqa: E402

from supple.errors import InputError  # noqa: E402
from supple.integrations.stable_baselines3 import (  # noqa: E402
    SuppleCallback,
    set_statistics,
    switch_env,
)
from supple.streams.rl.gym import ObservationOffset, TaskSequence  # noqa: E402

PARTS: dict[Any, Any] = {
    PPO: [METHODS.CChain(coef=1.0), METHODS.L2Init(coef=0.01), METHODS.ReGraMa(every=7, tau=0.5)],
    DQN: [METHODS.ContinualBackprop(replacement_rate=0.05, maturity=3), METHODS.CChain(coef=1.0, kind="mse")],
    SAC: {
        "actor": [
            METHODS.CChain(kind="gaussian", coef=0.05, by_loss=True),
            METHODS.ShrinkAndPerturb(every=6),
            METHODS.FIRE(every="boundary"),
        ],
        "critic": [
            METHODS.CChain(kind="mse", coef=0.2),
            METHODS.ReDo(every=5, tau=0.5),
            METHODS.LayerReset(every="boundary"),
        ],
    },
    TD3: [METHODS.CChain(coef=1.0, kind="mse"), METHODS.ReDo(every="task", tau=0.5)],
}


def task(cls: Any, index: int) -> Any:
    env = ObservationOffset(gymnasium.make("CartPole-v1" if cls in (PPO, DQN) else "Pendulum-v1"), seed=2)
    env.task(index)
    return env


def callback(cls: Any) -> SuppleCallback:
    return SuppleCallback(every=4, probe_size=40, interventions=PARTS[cls])


def second(model: Any, callback: SuppleCallback) -> Any:
    model.set_random_seed(5)  # SB3 saves no random state: the second task starts from one of its own
    callback.task("1")
    return model.learn(100, callback=callback, reset_num_timesteps=False)


@pytest.mark.parametrize("cls", list(PARTS))
def test_saved_in_mid_chain_and_resumed_is_the_run_in_one_go(cls: Any, tmp_path: Path) -> None:
    whole, watched = agent(cls, env=task(cls, 0)), callback(cls)
    watched.task("0")
    whole.learn(100, callback=watched)
    whole.save(tmp_path / "agent.zip")
    torch.save(watched.state_dict(), tmp_path / "supple.pt")
    if cls is not PPO:
        whole.save_replay_buffer(tmp_path / "buffer.pkl")
    switch_env(whole, task(cls, 1))
    second(whole, watched)

    resumed, again = cls.load(tmp_path / "agent.zip", env=task(cls, 1), device="cpu"), callback(cls)
    if cls is not PPO:
        resumed.load_replay_buffer(tmp_path / "buffer.pkl")
    again.load_state_dict(torch.load(tmp_path / "supple.pt", weights_only=True))
    second(resumed, again)

    assert same(whole, resumed)
    assert [h.step for h in again.handles] == [h.step for h in watched.handles]
    keys = ("step", "task", "layer", "instrument", "variant", "value")
    rows = [[tuple(repr(getattr(r, k)) for k in keys) for r in c.monitor.records] for c in (watched, again)]
    assert rows[0] == rows[1]
    assert {r.task for r in again.monitor.records} >= {"0", "1"}

    lost = cls.load(tmp_path / "agent.zip", env=task(cls, 1), device="cpu")
    if cls is not PPO:
        lost.load_replay_buffer(tmp_path / "buffer.pkl")
    forgetful = callback(cls)
    second(lost, forgetful)
    assert not same(whole, lost)  # without the state it is another run
    for one in (watched, again, forgetful):
        one.detach()


def test_a_state_of_other_interventions_is_refused_before_one_is_touched(tmp_path: Path) -> None:
    first = callback(PPO)
    model = agent(PPO).learn(64, callback=first)
    other = SuppleCallback(probe_size=40, interventions=[METHODS.L2Init()])
    other.load_state_dict(first.state_dict())
    fresh = agent(PPO)
    for _ in range(2):  # the state stays, so that it is not forgotten at the next call
        with pytest.raises(InputError, match="belongs to other interventions"):
            fresh.learn(64, callback=other)
        assert other.monitor is None
        assert not fresh.policy.optimizer._optimizer_step_pre_hooks
    first.detach()
    other.detach()
    assert model is not None


def normalised(index: int = 0) -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: task(PPO, index)]), clip_obs=7.0, gamma=0.9)


@pytest.mark.parametrize("choice", ["keep", "fresh", "frozen"])
def test_statistics_over_tasks_are_a_choice(choice: Any) -> None:
    model = agent(PPO, env=normalised()).learn(128)
    old = model.get_vec_normalize_env()
    mean, count = old.obs_rms.mean.copy(), old.obs_rms.count
    env = switch_env(model, task(PPO, 3), choice)
    assert env is model.get_vec_normalize_env()
    assert env is not old
    assert (env.clip_obs, env.gamma, env.training) == (7.0, 0.9, choice != "frozen")
    if choice == "fresh":
        np.testing.assert_array_equal(env.obs_rms.mean, np.zeros(4))
        assert env.obs_rms.count < 1
        assert env.ret_rms.count < 1
    else:
        np.testing.assert_array_equal(env.obs_rms.mean, mean)
        assert env.ret_rms.count == old.ret_rms.count
    model.learn(128, reset_num_timesteps=False)
    new = env.obs_rms.mean
    assert np.array_equal(new, mean) == (choice == "frozen")
    assert np.array_equal(old.obs_rms.mean, mean)  # the old environment is left alone
    offset = task(PPO, 3).offset
    learned = {"keep": (mean * count + offset * 128) / (count + 128), "fresh": offset, "frozen": mean}[choice]
    np.testing.assert_allclose(new, learned, atol=0.5)


def test_the_callback_applies_the_choice_at_a_switch() -> None:
    model, watched = agent(PPO, env=normalised()), SuppleCallback(probe_size=40, statistics="fresh")
    watched.task("0")
    model.learn(64, callback=watched)
    assert model.get_vec_normalize_env().obs_rms.count > 60
    watched.task("1")
    assert model.get_vec_normalize_env().obs_rms.count < 1
    watched.detach()


@pytest.mark.parametrize("choice", ["fresh", "frozen"])
def test_a_task_that_ends_before_the_first_look_has_its_choice_too(choice: Any) -> None:
    def chain() -> Any:
        moving = ObservationOffset(gymnasium.make("CartPole-v1"), scale=50.0, seed=0)
        return TaskSequence(moving, every=40, tasks=2)

    env = VecNormalize(DummyVecEnv([chain]))
    watched = SuppleCallback(probe_size=32, statistics=choice)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0)
    model.learn(64, callback=watched)  # the switch comes before the end of the first rollout
    seen = env.obs_rms.count
    assert 40 < seen < 44 if choice == "frozen" else 20 < seen < 25
    assert env.training == (choice == "fresh")
    watched.detach()


def test_a_choice_is_needed_where_there_is_one_and_refused_where_there_is_none() -> None:
    plain = agent(PPO)
    with pytest.raises(InputError, match="not normalised"):
        switch_env(plain, task(PPO, 1), "keep")
    model = agent(PPO, env=normalised())
    with pytest.raises(InputError, match="has to be said"):
        switch_env(model, task(PPO, 1))
    with pytest.raises(InputError, match="unknown choice"):
        switch_env(model, task(PPO, 1), "drop")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without its normaliser"):
        switch_env(model, normalised(1), "keep")
    set_statistics(None, "fresh")
