"""What is a fresh row of this layer, and a fresh slice of this optimizer's state? Initialisers read off
the layer or told by the user, one rule per optimizer class or a refusal by name, and random generators
keyed by (seed, step, layer name) so that every rank draws the same.
"""

from supple.fresh.ageing import ADAM, ADAMAX, NADAM, RADAM, Ageing, Recomputed, Scaled
from supple.fresh.initial import NAMED, Initial, check_initial, default_refusal, draw, fans
from supple.fresh.keys import generator, key
from supple.fresh.optimizers import OptimizerRule, register_rule, rule_for

__all__ = [
    "ADAM",
    "ADAMAX",
    "NADAM",
    "NAMED",
    "RADAM",
    "Ageing",
    "Initial",
    "OptimizerRule",
    "Recomputed",
    "Scaled",
    "check_initial",
    "default_refusal",
    "draw",
    "fans",
    "generator",
    "key",
    "register_rule",
    "rule_for",
]
