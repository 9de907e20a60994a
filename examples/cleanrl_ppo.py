"""PPO in one file, in CleanRL's style, on CartPole whose observations move from task to task; five lines are Supple's.

The lines marked ``# supple`` can be deleted one and all: the script runs on, with the same weights as long as no unit
was reset. Run: ``python examples/cleanrl_ppo.py --total-timesteps 40000 --steps-per-task 10000``
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import supple  # supple 1
from supple.streams.rl.gym import ObservationOffset, TaskSequence


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="PPO on CartPole with observation offsets")
    for name, default in (
        ("seed", 1), ("total-timesteps", 40_000), ("steps-per-task", 10_000), ("num-envs", 4), ("num-steps", 128),
        ("minibatches", 4), ("epochs", 4), ("every", 200),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (
        ("learning-rate", 2.5e-4), ("gamma", 0.99), ("trace", 0.95), ("clip", 0.2), ("entropy", 0.01),
        ("value", 0.5), ("max-grad-norm", 0.5), ("diagnosis-seconds", 10.0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=float, default=default)
    return parser.parse_args(given)


def make_env(args: argparse.Namespace) -> gym.Env:
    moving = ObservationOffset(gym.make("CartPole-v1"), scale=2.0)
    chain = TaskSequence(moving, every=args.steps_per_task // args.num_envs)
    return gym.wrappers.RecordEpisodeStatistics(chain)


def layer(inputs: int, outputs: int, std: float = 2**0.5) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, std)
    nn.init.zeros_(made.bias)
    return made


class Agent(nn.Module):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            layer(observations, 64), nn.ReLU(), layer(64, 64), nn.ReLU(), layer(64, 1, 1.0)
        )
        self.actor = nn.Sequential(
            layer(observations, 64), nn.ReLU(), layer(64, 64), nn.ReLU(), layer(64, actions, 0.01)
        )

    def act(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        policy = Categorical(logits=self.actor(x))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), self.critic(x).flatten()


imitation = nn.functional.cross_entropy  # on (logits, actions): what a probe of a policy is measured by


def advantages(
    rewards: Tensor, values: Tensor, dones: Tensor, last: Tensor, args: argparse.Namespace
) -> Tensor:
    """Generalised advantage estimation; ``dones[t]`` says whether step t ended an episode."""
    result, running = torch.zeros_like(rewards), torch.zeros_like(last)
    for t in reversed(range(len(rewards))):
        following = last if t == len(rewards) - 1 else values[t + 1]
        delta = rewards[t] + args.gamma * following * (1 - dones[t]) - values[t]
        running = result[t] = delta + args.gamma * args.trace * (1 - dones[t]) * running
    return result


def main(args: argparse.Namespace) -> Agent:
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    same_step = gym.vector.AutoresetMode.SAME_STEP
    envs = gym.vector.SyncVectorEnv([lambda: make_env(args)] * args.num_envs, autoreset_mode=same_step)
    agent = Agent(4, 2)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    observation, info = envs.reset(seed=args.seed)
    x, task, returns, monitor = torch.as_tensor(observation), 0, [], None
    carry = supple.interventions.ReGraMa(every=args.every).attach(agent.actor, optimizer)  # supple 2

    for iteration in range(args.total_timesteps // (args.num_envs * args.num_steps)):
        columns: dict[str, list[Tensor]] = {k: [] for k in ("x", "a", "p", "v", "r", "d")}
        for _ in range(args.num_steps):
            with torch.no_grad():
                action, log_p, _, value = agent.act(x)
            observation, reward, terminated, truncated, info = envs.step(action.numpy())
            row = (x, action, log_p, value, torch.as_tensor(reward).float())
            for key, item in zip(
                columns, (*row, torch.as_tensor(terminated | truncated).float()), strict=True
            ):
                columns[key].append(item)
            x = torch.as_tensor(observation)
            if "final_info" in info:
                episode = info["final_info"]["episode"]
                returns += episode["r"][episode["_r"]].tolist()
        b = {key: torch.stack(column) for key, column in columns.items()}
        with torch.no_grad():
            last = agent.critic(x).flatten()
        b["advantage"] = advantages(b["r"], b["v"], b["d"], last, args)
        b["target"] = b["advantage"] + b["v"]
        b = {key: column.flatten(0, 1) for key, column in b.items()}
        monitor = monitor or supple.Monitor(agent.actor, optimizer, (b["x"], b["a"]), imitation)  # supple 3

        for _ in range(args.epochs):
            for rows in torch.randperm(len(b["a"])).chunk(args.minibatches):
                _, log_p, entropy, value = agent.act(b["x"][rows], b["a"][rows])
                ratio, advantage = (log_p - b["p"][rows]).exp(), b["advantage"][rows]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
                value_loss = 0.5 * (value - b["target"][rows]).square().mean()
                optimizer.zero_grad()
                (policy_loss - args.entropy * entropy.mean() + args.value * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        now = (iteration + 1) * args.num_envs * args.num_steps // args.steps_per_task
        if now != task:
            print(
                f"task {task}: mean return {np.mean(returns or [float('nan')]):.1f} of {len(returns)} episodes"
            )
            task, returns = now, []
            _ = [item.task(str(task)) for item in (monitor, carry)]  # supple 4
    print(monitor.diagnose(budget=args.diagnosis_seconds))  # supple 5
    envs.close()
    return agent


if __name__ == "__main__":
    main(arguments())
