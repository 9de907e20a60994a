"""The compact PPO: the advantage estimate against its definition, learning, reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from supple.agents import DQN, PPO, DQNConfig, PPOConfig, Rollout, advantages
from supple.errors import InputError
from supple.streams.rl import ObservationOffset, VectorCartPole


def test_advantages_equal_the_definition() -> None:
    torch.manual_seed(0)
    t, n, g, k = 7, 3, 0.97, 0.9
    r, v, nv = (torch.randn(t, n, dtype=torch.float64) for _ in range(3))
    done = (torch.rand(t, n) < 0.3).double()
    got = advantages(r, v, nv, done, g, k)
    for i in range(n):
        for start in range(t):
            want, weight = 0.0, 1.0
            for step in range(start, t):
                want += weight * float(r[step, i] + g * nv[step, i] - v[step, i])
                if done[step, i]:
                    break
                weight *= g * k
            np.testing.assert_allclose(float(got[start, i]), want, rtol=1e-12)


def test_it_learns_cartpole() -> None:
    agent = PPO(VectorCartPole(copies=16, seed=0), seed=0)
    first = np.mean(agent.iterate().returns)
    last = [r for _ in range(14) for r in agent.iterate().returns][-20:]
    assert np.mean(last) > 3 * first


def test_same_seed_same_agent() -> None:
    def run() -> torch.Tensor:
        env = ObservationOffset(VectorCartPole(copies=4, seed=1), seed=1)
        env.task(1)
        agent = PPO(env, PPOConfig(steps_per_iteration=160, minibatch=40), seed=3)
        agent.iterate()
        return torch.cat([p.detach().flatten() for p in agent.net.parameters()])

    state = torch.random.get_rng_state()
    assert torch.equal(run(), run())
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is left alone


def test_listeners_hear_the_policys_loss_and_may_add_to_it() -> None:
    heard: list[float] = []
    agent = PPO(VectorCartPole(copies=4, seed=1), PPOConfig(steps_per_iteration=80, minibatch=40), seed=3)
    wanted: list[float] = []
    whole = agent.losses

    def losses(rollout: Rollout, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = whole(rollout, rows)
        wanted.append((found[0] - 0.01 * found[2]).item())
        return found

    agent.losses = losses  # type: ignore[method-assign]
    agent.on_loss.append(lambda loss: heard.append(loss.item()))
    agent.iterate()
    assert heard == wanted
    assert len(heard) == 10
    agent.on_loss.append(lambda loss: 5.0 * agent.net.policy.head.bias.sum())
    before = agent.net.policy.head.bias.detach().clone()
    agent.optimizer = torch.optim.SGD(agent.net.parameters(), lr=0.01)
    agent.iterate()
    assert (agent.net.policy.head.bias < before).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"minibatch": 79}, "at least 2 steps, the last one too; found: 80 steps in minibatches of 79"),
        ({"minibatch": 1}, "at least 2 steps"),
        ({"epochs": 0}, "positive"),
        ({"gamma": 2.0}, "gamma"),
        ({"clip": -0.2}, "clip"),
    ],
)
def test_settings_that_would_ruin_the_networks_are_refused(settings: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        PPOConfig(**{"steps_per_iteration": 80, "minibatch": 40, **settings})


class Broken(VectorCartPole):
    """Shows NaN in its first copy once an episode has lasted five steps."""

    def observe(self) -> np.ndarray:
        seen = super().observe()
        if getattr(self, "clock", np.zeros(1)).max() >= 5:
            seen[0, 1] = np.nan
        return seen


def test_nan_from_the_environment_is_refused_before_a_network_learns_from_it() -> None:
    for agent in (
        PPO(Broken(copies=4), PPOConfig(steps_per_iteration=80, minibatch=40)),
        DQN(Broken(copies=4), DQNConfig(random_steps=8, steps_per_iteration=80, hidden=(8,))),
    ):
        with pytest.raises(
            InputError, match="environment's observation is not finite; found: NaN or Inf in 1 of 16"
        ):
            agent.iterate()
        assert all(p.isfinite().all() for p in agent.net.parameters())
