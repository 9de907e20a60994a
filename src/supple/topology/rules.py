"""All rules, by operator: importing the modules registers them."""

from __future__ import annotations

from supple.topology import rules_attention, rules_move, rules_norm, rules_pointwise, rules_weights
from supple.topology.tracer import RULES

MODULES = (rules_attention, rules_move, rules_norm, rules_pointwise, rules_weights)

__all__ = ["MODULES", "RULES"]
