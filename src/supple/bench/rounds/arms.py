"""What is compared in the rounds, and how long they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LORA = {"rank": 8, "alpha": 16.0}


@dataclass(frozen=True)
class Arm:
    """``start``: "go on" with the last round's model, "restart" from that of round 0, or "fresh".

    ``adapter``: "svf" goes on with one adapter; "lora" puts a new one on in every round and merges it at
    its end.
    """

    name: str
    start: str = "go on"
    attention: str = "softmax"
    intervention: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapter: Literal["", "svf", "lora"] = ""


ARMS: tuple[Arm, ...] = (
    Arm("full"),
    Arm("fresh", "fresh"),
    Arm("restart", "restart"),
    Arm("l2init", intervention="L2Init", settings={"coef": 1e-3}),
    Arm("spectral", intervention="SpectralRegularization", settings={"coef": 1e-3}),
    Arm("regrama", intervention="ReGraMa", settings={"every": "task", "tau": 0.1}),
    Arm("shrink_perturb", intervention="ShrinkAndPerturb", settings={"every": "task", "shrink": 0.8}),
    Arm("svf", adapter="svf"),
    Arm("lora", adapter="lora"),
    Arm("forgetting", attention="forgetting"),
    Arm("forgetting_fresh", "fresh", attention="forgetting"),
)


@dataclass(frozen=True)
class Length:
    seeds: int
    rounds: int
    steps: int


LENGTHS: Mapping[str, Length] = {
    "tiny": Length(1, 3, 20), "demo": Length(3, 12, 60), "small": Length(3, 16, 120), "day": Length(5, 60, 150),
}  # fmt: skip
