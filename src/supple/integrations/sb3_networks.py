"""What a Stable-Baselines3 agent is made of: its trained networks, their optimizers and target networks.

SB3's policies compute an action by sampling, keep the last distribution (which cannot be copied) and hold target
networks beside the trained ones. The views here share the trained modules, compute the outputs without a draw, and
have the modules' own names, so that a layer is called as in SB3.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from supple.errors import InputError


class View(nn.Module):
    """Named parts of an agent as one network; ``fed`` is the module whose input is the view's input."""

    fed: nn.Module


class PolicyView(View, abc.ABC):
    """A view of what chooses the actions."""

    @abc.abstractmethod
    def policy(self, x: Tensor) -> Tensor:
        """Logits or means of the actions, or action values, for preprocessed observations."""


class ActorCritic(PolicyView):
    """PPO and A2C: (logits or means, values)."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.features_extractor = policy.pi_features_extractor
        if not policy.share_features_extractor:
            self.vf_features_extractor = policy.vf_features_extractor
        self.mlp_extractor = policy.mlp_extractor
        self.action_net, self.value_net = policy.action_net, policy.value_net
        if hasattr(policy, "log_std"):
            self.log_std = policy.log_std
        vars(self)["fed"] = (
            policy.pi_features_extractor
        )  # past Module.__setattr__: no second name for its weights

    def policy(self, x: Tensor) -> Tensor:
        return self.action_net(self.mlp_extractor.forward_actor(self.features_extractor(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = getattr(self, "vf_features_extractor", self.features_extractor)(x)
        return self.policy(x), self.value_net(self.mlp_extractor.forward_critic(features))


class SquashedActor(PolicyView):
    """SAC: (means before squashing, logarithms of the standard deviations, within SB3's bounds)."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.features_extractor, self.latent_pi = actor.features_extractor, actor.latent_pi
        self.mu, self.log_std = actor.mu, actor.log_std
        vars(self)["fed"] = actor.features_extractor

    def policy(self, x: Tensor) -> Tensor:
        return self.mu(self.latent_pi(self.features_extractor(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.latent_pi(self.features_extractor(x))
        return self.mu(latent), bounded(self.log_std(latent))


class Head(PolicyView):
    """One head on the features: the actor of TD3 (``mu``), the action values of DQN (``q_net``)."""

    def __init__(self, module: Any, head: str) -> None:
        super().__init__()
        self.features_extractor = module.features_extractor
        self.add_module(head, getattr(module, head))
        vars(self)["head"], vars(self)["fed"] = head, module.features_extractor

    def policy(self, x: Tensor) -> Tensor:
        return getattr(self, vars(self)["head"])(self.features_extractor(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x)


class Critic(View):
    """The critics of SAC and TD3 on observations and actions, side by side: (N, number of critics)."""

    def __init__(self, critic: Any) -> None:
        super().__init__()
        self.features_extractor = critic.features_extractor
        for name, part in critic.named_children():
            self.add_module(name, part)  # qf0, qf1 …, by their own names
        vars(self)["fed"] = critic

    def forward(self, x: Tensor, actions: Tensor) -> Tensor:
        # not through the critic itself, whose hook tells training passes
        critic: Any = self.fed
        features = critic.extract_features(x, self.features_extractor)
        if critic.share_features_extractor:  # trained by the actor alone
            features = features.detach()
        joined = torch.cat([features, actions], 1)
        return torch.cat([getattr(self, f"qf{k}")(joined) for k in range(critic.n_critics)], 1)


def bounded(log_std: Tensor) -> Tensor:
    """The logarithms of SAC's standard deviations as SB3 clips them."""
    from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN

    return log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


@dataclass(frozen=True)
class Network:
    """A trained network of an agent: what interventions attach to.

    ``inputs(raw observations, actions)`` are the arguments of ``module`` for a batch of the buffer; ``kind`` says what
    the first output is: "logits", "means" or "values".
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Callable[[Tensor, Tensor], Any]
    kind: str
    target: nn.Module | None = None


def networks(agent: Any) -> dict[str, Network]:
    """The trained networks of a PPO, A2C, DQN, SAC or TD3 agent by name; the first one is the policy.

    ``{"policy"}`` for PPO and A2C (actor and critic have one optimizer), ``{"q_net"}`` for DQN, ``{"actor",
    "critic"}`` for SAC and TD3. SAC's temperature is a bare parameter of no network and stays SB3's own business.

    Raises:
        InputError: another kind of policy, generalised state-dependent exploration, dictionaries of observations or
            actions other than Discrete and Box.
    """
    _check(agent)
    policy = agent.policy
    prepared = lambda x, _: preprocess(agent, x)
    if hasattr(policy, "action_net"):
        kind = "logits" if hasattr(agent.action_space, "n") else "means"
        return {"policy": Network("policy", ActorCritic(policy), policy.optimizer, prepared, kind)}
    if hasattr(policy, "q_net"):
        view, target = Head(policy.q_net, "q_net"), policy.q_net_target
        return {"q_net": Network("q_net", view, policy.optimizer, prepared, "values", target)}
    actor, critic = policy.actor, policy.critic
    squashed = hasattr(actor, "latent_pi")
    view = SquashedActor(actor) if squashed else Head(actor, "mu")
    target = getattr(policy, "actor_target", None)
    return {
        "actor": Network("actor", view, actor.optimizer, prepared, "means", target),
        "critic": Network(
            "critic", Critic(critic), critic.optimizer, lambda x, y: (x, y), "values", policy.critic_target
        ),
    }


def preprocess(agent: Any, observations: Tensor) -> Tensor:
    """Raw observations as SB3 hands them to the first layer: images scaled to [0, 1], integers one-hot."""
    from stable_baselines3.common.preprocessing import preprocess_obs

    space, scaled = agent.observation_space, agent.policy.normalize_images
    return torch.as_tensor(preprocess_obs(observations, space, normalize_images=scaled))


def policy_outputs(network: Any, x: Any) -> Tensor:
    """What a `PolicyView` computes for its policy: logits or means of its actions, or action values."""
    return network.policy(x)


def policy_now(network: Network, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Any, Tensor | None]:
    """The policy on raw observations: outputs (N, A), their kind, standard deviations (N, A) or None.

    Kinds as in `supple.diagnose.policy.policy_report`; the squashed policies of SAC and TD3 are "bounded".
    """
    module: Any = network.module
    modes = [(m, m.training) for m in module.modules()]
    try:
        with torch.no_grad():
            module.eval()
            outputs = module(network.inputs(*batch))
    finally:
        for part, training in modes:
            part.training = training
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    if isinstance(module, SquashedActor):
        return first.tanh(), "bounded", None
    if network.kind != "means":
        return first, network.kind, None
    if isinstance(module, Head):  # TD3: its last layer is a tanh
        return first, "bounded", None
    return first, "means", module.log_std.detach().exp().expand_as(first)


def imitation_loss(outputs: Tensor, actions: Tensor) -> Tensor:
    """A loss that needs no environment: how well the outputs predict the actions that were taken."""
    if actions.dtype == torch.long:
        return nn.functional.cross_entropy(outputs, actions)
    return nn.functional.mse_loss(outputs, actions)


def _check(agent: Any) -> None:
    from gymnasium import spaces

    policy = getattr(agent, "policy", None)
    if policy is None or not hasattr(agent, "action_space"):
        raise InputError("not an agent of Stable-Baselines3", found=type(agent).__name__)
    known = hasattr(policy, "action_net") or hasattr(policy, "q_net") or hasattr(policy, "critic")
    if not known or getattr(policy, "lstm_actor", None) is not None:
        raise InputError("not a policy of PPO, A2C, DQN, SAC or TD3", found=type(policy).__name__)
    if getattr(agent, "use_sde", False):
        raise InputError("state-dependent exploration (use_sde) is not supported", do="use_sde=False")
    if not isinstance(agent.action_space, spaces.Discrete | spaces.Box):
        raise InputError("actions must be Discrete or a Box", found=agent.action_space)
    if isinstance(agent.observation_space, spaces.Dict | spaces.Tuple):
        raise InputError("observations must be one array", found=agent.observation_space, do="flatten them")
