"""How is it put right? One file per method, one shared reset engine, one shared penalty base, one
contract (attach, handle, state, detach), open to methods registered from outside through a base
class and the entry point group `supple.interventions`.
"""

from supple.interventions.base import Handle, Intervention, available, create, register
from supple.interventions.continual_backprop import ContinualBackprop
from supple.interventions.engine import LayerSkipped, ResetEvent, ResetPlan, plan_reset
from supple.interventions.redo import ReDo
from supple.interventions.regrama import ReGraMa

__all__ = [
    "ContinualBackprop",
    "Handle",
    "Intervention",
    "LayerSkipped",
    "ReDo",
    "ReGraMa",
    "ResetEvent",
    "ResetPlan",
    "available",
    "create",
    "plan_reset",
    "register",
]
