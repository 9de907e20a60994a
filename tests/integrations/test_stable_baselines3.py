"""The SB3 callback: a bit-identical run, measurements that arrive, interventions that act, resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.rl

from stable_baselines3 import A2C, DQN, PPO, SAC, TD3  # noqa: E402

import supple  # noqa: E402
from supple.errors import InputError  # noqa: E402
from supple.integrations.stable_baselines3 import SuppleCallback  # noqa: E402

SMALL = {
    PPO: {"env": "CartPole-v1", "n_steps": 64, "batch_size": 32, "n_epochs": 2},
    A2C: {"env": "CartPole-v1", "n_steps": 16},
    DQN: {"env": "CartPole-v1", "learning_starts": 50, "buffer_size": 500, "train_freq": 4},
    SAC: {"env": "Pendulum-v1", "learning_starts": 50, "buffer_size": 500, "train_freq": 8},
    TD3: {"env": "Pendulum-v1", "learning_starts": 50, "buffer_size": 500, "train_freq": 8},
}


def agent(cls: Any) -> Any:
    return cls("MlpPolicy", seed=0, device="cpu", policy_kwargs={"net_arch": [16, 16]}, **SMALL[cls])


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.policy.parameters()]


@pytest.mark.parametrize("cls", list(SMALL))
def test_observing_leaves_the_run_bit_identical(cls: Any) -> None:
    alone = agent(cls).learn(200)
    callback = SuppleCallback(every=5, probe_size=48)
    watched = agent(cls).learn(200, callback=callback)
    assert all(torch.equal(a, b) for a, b in zip(weights(alone), weights(watched), strict=True))
    callback.monitor.measure()
    rows = callback.monitor.records
    assert {"loss", "grama"} <= {r.instrument for r in rows}
    assert not [r for r in rows.select(instrument="loss") if r.status != "measured"]
    callback.detach()


def test_an_intervention_acts_and_the_state_resumes() -> None:
    callback = SuppleCallback(every=5, probe_size=32, interventions=[supple.interventions.L2Init(coef=1.0)])
    pulled = agent(PPO).learn(256, callback=callback)
    free = agent(PPO).learn(256)
    start = agent(PPO)
    distance = lambda model: sum(
        float((a - b).norm()) for a, b in zip(weights(model), weights(start), strict=True)
    )
    assert distance(pulled) < distance(free)
    again = SuppleCallback(every=5, probe_size=32, interventions=[supple.interventions.L2Init(coef=1.0)])
    again.load_state_dict(callback.state_dict())
    agent(PPO).learn(64, callback=again)
    assert again.monitor.step > callback.monitor.step - 1
    callback.detach()
    again.detach()


def test_before_the_first_rollout_there_is_nothing_to_diagnose() -> None:
    with pytest.raises(InputError, match="nothing has been observed"):
        SuppleCallback().diagnose()
    with pytest.raises(InputError, match="at least 2 samples"):
        SuppleCallback(probe_size=1)
