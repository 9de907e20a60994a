"""How large the loss of an actor is, overheard: SB3 computes it between two calls that hooks can see.

CHAIN multiplies its term for SAC's actor by mean|min Q − α log π|, for TD3's by mean|Q| (Tang & Berseth, NeurIPS 2024,
arXiv 2409.04792, and its code). Both are read off the critic's pass over the actor's own actions, the last thing before
the actor's step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from supple.integrations.sb3_networks import bounded


class Ear:
    """A forward hook on training passes with gradients; in a copy of the module it is deaf."""

    def __init__(self, hear: Callable[[tuple[Any, ...], Any], None] | None) -> None:
        self.hear = hear

    def __call__(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if self.hear is not None and module.training and torch.is_grad_enabled():
            self.hear(args, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ear:
        return Ear(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Ear, (None,)


def overhear(agent: Any, receive: Callable[[Tensor], None]) -> list[Any]:
    """Tell ``receive`` the scale of each loss of the actor of a SAC or TD3 agent; returns the hooks' removers."""
    if hasattr(agent.policy.actor, "latent_pi"):
        return _squashed(agent, receive)
    return _deterministic(agent, receive)


def _squashed(agent: Any, receive: Callable[[Tensor], None]) -> list[Any]:
    """SAC: mean |min_k Q_k(s, a) − α log π(a|s)| for the drawn actions a."""
    from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

    actor, seen = agent.policy.actor, {}

    def means(args: tuple[Any, ...], output: Tensor) -> None:
        seen["mean"] = output.detach()
        alpha = agent.log_ent_coef
        # now: SB3 takes a step of α before the loss, which still has the old value
        seen["alpha"] = agent.ent_coef_tensor if alpha is None else alpha.detach().exp().clone()

    def deviations(args: tuple[Any, ...], output: Tensor) -> None:
        seen["log_std"] = bounded(output.detach())

    def values(args: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        actions = args[1]
        if not actions.requires_grad:
            return  # the critic's own training, on stored actions
        with torch.no_grad():
            policy = SquashedDiagGaussianDistribution(actions.shape[1], actor.action_dist.epsilon)
            log_pi = policy.proba_distribution(seen["mean"], seen["log_std"]).log_prob(actions.detach())
            receive((torch.cat(output, 1).min(1).values - seen["alpha"] * log_pi).abs().mean())

    return [
        actor.mu.register_forward_hook(Ear(means)),
        actor.log_std.register_forward_hook(Ear(deviations)),
        agent.policy.critic.register_forward_hook(Ear(values)),
    ]


def _deterministic(agent: Any, receive: Callable[[Tensor], None]) -> list[Any]:
    """TD3: mean |Q_1(s, π(s))|, the pass of the first critic outside of the critics' common one."""
    critic, inside = agent.policy.critic, [False]

    def enter(module: Any, args: tuple[Any, ...]) -> None:
        inside[0] = True

    def leave(module: Any, args: tuple[Any, ...], output: Any) -> None:
        inside[0] = False

    def values(args: tuple[Any, ...], output: Tensor) -> None:
        if not inside[0]:
            receive(output.detach().abs().mean())

    return [
        critic.register_forward_pre_hook(enter),
        critic.register_forward_hook(leave, always_call=True),
        critic.qf0.register_forward_hook(Ear(values)),
    ]
