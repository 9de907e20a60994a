"""Settings of the compact DQN, and the network they describe."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from supple.errors import InputError
from supple.models import MLP
from supple.models.convnet import CHANNEL_NORMS
from supple.models.mlp import NORMS, check_norm, make_activation


@dataclass(frozen=True)
class DQNConfig:
    """Settings; the defaults are the published ones of the MinAtar chain.

    Source: the DDQN code of Tang et al. 2025 (C-CHAIN, arXiv 2506.00592), with the values that reach the
    agent: its run script also logs a buffer and an ε decay of 5e5 that nothing reads. One environment there.

    Args:
        channels: 3 × 3 convolutions (stride 1, no padding) in front, for image observations only.
        hidden: the linear layers that follow.
        activation: see `supple.models.MLP`.
        learning_rate: of Adam.
        batch: transitions per update.
        gamma: discount.
        capacity: of the replay buffer, which task switches leave as it is.
        target_every: updates between two copies of the network into the target network.
        random_steps: transitions at the start of **each** task with random actions and no update.
        update_every: transitions per update.
        epsilon_start, epsilon_end, epsilon_steps: ε falls in a straight line over so many transitions that
            were not random steps; task switches do not restart it.
        double: the online network chooses the action that the target network values (van Hasselt et al. 2016).
        loss: "mse", or "huber" with its bend at 1.
        steps_per_iteration: transitions that one `DQN.iterate` makes.
    """

    channels: tuple[int, ...] = (16,)
    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"
    learning_rate: float = 3e-4
    batch: int = 32
    gamma: float = 0.99
    capacity: int = 100_000
    target_every: int = 1000
    random_steps: int = 10_000
    update_every: int = 1
    epsilon_start: float = 1.0
    epsilon_end: float = 0.1
    epsilon_steps: int = 100_000
    double: bool = True
    loss: Literal["mse", "huber"] = "mse"
    steps_per_iteration: int = 1000

    def __post_init__(self) -> None:
        counts = ("batch", "capacity", "target_every", "update_every", "epsilon_steps", "steps_per_iteration")
        wrong = {name: getattr(self, name) for name in counts if getattr(self, name) < 1}
        if wrong or self.random_steps < 0:
            raise InputError("counts must be positive", found=wrong or self.random_steps, where="DQNConfig")
        if not 0 <= self.epsilon_end <= self.epsilon_start <= 1 or not 0 <= self.gamma <= 1:
            raise InputError(
                "need 0 <= epsilon_end <= epsilon_start <= 1 and gamma in [0, 1]",
                found=(self.epsilon_end, self.epsilon_start, self.gamma),
                where="DQNConfig",
            )
        if self.loss not in ("mse", "huber"):
            raise InputError("unknown loss", found=self.loss, where="DQNConfig", do="choose 'mse' or 'huber'")

    @classmethod
    def small(cls) -> DQNConfig:
        """For CartPole in seconds: two layers of 64, higher learning rate, short schedules. No paper's."""
        return cls(
            hidden=(64, 64), activation="leaky_relu", learning_rate=1e-3, batch=64, capacity=20_000,
            target_every=200, random_steps=500, update_every=4, epsilon_end=0.02, epsilon_steps=4000,
            loss="huber", steps_per_iteration=800,
        )  # fmt: skip


def q_network(shape: tuple[int, ...], actions: int, config: DQNConfig, norm: bool | str = False) -> nn.Module:
    """Q(s, ·): an `MLP` for vectors; for images (C, H, W) the convolutions, hidden layers and a head.

    ``norm``: before every activation, see `supple.models.MLP` and `ConvNet`.

    >>> net = q_network((10, 10, 10), 6, DQNConfig())
    >>> sum(p.numel() for p in net.parameters())  # 16 channels, 8 * 8 * 16 -> 128 -> 6
    133430
    """
    if len(shape) == 1:
        return MLP((*shape, *config.hidden, actions), activation=config.activation, norm=norm)
    if len(shape) != 3:
        raise InputError("observations are vectors (d,) or images (C, H, W)", found=shape)
    seen, size, kind = shape[0], shape[1:], check_norm(norm)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, width in enumerate(config.channels, 1):
        act, outputs = make_activation(config.activation)
        parts[f"conv{i}"] = nn.Conv2d(seen, width // outputs, 3)
        if kind:
            parts[f"conv_norm{i}"] = CHANNEL_NORMS[kind](width // outputs)
        parts[f"conv_act{i}"] = act
        seen, size = width, (size[0] - 2, size[1] - 2)
    parts["flat"] = nn.Flatten()
    seen *= size[0] * size[1]
    for i, width in enumerate(config.hidden, 1):
        act, outputs = make_activation(config.activation)
        parts[f"fc{i}"] = nn.Linear(seen, width // outputs)
        if kind:
            parts[f"norm{i}"] = NORMS[kind](width // outputs)
        parts[f"act{i}"] = act
        seen = width
    parts["head"] = nn.Linear(seen, actions)
    return nn.Sequential(parts)
