"""Does an agent stop learning when its observations move? PPO on Gym control with offsets, with remedies.

After Tang et al. 2025 (arXiv 2506.00592). The oracle is a fresh agent for every task. What a run is judged on is its
mean return over the tasks after the first, in which all methods are new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from supple.bench.studies.agents import AgentStudy


@dataclass(frozen=True)
class RlGym(AgentStudy):
    """Plain, oracle and remedies of PPO on CartPole and Acrobot."""

    name: ClassVar[str] = "rl-gym"
    description: ClassVar[str] = (
        "PPO on CartPole and Acrobot with moving observations: plain, oracle, remedies"
    )
    suite: ClassVar[tuple[str, ...]] = ("cartpole-offsets", "acrobot-offsets")
    methods: ClassVar[tuple[str, ...]] = (
        "plain", "fresh", "redo", "regrama", "cbp", "l2init", "layernorm", "cchain", "crelu", "spectral",
        "shrink_perturb", "trac",
    )  # fmt: skip
    health: ClassVar[Mapping[str, tuple[str, str]]] = {
        "policy entropy": ("policy_entropy", ""),
        "max |logit|": ("policy_max_logit", ""),
        "dormant": ("dormant", "tau=0.025"),
        "GraMa": ("grama", "preactivation,tau=0.025"),
        "policy trainability": ("policy_trainability", ""),
        "with unlearning": ("policy_trainability_with_unlearning", ""),
        "value trainability": ("value_trainability", ""),
    }
    columns: ClassVar[Mapping[str, str]] = {
        "entropy": "policy entropy", "|logit|": "max |logit|", "dormant": "dormant",
        "trainable": "policy trainability",
    }  # fmt: skip
