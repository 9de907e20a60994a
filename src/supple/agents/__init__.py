"""The compact reinforcement-learning agents of the fast suites, written to be read. They know the
models and nothing of the instruments: Supple attaches to them as to any other agent.
"""

from supple.agents.ppo import PPO, ActorCritic, Iteration, PPOConfig, losses
from supple.agents.rollout import Rollout, advantages

__all__ = ["PPO", "ActorCritic", "Iteration", "PPOConfig", "Rollout", "advantages", "losses"]
