"""What the training half of the lab says: thresholds, and how often a verdict of this kind is true.

``fitted.json`` is written by ``supple bench fit`` and says from which networks.
"""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import Any

from supple.status import Mechanism, Status


@functools.cache
def load() -> dict[str, Any]:
    """The stored fit: provenance, thresholds, logistic curves."""
    return json.loads(resources.files("supple.diagnose").joinpath("fitted.json").read_text(encoding="utf-8"))


def threshold(name: str) -> float:
    """The fitted threshold of this name.

    >>> 0 < threshold("effective_rank") < 1
    True
    """
    return float(load()["thresholds"][name]["value"])


def probability(mechanism: Mechanism, status: Status, severity: float | None) -> float | None:
    """1 / (1 + exp(-(a + b severity))), a and b of this mechanism and status; None where nothing was fitted.

    It is the chance that the surgical repair of the mechanism gives half of the lost learning back, among
    networks like those of the lab: a third of them healthy, the others ill by construction or by wear.

    >>> probability(Mechanism.DEAD_UNITS, Status.NOT_MEASURED, None) is None
    True
    """
    curve = load()["probability"].get(str(mechanism), {}).get(str(status))
    if curve is None or severity is None:
        return None
    return 1.0 / (1.0 + math.exp(-(curve[0] + curve[1] * severity)))
