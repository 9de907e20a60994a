"""The words of a verdict: what a mechanism is called and how sure a statement about it is."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """How a measurement or a finding ended. A network is never healthy by default.

    >>> Status.NOT_MEASURED == "not_measured"
    True
    """

    PRESENT = "present"
    ABSENT = "absent"
    INCONCLUSIVE = "inconclusive"  # the interval straddles the threshold
    NOT_MEASURED = "not_measured"  # with a reason
    INVALID = "invalid"  # NaN, Inf, empty


class Mechanism(StrEnum):
    """What a finding is about: the loss itself, the three mechanisms, and their companions."""

    PLASTICITY_LOSS = "plasticity_loss"
    FORGETTING = "forgetting"
    DEAD_UNITS = "dead_units"
    RANK_COLLAPSE = "rank_collapse"
    NTK_DEGENERATION = "ntk_degeneration"
    SATURATION = "saturation"
    WEIGHT_GROWTH = "weight_growth"
    CLONED_UNITS = "cloned_units"
