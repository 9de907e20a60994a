"""Every number that separates ill from healthy, in one table, with where it comes from.

All are relative to fresh twins on the same probe. An absolute constant alone never decides: a bottleneck, a
leaky ReLU or a layer norm shows in the twin as well and cancels. ``spread`` is the standard deviation of the
statistic between healthy fresh networks of one factory (relative to its mean for a ratio), used as a floor:
few twins show it badly, one not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from supple.diagnose.fitted import threshold

FITTED = "fitted on the training half of the lab: supple.diagnose.fitted"
LAB = "constructed cases and healthy controls of tests/diagnose/lab.py, 64-64-64-10 and 48-48 ReLU MLPs"


@dataclass(frozen=True)
class Threshold:
    """``form``: "excess" (network - twin) or "ratio" (network / twin); ``above`` is the ill side."""

    value: float
    form: str
    above: bool
    spread: float
    provenance: str


#: share of units whose pre-activation gradient is at most 0.025 of the layer mean
GRAMA = Threshold(threshold("grama"), "excess", True, 0.02, FITTED)
#: the same within one layer: the binomial noise of few units asks for more
GRAMA_LAYER = Threshold(0.25, "excess", True, 0.05, f"single healthy layers at most 0.20; {LAB}")
#: entropy effective rank of a hidden weight matrix
EFFECTIVE_RANK = Threshold(threshold("effective_rank"), "ratio", False, 0.02, FITTED)
#: ||W||_F^2 / sigma_1^2 of the same matrix must have fallen too
STABLE_RANK = Threshold(
    0.75, "ratio", False, 0.05, "falls with any growth of the top direction: never decides alone"
)
#: sigma_1 / sum sigma of the same matrix must have risen too
SIGMA_RATIO = Threshold(1.25, "ratio", True, 0.05, "cannot tell 10 directions from 88: never decides alone")
#: 1 - mean off-diagonal cosine of the empirical tangent kernel: what sets two inputs apart
NTK_SPREAD = Threshold(threshold("1 - ntk_mean_cosine"), "ratio", False, 0.10, FITTED)
#: dead units lower it by themselves: the threshold is multiplied by (1 - excess of dead units) to this power
NTK_DEAD_POWER = 2
#: directions that hold 99 % of the kernel's trace
NTK_RANK = Threshold(0.80, "ratio", False, 0.08, f"must have fallen too; {LAB}")
#: share of the units that fire at all which always fire: with it, silent units are a by-product of a common mode
ALWAYS_ON = Threshold(0.30, "excess", True, 0.05, f"common mode c = 10 0.5 or more, worn D2 below 0.1; {LAB}")
#: the same excess: more of it is a common mode unless more than COMMON_DEAD of the units are dead beside it; training
#: half: common modes of convolutional networks 0.16 or more, others 0.05 or less with one at 0.25 and 0.68 dead
COMMON_MODE = 0.15
COMMON_DEAD = 0.6
#: in a common mode the kernel counts as degenerate below this; training half: common modes up to 0.65, with others
#: that share the excess 0.7 or more
NTK_SPREAD_COMMON = 0.6
#: mild common modes of residual networks have 0.06 to 0.13, other networks with such a kernel 0.05 or less
MILD_COMMON_MODE = 0.08
#: a common mode silences up to this share of the units by itself (c = 10: 0.29); more are dead in their own right
BY_PRODUCT = 0.35
#: a layer of which this share never fires lets no input through: the kernel behind it is that of a constant
SILENT_LAYER = 0.95
#: share of tanh or sigmoid units that sit at their ends
SATURATED = Threshold(0.30, "excess", True, 0.05, "chosen, not fitted: a third of the units more than fresh")
#: share of all their responses: units that sit now at one end, now at the other
SATURATED_RESPONSES = Threshold(
    0.40, "excess", True, 0.05, "fresh tanh networks 0.1 to 0.3, weights times 8 0.85"
)
#: geometric mean over layers of sigma_1
WEIGHT_GROWTH = Threshold(3.0, "ratio", True, 0.05, f"one task 1.0 to 1.6, 150 tasks 3 to 5; {LAB}")
#: share of units with another unit of |cosine| > 0.95 (incoming weights)
CLONED = Threshold(0.20, "excess", True, 0.02, "chosen, not fitted: a fifth of the units more than fresh")
#: a rank above this share of what the units without a copy could span is explained by the copies
COPIES = 0.5
#: an earlier task has lost this share of what was learned on it
FORGOTTEN = Threshold(0.10, "excess", True, 0.0, "the same tenth that defines loss of plasticity")

TABLE: dict[str, Threshold] = {
    "grama": GRAMA,
    "grama in one layer": GRAMA_LAYER,
    "effective_rank": EFFECTIVE_RANK,
    "stable_rank": STABLE_RANK,
    "sigma_ratio": SIGMA_RATIO,
    "1 - ntk_mean_cosine": NTK_SPREAD,
    "always_on": ALWAYS_ON,
    "ntk_rank99": NTK_RANK,
    "saturated": SATURATED,
    "saturated (responses)": SATURATED_RESPONSES,
    "sigma_max": WEIGHT_GROWTH,
    "cloned": CLONED,
    "forgotten": FORGOTTEN,
}

#: a weight matrix with fewer directions than this has no rank worth judging
SMALLEST_SIDE = 8
#: a probe smaller than this cannot show a kernel or a dead unit
SMALLEST_PROBE = 32
