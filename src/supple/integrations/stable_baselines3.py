"""Stable-Baselines3: one callback that observes an agent and carries interventions (extra ``rl``).

    from supple.integrations.stable_baselines3 import SuppleCallback
    agent.learn(100_000, callback=SuppleCallback(every=500))

The probe is taken from the agent's own rollout or replay buffer; the network's outputs are action
logits, action means or action values. SB3's optimizers are stepped after its own gradient clipping, so
gradients seen here are clipped already. A run without interventions is bit-identical to SB3 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.integrations._need import need

_base: Any = need("stable_baselines3.common.callbacks", "rl").BaseCallback


def policy_outputs(policy: Any, observations: Tensor) -> Tensor:
    """What an SB3 policy computes for observations: logits or means of its actions, or action values."""
    if hasattr(policy, "q_net"):
        return policy.q_net(observations)
    if hasattr(policy, "get_distribution"):
        distribution = policy.get_distribution(observations).distribution
        if isinstance(distribution, list):  # multi-discrete: one distribution per action dimension
            return torch.cat([d.logits for d in distribution], dim=-1)
        return distribution.logits if hasattr(distribution, "logits") else distribution.mean
    if hasattr(policy.actor, "get_action_dist_params"):  # SAC: the mean before squashing
        return policy.actor.get_action_dist_params(observations)[0]
    return policy.actor(observations)


def imitation_loss(outputs: Tensor, actions: Tensor) -> Tensor:
    """A loss that needs no environment: how well the outputs predict the actions that were taken."""
    if actions.dtype == torch.long:
        return nn.functional.cross_entropy(outputs, actions)
    return nn.functional.mse_loss(outputs, actions)


def optimizers(agent: Any) -> list[torch.optim.Optimizer]:
    """Every optimizer of an SB3 agent: one for PPO, A2C and DQN; actor, critic, temperature for SAC, TD3.

    SAC's temperature is a bare parameter and belongs to no module, so its optimizer is left out.
    """
    policy = agent.policy
    if getattr(policy, "optimizer", None) is not None:
        return [policy.optimizer]
    return [getattr(policy, part).optimizer for part in ("actor", "critic") if hasattr(policy, part)]


class SuppleCallback(_base):  # type: ignore[misc]
    """Attach a `supple.Monitor` and interventions to an SB3 agent.

    Args:
        every: optimizer steps between two measurements (int or callable).
        probe_size: samples kept from the first rollout (or from the replay buffer) as the probe.
        instruments: the bundle, as in `supple.Monitor`.
        interventions: attached when the probe is there, detached at the end of training.
        sinks: trackers with ``log(values, step)``.
        verbose: as in SB3.

    Attributes ``monitor`` and ``handles`` are available after the first rollout and stay readable after
    training. Call ``task(name)`` between two ``learn`` calls of a chain.
    """

    def __init__(
        self,
        every: int | Callable[[int], bool] = 500,
        *,
        probe_size: int = 256,
        instruments: str = "economy",
        interventions: Sequence[Any] = (),
        sinks: Sequence[Any] = (),
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if probe_size < 2:
            raise InputError("a probe needs at least 2 samples", found=probe_size)
        self.every, self.probe_size, self.instruments = every, probe_size, instruments
        self.interventions, self.sinks = tuple(interventions), tuple(sinks)
        self.monitor: Any = None
        self.handles: list[Any] = []
        self._saved: dict[str, Any] | None = None

    # -- SB3's hooks ----------------------------------------------------------------------------
    def _on_step(self) -> bool:
        if self.monitor is None and hasattr(self.model, "replay_buffer"):
            buffer = self.model.replay_buffer
            if buffer is not None and buffer.size() * buffer.n_envs >= self.probe_size:
                self._attach(self._from_replay(buffer))
        return True

    def _on_rollout_end(self) -> None:
        if self.monitor is None and hasattr(self.model, "rollout_buffer"):
            self._attach(self._from_rollout(self.model.rollout_buffer))

    # -- what a user calls ----------------------------------------------------------------------
    def task(self, name: str) -> None:
        """Announce that the next ``learn`` call is on another task."""
        if self.monitor is not None:
            self.monitor.task(name)
        for handle in self.handles:
            handle.task(name)

    def diagnose(self, **options: Any) -> Any:
        """A diagnosis from what the monitor has seen; refuses before the first rollout."""
        if self.monitor is None:
            raise InputError("nothing has been observed yet", do="call learn() with this callback first")
        return self.monitor.diagnose(**options)

    def detach(self) -> None:
        """Remove every hook from the agent."""
        for handle in self.handles:
            handle.detach()
        if self.monitor is not None:
            self.monitor.detach()

    def state_dict(self) -> dict[str, Any]:
        """State of the monitor and the handles, to be saved beside ``model.save``."""
        if self.monitor is None:
            return {}
        return {"monitor": self.monitor.state_dict(), "handles": [h.state_dict() for h in self.handles]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; taken up when the callback attaches to the loaded agent."""
        self._saved = dict(state)
        if self.monitor is not None:
            self._restore()

    # -- inside ---------------------------------------------------------------------------------
    def _attach(self, probe: tuple[Tensor, Tensor]) -> None:
        import supple

        policy, found = self.model.policy, optimizers(self.model)
        self.monitor = supple.Monitor(
            policy,
            found,
            probe=probe,
            loss_fn=imitation_loss,
            every=self.every,
            instruments=self.instruments,
            forward=policy_outputs,
            sinks=self.sinks,
        )
        self.handles = [i.attach(policy, found, inputs=probe[0]) for i in self.interventions]
        if self._saved:
            self._restore()

    def _restore(self) -> None:
        saved, self._saved = self._saved, None
        if not saved:
            return
        self.monitor.load_state_dict(saved["monitor"])
        for handle, state in zip(self.handles, saved["handles"], strict=True):
            handle.load_state_dict(state)

    def _from_rollout(self, buffer: Any) -> tuple[Tensor, Tensor]:
        observations = buffer.observations.reshape(-1, *buffer.observations.shape[2:])
        actions = buffer.actions.reshape(-1, *buffer.actions.shape[2:])
        return self._probe(observations, actions)

    def _from_replay(self, buffer: Any) -> tuple[Tensor, Tensor]:
        filled = buffer.size()
        observations = buffer.observations[:filled].reshape(-1, *buffer.observations.shape[2:])
        actions = buffer.actions[:filled].reshape(-1, *buffer.actions.shape[2:])
        return self._probe(observations, actions)

    def _probe(self, observations: Any, actions: Any) -> tuple[Tensor, Tensor]:
        n, device = len(observations), self.model.device
        rows = (
            torch.linspace(0, n - 1, min(self.probe_size, n)).long().numpy()
        )  # no random draw: SB3's is untouched
        x = torch.as_tensor(observations[rows], device=device)
        from stable_baselines3.common.preprocessing import preprocess_obs

        if not hasattr(self.model.policy, "get_distribution"):
            x = torch.as_tensor(preprocess_obs(x, self.model.observation_space, normalize_images=True))
        discrete = hasattr(self.model.action_space, "n")
        y = torch.as_tensor(actions[rows], device=device)
        return x.float(), y.long().flatten() if discrete else y.float()
