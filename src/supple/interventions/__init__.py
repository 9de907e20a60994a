"""How is it put right? One file per method, one shared reset engine, one shared penalty base, one
contract (attach, handle, state, detach), open to methods registered from outside through a base
class and the entry point group `supple.interventions`.
"""

from supple.interventions.base import Handle, Intervention, available, create, register
from supple.interventions.cchain import CChain
from supple.interventions.l2 import L2
from supple.interventions.l2_init import L2Init
from supple.interventions.penalty import Penalty, PenaltyHandle
from supple.interventions.shrink_perturb import ShrinkAndPerturb
from supple.interventions.spectral import SpectralRegularization

__all__ = [
    "L2",
    "CChain",
    "Handle",
    "Intervention",
    "L2Init",
    "Penalty",
    "PenaltyHandle",
    "ShrinkAndPerturb",
    "SpectralRegularization",
    "available",
    "create",
    "register",
]
