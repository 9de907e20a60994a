"""The compact reinforcement-learning agents of the fast suites, written to be read. They know the
models and nothing of the instruments: Supple attaches to them as to any other agent.
"""

from supple.agents.dqn import DQN, QIteration
from supple.agents.ppo import PPO, ActorCritic, Env, Iteration, PPOConfig, losses
from supple.agents.q_network import DQNConfig, q_network
from supple.agents.replay import Replay, Transitions
from supple.agents.rollout import Rollout, advantages

__all__ = [
    "DQN",
    "PPO",
    "ActorCritic",
    "DQNConfig",
    "Env",
    "Iteration",
    "PPOConfig",
    "QIteration",
    "Replay",
    "Rollout",
    "Transitions",
    "advantages",
    "losses",
    "q_network",
]
