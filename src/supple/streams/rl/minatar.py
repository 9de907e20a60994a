"""MinAtar games as a batch environment, and chains of them (extra ``rl``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from supple.errors import InputError, need
from supple.streams.rl.vector import Array, Step, VectorEnv

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
#: the published chain
CHAIN = ("space_invaders", "asterix", "seaquest")
#: games whose episodes may never end, and the steps without any return after which the published run cuts them
IDLE = {"seaquest": 1000}
CHANNELS = 10
#: attributes of a game that never change (the random state is kept by its own means)
CONSTANT = {"channels", "action_map", "ramping", "random"}


class VectorMinAtar(VectorEnv):
    """Copies of one MinAtar game (Young & Tian 2019, arXiv 1903.03176), each with a random state of its own.

    Observations are (n, 10, 10, 10): 10 channels of 10 × 10 cells, 0 or 1. Games with fewer channels are padded
    with zeros and every game has all six actions (nothing, left, up, right, down, fire), so that one network plays
    all of them: the form of the MinAtar chain of Tang et al. 2025 (arXiv 2506.00592). The games run one after the
    other in Python; a batch saves the network's time, not theirs.

    Args:
        game: one of `GAMES`.
        copies: number of games.
        limit: steps after which an episode is truncated; None never, as published.
        seed: with the position of a copy the source of all its chance.
        sticky: chance that the last action is repeated instead of the one given. It crosses restarts, as in MinAtar.
        ramping: whether the games grow harder with time.
        idle: steps after which an episode with a return below 0.1 is truncated; None never. The published run cuts
            seaquest at 1000, where a submarine that stays at the surface never meets anyone.

    Raises:
        MissingExtraError: minatar is not installed.
        InputError: an unknown game, a chance outside [0, 1].

    >>> env = VectorMinAtar("asterix", copies=2, seed=0)
    >>> env.reset().shape
    (2, 10, 10, 10)
    """

    observation_size = CHANNELS * 100
    actions = 6
    #: binary, so a replay buffer keeps bits' worth of it
    observation_dtype = np.bool_

    def __init__(
        self,
        game: str,
        copies: int = 1,
        limit: int | None = None,
        seed: int = 0,
        *,
        sticky: float = 0.1,
        ramping: bool = True,
        idle: int | None = None,
    ) -> None:
        if game not in GAMES:
            raise InputError("unknown MinAtar game", found=game, do=f"choose one of {', '.join(GAMES)}")
        if not 0.0 <= sticky <= 1.0 or (idle is not None and idle < 1):
            raise InputError("sticky lies in [0, 1], idle is at least 1", found=(sticky, idle))
        self.game, self.idle = game, idle
        make = need("minatar", "rl").Environment
        self.games = [
            make(game, sticky_action_prob=sticky, difficulty_ramping=ramping) for _ in range(copies)
        ]
        for i, one in enumerate(self.games):
            one.seed(int(np.random.SeedSequence([seed, i]).generate_state(1)[0]))
        super().__init__(copies, sys.maxsize if limit is None else limit, seed)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (CHANNELS, 10, 10)

    def _start(self, n: int) -> Array:
        for game in self.games:
            game.reset()
        return self._look()

    def _restart(self, done: npt.NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(done):
            self.games[i].reset()
        self.state = self._look()

    def _advance(self, actions: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.bool_]]:
        results = [game.act(int(a)) for game, a in zip(self.games, actions, strict=True)]
        self.state = self._look()
        return np.array([float(r) for r, _ in results]), np.array([bool(end) for _, end in results])

    def _overtime(self) -> npt.NDArray[np.bool_]:
        cut = super()._overtime()
        return cut if self.idle is None else cut | ((self.clock >= self.idle) & (self.total < 0.1))

    def _look(self) -> Array:
        seen = np.zeros((len(self.games), *self.observation_shape))
        for i, game in enumerate(self.games):
            image = game.state().transpose(2, 0, 1)[:CHANNELS]
            seen[i, : len(image)] = image
        return seen

    def observe(self) -> Array:
        return self.state.copy()

    def state_dict(self) -> dict[str, Any]:
        """As of every `VectorEnv`, with all that each game holds, as plain types and arrays."""
        return {**super().state_dict(), "game": self.game, "games": [_of(game) for game in self.games]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["game"] != self.game or len(state["games"]) != self.copies:
            raise InputError(
                "this state is of other games",
                found=f"{len(state['games'])} × {state['game']}",
                do=f"use one of {self.copies} × {self.game}",
            )
        super().load_state_dict(state)
        for game, held in zip(self.games, state["games"], strict=True):
            _into(game, held)


def _of(game: Any) -> dict[str, Any]:
    """All that the future of one game depends on, copied."""
    random = game.random.get_state(legacy=False)
    held = {name: _plain(value, name) for name, value in vars(game.env).items() if name not in CONSTANT}
    return {
        "held": held,
        "last_action": int(game.last_action),
        "key": random["state"]["key"].astype(np.int64),
        "position": int(random["state"]["pos"]),
    }


def _into(game: Any, state: dict[str, Any]) -> None:
    for name, value in state["held"].items():
        setattr(game.env, name, _plain(value, name))
    game.last_action = int(state["last_action"])
    key = np.asarray(state["key"]).astype(np.uint32)
    game.random.set_state(("MT19937", key, int(state["position"]), 0, 0.0))  # the games draw no Gaussians


def _plain(value: Any, name: str) -> Any:
    """A copy in plain types: arrays, numbers, lists of them, None."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_plain(v, name) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError("a game holds what cannot be kept", found=type(value).__name__, where=name)


