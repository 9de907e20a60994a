"""C-CHAIN under Stable-Baselines3 against the paper's rule with deep copies, written out in a hook of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.rl

from stable_baselines3 import DQN, PPO  # noqa: E402
from tests.integrations.test_stable_baselines3 import METHODS, agent, same  # noqa: E402

from supple.integrations.stable_baselines3 import SuppleCallback  # noqa: E402


class Reference:
    """L + λ D(f(B; θ_{t-1}), f(B; θ_t)), B the minibatch before the last; added before each step."""

    def __init__(self, model: Any, coef: float, kl: bool) -> None:
        self.model, self.coef, self.kl = model, coef, kl
        self.batches: list[torch.Tensor] = []
        self.networks: list[nn.Module] = []  # as they were before each update
        part = model.policy if kl else model.q_net
        self.network = nn.ModuleList([part.mlp_extractor, part.action_net] if kl else [part.q_net])
        part.features_extractor.register_forward_pre_hook(self.see)
        model.policy.optimizer.register_step_pre_hook(self.before)

    def see(self, module: nn.Module, args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.batches.append(args[0].detach().clone())

    def outputs(self, network: Any, x: torch.Tensor) -> torch.Tensor:
        return network[1](network[0].forward_actor(x)) if self.kl else network[0](x)

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        step = len(self.networks)
        if step >= 2:
            x = self.batches[step - 2]
            old = self.outputs(self.networks[step - 1], x).detach()
            new = self.outputs(self.network, x)
            if self.kl:
                distance = (old.softmax(1) * (old.log_softmax(1) - new.log_softmax(1))).sum(1).mean()
            else:
                distance = (old - new).square().mean()
            parameters = [p for p in self.network.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(self.coef * distance, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = parameter.grad + gradient
        self.networks.append(copy.deepcopy(self.network))


@pytest.mark.parametrize("cls", [PPO, DQN])
def test_equal_to_the_written_out_rule(cls: Any) -> None:
    kl, coef = cls is PPO, 50.0
    alone = agent(cls).learn(192)
    model = agent(cls)
    reference = Reference(model, coef, kl)
    model.learn(192)
    chain = METHODS.CChain(coef=coef, kind="kl" if kl else "mse", memory=2)
    callback = SuppleCallback(every=10**6, probe_size=32, interventions=[chain])
    carried = agent(cls).learn(192, callback=callback)
    callback.detach()
    assert len(reference.networks) > 8
    assert not same(alone, carried)
    for mine, theirs in zip(carried.policy.parameters(), model.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
