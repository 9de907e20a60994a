"""Task sequences for gymnasium environments: wrappers that change one environment from task to task, and
one that runs a sequence of tasks. Needs the extra ``rl``.

>>> import gymnasium
>>> from supple.streams.rl.gym import ObservationOffset, TaskSequence
>>> env = TaskSequence(ObservationOffset(gymnasium.make("CartPole-v1"), scale=2.0, seed=0), every=1000)
>>> env.reset(seed=0)[1]["task"]
0
"""

from supple.streams.rl.gym.actions import ActionPermutation
from supple.streams.rl.gym.base import TaskChange
from supple.streams.rl.gym.dynamics import DynamicsShift
from supple.streams.rl.gym.observations import ObservationOffset, ObservationPermutation
from supple.streams.rl.gym.sequence import TaskSequence

__all__ = [
    "ActionPermutation",
    "DynamicsShift",
    "ObservationOffset",
    "ObservationPermutation",
    "TaskChange",
    "TaskSequence",
]
