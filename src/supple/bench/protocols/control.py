"""Gym control with a constant offset on the observations, another one each task: CartPole, Acrobot,
MountainCar, LunarLander."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from torch import Tensor, nn

from supple.agents import PPO, Iteration, PPOConfig, losses
from supple.bench.protocols.agents import AgentProtocol, Taught, last
from supple.bench.protocols.base import sourced
from supple.errors import InputError, need
from supple.streams.rl import (
    ObservationOffset,
    VectorAcrobot,
    VectorCartPole,
    VectorEnv,
    VectorLunarLander,
    VectorMountainCar,
)

TANG = "Tang et al., ICML 2025, arXiv 2506.00592, Gym control: settings of the authors' code"
SMALL = "own feasibility study (3 seeds): the budget at which the loss shows within half a minute a run"
#: 10 and 50 iterations of 40 updates
CCHAIN = {"kind": "ce", "target": 1e3, "cap": 1e4, "floor": 1.0, "coef": 1.0, "window": 2000, "start": 400}
#: the best of two or three tried
TRIED = {
    "cchain": CCHAIN,
    "l2init": {"coef": 3e-3},
    "spectral": {"coef": 3e-3},
    "cbp": {"replacement_rate": 1e-2},
    "redo": {"every": 150, "tau": 0.1},
    "regrama": {"every": 150, "tau": 0.1},
    "shrink_perturb_boundary": {"shrink": 0.3, "perturb": 0.7},
}
#: the published form; environments are stepped one by one there, 16 side by side here. Iterations of 125 updates; of
#: the published baselines the settings are not known here
PAPER = {
    "iterations": 200, "batch": 32, "hidden": (256, 256, 256), "lr": 1e-3, "copies": 1, "tasks": 10,
    "settings": {**TRIED, "cchain": {**CCHAIN, "target": 1e4, "window": 6250, "start": 1250}},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Control(AgentProtocol):
    """An agent (PPO with separate networks for policy and values) in one environment, whose observations are moved
    by another constant vector ~ N(0, scale²) in every task; the first task has none.

    The metric is the return: the mean over the episodes that end in a task. ``fresh`` is the oracle of the paper, new
    networks and optimizer for every task. C-CHAIN acts on the policy alone, as published.
    """

    environments: ClassVar[type[VectorEnv]]
    activation: ClassVar[str] = "leaky_relu"

    network: str = sourced("actor_critic", f"{TANG}: separate networks, LeakyReLU 0.1")
    tasks: int = sourced(8, SMALL)
    iterations: int = sourced(30, f"{SMALL}; published: 200")
    steps_per_iteration: int = sourced(800, TANG)
    copies: int = sourced(16, f"{SMALL}; published: 1")
    limit: int = sourced(400, f"{TANG}: steps after which an episode ends")
    scale: float = sourced(2.0, f"{TANG}: of the offsets")
    batch: int = sourced(100, f"{SMALL}; published: 32")
    epochs: int = sourced(5, TANG)
    hidden: tuple[int, ...] = sourced((64, 64, 64), f"{SMALL}; published: 3 × 256")
    optimizer: str = sourced("adam", TANG)
    lr: float = sourced(3e-3, f"{SMALL}; published: 1e-3")
    clip: float = sourced(0.2, TANG)
    entropy: float = sourced(0.01, TANG)
    value: float = sourced(0.5, TANG)
    gamma: float = sourced(0.99, TANG)
    trace: float = sourced(0.95, f"{TANG}: of the generalised advantage estimate")
    reward_scale: float = sourced(0.05, f"{TANG}: rewards over 20")
    settings: dict[str, dict[str, Any]] = sourced(  # noqa: RUF009 (returns a field)
        TRIED,
        "the best of two or three tried on CartPole, small, seeds 100 to 102, which no result has "
        "(shrink_perturb_boundary: seeds 100 and 101); "
        f"C-CHAIN's target: own feasibility study (1 seed), paper: 1e4; {TANG}",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit < 1:
            raise InputError("limit must be at least 1", found=self.limit, where=self.name)
        if self.steps_per_iteration % self.copies or self.steps_per_iteration < self.batch:
            raise InputError(
                "steps_per_iteration must be a multiple of copies, and at least one batch",
                found=f"{self.steps_per_iteration}, {self.copies} copies, batch {self.batch}",
                where=self.name,
            )
        if self.samples // self.copies < self.limit:
            raise InputError(
                "a task must be long enough for one whole episode of each copy",
                found=f"{self.samples // self.copies} steps, episodes of up to {self.limit}",
                where=self.name,
            )

        self.settings_of_agent()

    @property
    def updates(self) -> int:
        """Updates of a task."""
        return self.iterations * self.epochs * -(-self.steps_per_iteration // self.batch)

    def environment(self, seed: int) -> ObservationOffset:
        """All copies of the environment, at task 0."""
        inner = self.environments(self.copies, self.limit, seed)
        return ObservationOffset(inner, self.scale, seed)

    def settings_of_agent(self) -> PPOConfig:
        """The settings of the agent."""
        return PPOConfig(
            hidden=self.hidden, activation=self.activation, learning_rate=self.lr,
            steps_per_iteration=self.steps_per_iteration, minibatch=self.batch, epochs=self.epochs,
            clip=self.clip, entropy=self.entropy, value=self.value, gamma=self.gamma, trace=self.trace,
            reward_scale=self.reward_scale,
        )  # fmt: skip

    def agent(self, env: Any, model: nn.Module, optimizer: Any, before: PPO | None = None) -> PPO:
        """PPO as published; it takes nothing over from an earlier agent."""
        return PPO(env, self.settings_of_agent(), net=model, optimizer=optimizer)

    def seen(self, agent: PPO) -> tuple[Tensor, Tensor]:
        """The last rollout."""
        assert agent.rollout is not None  # there was an iteration
        return agent.rollout.observations, agent.rollout.columns

    def told(self, found: Sequence[Iteration]) -> tuple[float, dict[str, float]]:
        """Mean loss; what the policy is at the end of the task: mean entropy and largest logit."""
        end = last(found)
        return fmean(i.policy_loss + self.value * i.value_loss for i in found), {
            "policy_entropy": fmean(i.entropy for i in end),
            "policy_max_logit": fmean(i.max_logit for i in end),
            "value_loss": fmean(i.value_loss for i in end),
        }

    def taught(self) -> Mapping[str, Taught]:
        return {"policy": Taught("policy", classes=self.outputs, unlearn=True), "value": Taught("value")}

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of the agent on outputs (logits, values) and the columns of a rollout."""
        policy, value, entropy = losses(outputs, targets, self.clip)
        return policy - self.entropy * entropy + self.value * value


