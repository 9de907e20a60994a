"""Which sequence of tasks? Data sets, non-stationarities and task sequences. A stream yields tasks;
it knows nothing of networks. A task is computed from its key alone, so any task of a stream can be
asked for at any time, in any order, and resuming a run replays nothing.
"""

from supple.streams.bits import BitFlip
from supple.streams.changes import (
    AsFloat,
    Change,
    ChangeDomain,
    DrawClasses,
    DrawLabels,
    Drift,
    Gradual,
    GrowClasses,
    Held,
    LabelNoise,
    ManyThenOne,
    PermuteLabels,
    PermutePixels,
)
from supple.streams.digits import digits, digits_raw
from supple.streams.keys import generator
from supple.streams.sequences import PermutedPixels, RandomLabels
from supple.streams.stream import Stream, Task

__all__ = [
    "AsFloat",
    "BitFlip",
    "Change",
    "ChangeDomain",
    "DrawClasses",
    "DrawLabels",
    "Drift",
    "Gradual",
    "GrowClasses",
    "Held",
    "LabelNoise",
    "ManyThenOne",
    "PermuteLabels",
    "PermutePixels",
    "PermutedPixels",
    "RandomLabels",
    "Stream",
    "Task",
    "digits",
    "digits_raw",
    "generator",
]
