"""Task sequences for reinforcement learning: small environments stepped as one numpy batch and what makes a
sequence of tasks out of one of them (no reinforcement-learning package is needed, but for MinAtar and LunarLander),
the same for gymnasium environments (`supple.streams.rl.gym`), and the published suites by name (`suite`)."""

from supple.streams.rl.acrobot import VectorAcrobot
from supple.streams.rl.cartpole import VectorCartPole
from supple.streams.rl.catalogue import Suite, suite, suites
from supple.streams.rl.lunarlander import VectorLunarLander
from supple.streams.rl.minatar import GameChain, VectorMinAtar
from supple.streams.rl.mountaincar import VectorMountainCar
from supple.streams.rl.offset import ObservationOffset
from supple.streams.rl.vector import Step, VectorEnv

__all__ = [
    "GameChain",
    "ObservationOffset",
    "Step",
    "Suite",
    "VectorAcrobot",
    "VectorCartPole",
    "VectorEnv",
    "VectorLunarLander",
    "VectorMinAtar",
    "VectorMountainCar",
    "suite",
    "suites",
]