@dataclass(frozen=True, kw_only=True)
class CartPoleOffsets(Control):
    """CartPole with offsets. Published level: oracle 299.9, plain 61.8 (10 tasks of 160,000 steps).

    >>> CartPoleOffsets.preset("paper").samples
    160000
    """

    name: ClassVar[str] = "cartpole-offsets"
    title: ClassVar[str] = "CartPole with offsets"
    description: ClassVar[str] = "PPO on CartPole, another constant offset on the observations each task"
    environments: ClassVar[type[VectorEnv]] = VectorCartPole
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"tasks": 4}, "small": {}, "day": {"tasks": 40}, "paper": PAPER,
    }  # fmt: skip

    inputs: int = sourced(4, "position, speed, angle and turning speed")
    outputs: int = sourced(2, "left, right")


@dataclass(frozen=True, kw_only=True)
class AcrobotOffsets(Control):
    """Acrobot with offsets. At the small budget transfer hides a loss: a plain agent beats the oracle."""

    name: ClassVar[str] = "acrobot-offsets"
    title: ClassVar[str] = "Acrobot with offsets"
    description: ClassVar[str] = "PPO on Acrobot, another constant offset on the observations each task"
    environments: ClassVar[type[VectorEnv]] = VectorAcrobot
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"tasks": 3, "iterations": 20}, "small": {}, "day": {"tasks": 40}, "paper": PAPER,
    }  # fmt: skip

    inputs: int = sourced(6, "sines and cosines of two angles, two turning speeds")
    outputs: int = sourced(3, "torque −1, 0, 1")


@dataclass(frozen=True, kw_only=True)
class MountainCarOffsets(Control):
    """MountainCar with small offsets; the reward is sparse, and short budgets never see the goal."""

    name: ClassVar[str] = "mountaincar-offsets"
    title: ClassVar[str] = "MountainCar with offsets"
    description: ClassVar[str] = "PPO on MountainCar, another small offset on the observations each task"
    environments: ClassVar[type[VectorEnv]] = VectorMountainCar
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"tasks": 2, "iterations": 20}, "small": {"tasks": 5}, "day": {"iterations": 200},
        "paper": {**PAPER, "tasks": 5, "iterations": 400},
    }  # fmt: skip

    inputs: int = sourced(2, "position and speed")
    outputs: int = sourced(3, "left, nothing, right")
    scale: float = sourced(0.02, TANG)


@dataclass(frozen=True, kw_only=True)
class LunarLanderOffsets(Control):
    """LunarLander with offsets (extra ``rl-box2d``). Published level: oracle 1.1, plain −499.4 (10 tasks of 160,000
    steps, version 2 of the environment; here version 3)."""

    name: ClassVar[str] = "lunarlander-offsets"
    title: ClassVar[str] = "LunarLander with offsets"
    description: ClassVar[str] = (
        "PPO on LunarLander, another constant offset on the observations each task (extra rl-box2d)"
    )
    environments: ClassVar[type[VectorEnv]] = VectorLunarLander
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"tasks": 3, "iterations": 20}, "small": {}, "day": {"tasks": 40}, "paper": PAPER,
    }  # fmt: skip

    inputs: int = sourced(8, "position, speed, angle, turning speed, and whether each leg touches the ground")
    outputs: int = sourced(4, "nothing, left engine, main engine, right engine")

    def check(self) -> None:
        """Refuse a missing package before any worker starts."""
        for package in ("gymnasium", "Box2D"):
            need(package, "rl-box2d")
