"""Does a value-based agent stop learning from game to game? Double DQN on a chain of MinAtar games, with remedies.

After Tang et al. 2025 (arXiv 2506.00592). The oracle has a fresh network in every task (see
`supple.bench.protocols.MinatarChain` for what it takes over). Games pay differently, so the return of a task counts
as a share of the oracle's mean return in that task, and a run is judged on the mean of these shares over the tasks
after the first, in which all methods are new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from supple.bench.studies.agents import AgentStudy


@dataclass(frozen=True)
class RlMinatar(AgentStudy):
    """Plain, oracle and remedies of double DQN on MinAtar."""

    name: ClassVar[str] = "rl-minatar"
    description: ClassVar[str] = "double DQN on a chain of MinAtar games: plain, oracle, remedies (extra rl)"
    suite: ClassVar[tuple[str, ...]] = ("minatar-chain",)
    methods: ClassVar[tuple[str, ...]] = (
        "plain", "fresh", "redo", "regrama", "cbp", "l2init", "layernorm", "cchain", "crelu", "spectral",
        "shrink_perturb", "trac",
    )  # fmt: skip
    in_oracles: ClassVar[bool] = True
    health: ClassVar[Mapping[str, tuple[str, str]]] = {
        "mean Q": ("mean_q", ""),
        "max |Q|": ("max_q", ""),
        "dormant": ("dormant", "tau=0.025"),
        "GraMa": ("grama", "preactivation,tau=0.025"),
        "Q trainability": ("q_trainability", ""),
    }
    columns: ClassVar[Mapping[str, str]] = {
        "mean Q": "mean Q", "max |Q|": "max |Q|", "dormant": "dormant", "trainable": "Q trainability",
    }  # fmt: skip
