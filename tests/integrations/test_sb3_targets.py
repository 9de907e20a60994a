"""Stable-Baselines3's DQN: what attaches to its Q network, and its target network following resets."""

from __future__ import annotations

import copy

import pytest
import torch

from supple.interventions import CChain, ReDo, ResetEvent

pytestmark = pytest.mark.rl


def test_the_target_network_follows_resets_and_only_replayed_batches_are_kept() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    agent = sb3.DQN(
        "MlpPolicy", "CartPole-v1", learning_starts=50, train_freq=1, target_update_interval=10_000,
        buffer_size=500, seed=0, policy_kwargs={"net_arch": [16, 16]},
    )  # fmt: skip
    with torch.no_grad():
        agent.q_net.q_net[0].bias[:3] = -50.0
        agent.q_net_target.load_state_dict(agent.q_net.state_dict())
    old = copy.deepcopy(agent.q_net_target)
    churn = CChain(kind="mse", coef=1.0, memory=100).attach(agent.q_net, agent.policy.optimizer)
    resets = ReDo(tau=0.0, every=20).attach(agent.q_net, agent.policy.optimizer)
    resets.follow(agent.q_net_target)
    agent.learn(110)
    assert [b.samples for b in churn.past.batches] == [32] * 60  # neither actions nor targets
    events = [e for e in resets.log if isinstance(e, ResetEvent)]
    born = {u for e in events if e.layer == "q_net.0" for u in e.units}
    assert {0, 1, 2} <= born
    first, before = agent.q_net_target.q_net[0], old.q_net[0]
    assert (first.bias[:3] == 0).all()
    others = [u for u in range(16) if u not in born]
    assert torch.equal(first.weight[others], before.weight[others])
