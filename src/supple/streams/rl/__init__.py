"""Task sequences for reinforcement learning: small environments stepped as one numpy batch, and what
makes a sequence of tasks out of one of them. No reinforcement-learning package is needed, but for the
MinAtar games (extra ``rl``).
"""

from supple.streams.rl.acrobot import VectorAcrobot
from supple.streams.rl.cartpole import VectorCartPole
from supple.streams.rl.minatar import GameChain, VectorMinAtar
from supple.streams.rl.offset import ObservationOffset
from supple.streams.rl.vector import Step, VectorEnv

__all__ = [
    "GameChain",
    "ObservationOffset",
    "Step",
    "VectorAcrobot",
    "VectorCartPole",
    "VectorEnv",
    "VectorMinAtar",
]
