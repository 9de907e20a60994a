"""Does an agent stop learning when its observations move? PPO on Gym control with offsets, with remedies.

After Tang et al. 2025 (arXiv 2506.00592). The oracle is a fresh agent for every task. What a run is judged on is its
mean return over the tasks after the first, in which all methods are new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from supple.bench.studies.agents import AgentStudy
from supple.diagnose.policy import ENTROPY

#: suite -> (return at the end of a task up to which an agent counts as collapsed, number of actions): a pole that is
#: always pushed one way falls within 10 steps, the goal of Acrobot was never reached
COLLAPSED: Mapping[str, tuple[float, int]] = {"cartpole-offsets": (12.0, 2), "acrobot-offsets": (-400.0, 3)}


class Told(NamedTuple):
    """How often the threshold of policy saturation agrees with the return, over ends of tasks."""

    collapsed: int
    saturated: int  # of the collapsed
    others: int
    open: int  # of the others, not saturated


def saturation_told(suite: str, ends: Sequence[Mapping[str, Any]], threshold: float = ENTROPY) -> Told:
    """Collapsed and saturated ends of tasks; ``ends`` as `Agent.ends` has them, of any number of agents.

    Saturated: entropy / log(number of actions) below the threshold, as in `supple.diagnose.policy`. Sensitivity is
    saturated / collapsed, specificity open / others.

    >>> saturation_told("cartpole-offsets", [{"return": [[9.4, 200.0]], "policy entropy": [[0.0, 0.5]]}])
    Told(collapsed=1, saturated=1, others=1, open=1)
    """
    bound, actions = COLLAPSED[suite]
    pairs = [
        (value, entropy / math.log(actions))
        for each in ends
        for values, entropies in zip(each["return"], each["policy entropy"], strict=True)
        for value, entropy in zip(values, entropies, strict=True)
    ]
    low = [share < threshold for value, share in pairs if value <= bound]
    high = [share < threshold for value, share in pairs if value > bound]
    return Told(len(low), sum(low), len(high), len(high) - sum(high))


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
    # tried where none of the others closes half of the gap
    more: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "cartpole-offsets": ("shrink_perturb_boundary", "fire_boundary")
    }
    ends: ClassVar[Mapping[str, str]] = {"return": "end_return", "policy entropy": "policy_entropy"}
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
