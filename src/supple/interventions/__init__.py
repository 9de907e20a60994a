"""How is it put right? One file per method, one shared reset engine, one shared penalty base, one
contract (attach, handle, state, detach), open to methods registered from outside through a base
class and the entry point group `supple.interventions`.
"""

from supple.interventions.base import Intervention
from supple.interventions.ccbp import CCBP
from supple.interventions.cchain import CChain
from supple.interventions.combination import Combination
from supple.interventions.continual_backprop import ContinualBackprop
from supple.interventions.engine import plan_reset
from supple.interventions.feature_rank import FeatureRank
from supple.interventions.fire import FIRE
from supple.interventions.handle import Handle
from supple.interventions.hare_tortoise import HareTortoise
from supple.interventions.l2 import L2
from supple.interventions.l2_init import L2Init
from supple.interventions.layer_reset import LayerReset
from supple.interventions.normalize_project import NormalizeAndProject
from supple.interventions.parseval import Parseval
from supple.interventions.penalty import Penalty, PenaltyHandle
from supple.interventions.plasticity_injection import InjectedHead, PlasticityInjection
from supple.interventions.redo import ReDo
from supple.interventions.registry import available, create, register
from supple.interventions.regrama import ReGraMa
from supple.interventions.reset_plan import LayerSkipped, ResetEvent, ResetPlan
from supple.interventions.self_normalized_reset import SelfNormalizedReset
from supple.interventions.shrink_perturb import ShrinkAndPerturb
from supple.interventions.spectral import SpectralRegularization
from supple.interventions.trac import TRAC
from supple.interventions.upgd import UPGD
from supple.interventions.wasserstein import Wasserstein
from supple.interventions.weight_clipping import WeightClipping

__all__ = [
    "CCBP",
    "FIRE",
    "L2",
    "TRAC",
    "UPGD",
    "CChain",
    "Combination",
    "ContinualBackprop",
    "FeatureRank",
    "Handle",
    "HareTortoise",
    "InjectedHead",
    "Intervention",
    "L2Init",
    "LayerReset",
    "LayerSkipped",
    "NormalizeAndProject",
    "Parseval",
    "Penalty",
    "PenaltyHandle",
    "PlasticityInjection",
    "ReDo",
    "ReGraMa",
    "ResetEvent",
    "ResetPlan",
    "SelfNormalizedReset",
    "ShrinkAndPerturb",
    "SpectralRegularization",
    "Wasserstein",
    "WeightClipping",
    "available",
    "create",
    "plan_reset",
    "register",
]
