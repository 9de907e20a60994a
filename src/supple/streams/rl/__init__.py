"""Task sequences for reinforcement learning: small environments stepped as one numpy batch, and what
makes a sequence of tasks out of one of them. No reinforcement-learning package is needed."""

from supple.streams.rl.acrobot import VectorAcrobot
from supple.streams.rl.cartpole import VectorCartPole
from supple.streams.rl.mountaincar import VectorMountainCar
from supple.streams.rl.offset import ObservationOffset
from supple.streams.rl.vector import Step, VectorEnv

__all__ = [
    "ObservationOffset",
    "Step",
    "VectorAcrobot",
    "VectorCartPole",
    "VectorEnv",
    "VectorMountainCar",
]
