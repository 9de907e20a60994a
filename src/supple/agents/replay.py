"""The replay buffer: the last transitions of an agent's life, in arrays that are made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from supple.errors import InputError

#: the columns of a transition beside the two observations
NUMBERS: dict[str, type] = {"actions": np.int64, "rewards": np.float64, "terminated": np.bool_}


@dataclass(frozen=True)
class Transitions:
    """A batch: (N, *shape) observations and what followed them, (N,) everything else."""

    observations: Tensor
    actions: Tensor  # int64
    rewards: Tensor
    following: Tensor  # the observation after the action, before any restart
    terminated: Tensor  # 1 where the task ended there, not where a time limit cut the episode


class Replay:
    """A ring of the last ``capacity`` transitions; the oldest are overwritten.

    Args:
        capacity: number of transitions.
        shape: of one observation.
        dtype: in which observations are kept. ``bool`` holds binary images in an eighth of float64's memory
            (and a state packs them into bits); memory is 2 · capacity · size of an observation.

    >>> replay = Replay(3, (2,))
    >>> for i in range(4):
    ...     replay.add(np.full((1, 2), i), np.array([i]), np.ones(1), np.zeros((1, 2)), np.array([False]))
    >>> len(replay), sorted(replay.columns["actions"].tolist())
    (3, [1, 2, 3])
    """

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> None:
        if capacity < 1:
            raise InputError(
                "a replay buffer holds at least one transition", found=capacity, where="capacity"
            )
        self.capacity, self.shape = capacity, tuple(shape)
        images = (capacity, *self.shape)
        self.columns: dict[str, npt.NDArray[Any]] = {
            "observations": np.zeros(images, dtype=dtype),
            "following": np.zeros(images, dtype=dtype),
            **{name: np.zeros(capacity, dtype=kind) for name, kind in NUMBERS.items()},
        }
        self.size = 0
        self.position = 0  # where the next transition goes

    def __len__(self) -> int:
        return self.size

    def add(
        self,
        observations: npt.NDArray[Any],
        actions: npt.NDArray[np.int64],
        rewards: npt.NDArray[np.float64],
        following: npt.NDArray[Any],
        terminated: npt.NDArray[np.bool_],
    ) -> None:
        """Append one transition of each of n copies; n may not exceed the capacity."""
        n = len(actions)
        if n > self.capacity or observations.shape != (n, *self.shape):
            raise InputError(
                f"a replay buffer of {self.capacity} transitions of shape {self.shape} cannot take these",
                found=f"{n} of shape {observations.shape[1:]}",
            )
        at = (self.position + np.arange(n)) % self.capacity
        given = (observations, following, actions, rewards, terminated)
        for column, values in zip(self.columns.values(), given, strict=True):
            column[at] = values
        self.position = (self.position + n) % self.capacity
        self.size = min(self.size + n, self.capacity)

    def sample(
        self, count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Transitions:
        """``count`` transitions, drawn evenly and with replacement; the tensors are copies, in ``dtype``."""
        if self.size < 1:
            raise InputError("an empty replay buffer cannot be sampled", do="add transitions first")
        return self._rows(torch.randint(self.size, (count,), generator=generator).numpy(), dtype)

    def newest(self, count: int, dtype: torch.dtype = torch.float32) -> Transitions:
        """The last ``count`` transitions, newest first; fewer if the buffer holds fewer."""
        rows = (self.position - 1 - np.arange(min(count, self.size))) % self.capacity
        return self._rows(rows, dtype)

    def _rows(self, rows: npt.NDArray[np.int64], dtype: torch.dtype) -> Transitions:
        found = {name: torch.from_numpy(column[rows]) for name, column in self.columns.items()}
        return Transitions(**{n: t if n == "actions" else t.to(dtype) for n, t in found.items()})

    def state_dict(self) -> dict[str, Any]:
        """The filled rows as tensors (binary observations as bits), and where the ring stands."""
        filled = {name: column[: self.size] for name, column in self.columns.items()}
        width = int(np.prod(self.shape))
        packed = {
            n: np.packbits(c.reshape(self.size, width), axis=1) for n, c in filled.items() if self._bits(n)
        }
        return {
            "capacity": self.capacity,
            "shape": list(self.shape),
            "dtype": self.columns["observations"].dtype.name,
            "size": self.size,
            "position": self.position,
            "columns": {n: torch.from_numpy(packed.get(n, c).copy()) for n, c in filled.items()},
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of another kind of buffer; nothing is changed."""
        own = [self.capacity, list(self.shape), self.columns["observations"].dtype.name]
        given = [state["capacity"], list(state["shape"]), state["dtype"]]
        if given != own:
            raise InputError(
                "this state is of another replay buffer (capacity, shape, dtype)",
                found=given,
                do=f"use {own}",
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.check(state)
        size = int(state["size"])
        for name, column in self.columns.items():
            values = np.asarray(state["columns"][name])
            if self._bits(name):
                count = int(np.prod(self.shape))
                values = np.unpackbits(values, axis=1, count=count).reshape(size, *self.shape)
            column[:size] = values
        self.size, self.position = size, int(state["position"])

    def _bits(self, name: str) -> bool:
        return name in ("observations", "following") and self.columns[name].dtype == np.bool_