class GameChain:
    """One game after another, each with six actions and ten channels; the default is the published chain.

    Task k is ``games[k % len(games)]``, a new environment whose chance depends on (seed, k) alone. The agent must
    start afresh with it: ``chain.task(k)`` and then `supple.agents.DQN.task` or ``agent.observation = chain.reset()``.

    Source: Tang et al. 2025 (arXiv 2506.00592): space invaders, asterix, seaquest, 2 million steps each.

    Args:
        games: names, see `GAMES`.
        copies, limit, sticky, ramping: see `VectorMinAtar`; seaquest has the published ``idle`` of 1000.
        seed: of the chain.

    >>> chain = GameChain(copies=2)
    >>> chain.task(4); chain.game
    'asterix'
    """

    actions = VectorMinAtar.actions
    observation_size = VectorMinAtar.observation_size
    observation_dtype = VectorMinAtar.observation_dtype

    def __init__(
        self,
        games: Sequence[str] = CHAIN,
        copies: int = 1,
        limit: int | None = None,
        seed: int = 0,
        *,
        sticky: float = 0.1,
        ramping: bool = True,
    ) -> None:
        self.games = tuple(games)
        unknown = [game for game in self.games if game not in GAMES]
        if unknown or not self.games:
            raise InputError("a chain is of MinAtar games", found=unknown, do=f"choose of {', '.join(GAMES)}")
        self.copies, self.limit, self.seed, self.sticky, self.ramping = copies, limit, seed, sticky, ramping
        self.index = 0
        self.env = self._make(0)

    def _make(self, index: int) -> VectorMinAtar:
        game = self.games[index % len(self.games)]
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        return VectorMinAtar(
            game, self.copies, self.limit, seed, sticky=self.sticky, ramping=self.ramping, idle=IDLE.get(game)
        )

    @property
    def game(self) -> str:
        """The name of the present game."""
        return self.env.game

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.env.observation_shape

    def task(self, index: int) -> None:
        """Switch to the given task."""
        if index < 0:
            raise InputError("a task index is 0 or more", found=index)
        self.index, self.env = index, self._make(index)

    def reset(self) -> Array:
        return self.env.reset()

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        return self.env.step(actions)

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index, "env": self.env.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        env = self._make(int(state["index"]))
        env.load_state_dict(state["env"])
        self.index, self.env = int(state["index"]), env
