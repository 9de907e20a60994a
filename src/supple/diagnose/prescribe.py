"""Step 3: the article's table with cost, evidence and trigger, and the warning against the fix that is
famous but does not fit. A measured answer (`trial`) outranks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from supple.diagnose.architecture import Architecture
from supple.diagnose.types import Finding, Prescription, PrescriptionLine
from supple.status import Mechanism, Status

THREE = (Mechanism.DEAD_UNITS, Mechanism.RANK_COLLAPSE, Mechanism.NTK_DEGENERATION)

_NOT_CBP = "continual backprop, the famous fix, does not address this: it resets units by low utility"
_NEW_NETWORK = "needs a new network (supple.convert_ or a rebuild): trained weights are not carried over"

#: what each line rests on; "measured here" means this project's small experiments (MLPs on digits)
GRADES = {
    "ReGraMa": "published (Liu et al. 2025); measured here on worn MLPs: among the best of 12 methods",
    "CReLU": "published (Abbas et al. 2023); measured here: best with random labels, behind resets with "
    "permuted inputs",
    "SpectralRegularization": "published (Lewandowski et al. 2025): it prevents; measured here: a rank that "
    "is lost already it hardly restores",
    "CChain": "published (Tang et al. 2025) in RL; measured here on supervised tasks: helps little, repairs "
    "nothing",
    "DeepFourier": "published (Lewandowski et al. 2025), best with regularisation; measured here: learns "
    "fastest with random labels, but its online accuracy falls there",
    "SVF": "published (Sun et al. 2025) for adapting frozen language models; not measured here",
    "ForgettingAttention": "published (Lin et al. 2025) for long contexts; that it keeps plasticity is "
    "a claim",
    "L2Init": "published (Kumar et al. 2023); measured here: keeps most of the loss away",
    "ShrinkAndPerturb": "published (Ash & Adams 2020); measured here: slows the loss",
}


def prescribe(findings: Sequence[Finding], architecture: Architecture) -> Prescription:
    """Lines for what is present, most severe first; the last rows of the table where they can apply.

    All three mechanisms at once put deep Fourier features first, as the article has it.
    """
    found = {f.mechanism: f for f in findings}
    present = [f for f in findings if f.status is Status.PRESENT]
    loss = found.get(Mechanism.PLASTICITY_LOSS)
    ill = sorted((f for f in present if f.mechanism in _MAKERS), key=_order)
    lines: list[PrescriptionLine] = []
    if all(m in {f.mechanism for f in ill} for m in THREE):
        lines.append(all_three(architecture))
    for finding in ill:
        lines += _MAKERS[finding.mechanism](finding, architecture)
    if not ill and loss is not None and loss.status is Status.PRESENT:
        lines += _unexplained(architecture)
    if lines:
        lines += ceiling(architecture)
    return Prescription(_primary_first(lines), _note(loss, ill, found.get(Mechanism.FORGETTING), findings))


def _order(finding: Finding) -> tuple[bool, float]:
    return finding.mechanism not in THREE, -(finding.severity or 0.0)


def _primary_first(lines: Iterable[PrescriptionLine]) -> tuple[PrescriptionLine, ...]:
    unique: dict[str, PrescriptionLine] = {}
    for line in sorted(lines, key=lambda x: not x.primary):
        unique.setdefault(line.intervention, line)
    return tuple(unique.values())


def _note(
    loss: Finding | None, ill: Sequence[Finding], forgetting: Finding | None, findings: Sequence[Finding]
) -> str:
    forgot = forgetting is not None and forgetting.status is Status.PRESENT
    words = ""
    if loss is not None and loss.status is Status.ABSENT:
        words = "It learns as well as its twin: nothing needs repair"
        words += "; the lines below would only prevent." if ill else "."
    elif ill:
        words = (
            "From the table; supple.trial measures these lines on copies, and its answer outranks the table."
        )
    elif loss is not None and loss.status is Status.PRESENT:
        words = "Learning is lost, but no mechanism stands out: measure candidates with supple.trial."
    elif not any(f.status is Status.PRESENT for f in findings):
        words = _nothing_found(findings)
    if forgot:
        words += " Forgetting is another matter: replay, or regularise towards the old solution; resets "
        words += "make it worse."
    return words.strip()


def _nothing_found(findings: Sequence[Finding]) -> str:
    """What it means that nothing is present: a clean bill only where something was found absent."""
    broken = dict.fromkeys(f.reason for f in findings if f.status is Status.INVALID)
    if broken:
        return (
            f"No prescription, for the measurement is invalid: {'; '.join(broken)}. Mend that and look again."
        )
    if any(f.status is Status.ABSENT for f in findings):
        return "Nothing that was measured calls for a repair."
    return "No prescription, for nothing could be decided; the findings say why."


def dead_lines(finding: Finding, arch: Architecture) -> list[PrescriptionLine]:
    """CReLU or ReGraMa on a plain network; ReGraMa alone where there are bypass paths."""
    branched = not arch.plain
    reset = PrescriptionLine(
        Mechanism.DEAD_UNITS,
        "ReGraMa",
        {"tau": 0.1, "every": "task"},
        kind="periodic",
        level=2,
        cost="low to medium" if branched else "low",
        evidence=GRADES["ReGraMa"],
        trigger="task boundaries are known: call handle.task(); otherwise every=1000 steps and tau=0.01",
        warning="resets by activation (ReDo) miss units behind skip connections" if branched else "",
        text="Re-initialise the units that get no gradient, once now and at every new task.",
        layers=finding.layers,
    )
    if branched:
        return [reset]
    crelu = PrescriptionLine(
        Mechanism.DEAD_UNITS,
        "CReLU",
        {"width": "half"},
        kind="architectural",
        level=1,
        cost="low",
        evidence=GRADES["CReLU"],
        trigger="you can start again from a new network",
        warning=_NEW_NETWORK,
        text="Concatenated ReLU: one half of each unit always passes a gradient.",
        layers=finding.layers,
        primary=False,
    )
    return [reset, crelu] if arch.dead_zone and not arch.recurrent else [reset]


def rank_lines(finding: Finding, arch: Architecture) -> list[PrescriptionLine]:
    """Spectral regularisation."""
    return [
        PrescriptionLine(
            Mechanism.RANK_COLLAPSE,
            "SpectralRegularization",
            {"coef": 1e-3},
            kind="standing",
            level=2,
            cost="low to medium",
            evidence=GRADES["SpectralRegularization"],
            trigger="effective rank falls, or sigma_1 / sum sigma grows from task to task",
            warning=_NOT_CBP + " and leaves the spectrum as it is",
            text="Hold the largest singular value of each weight near 1. Strong weight decay lowers the rank "
            "too: check that first.",
            layers=finding.layers,
        )
    ]


def kernel_lines(finding: Finding, arch: Architecture) -> list[PrescriptionLine]:
    """C-CHAIN."""
    return [
        PrescriptionLine(
            Mechanism.NTK_DEGENERATION,
            "CChain",
            {},
            kind="standing",
            level=1,
            cost="medium",
            evidence=GRADES["CChain"],
            trigger="the kernel's cosine rises or its rank falls; first try larger batches",
            warning=_NOT_CBP + " and has no hold on the kernel",
            text="Penalise the change of outputs on inputs outside the batch.",
            layers=finding.layers,
        )
    ]


def growth_lines(finding: Finding, arch: Architecture) -> list[PrescriptionLine]:
    """Outside the article's table: weights that grew, or bounded units at their ends."""
    return [
        PrescriptionLine(
            finding.mechanism,
            "L2Init",
            {"coef": 1e-2},
            kind="standing",
            level=1,
            cost="low",
            evidence=GRADES["L2Init"],
            trigger="weights keep growing from task to task",
            warning="attached late, it pulls towards the weights of that moment, not the first ones",
            text="Regularise towards the initial weights. Not a row of the article's table.",
            layers=finding.layers,
        )
    ]


def clone_lines(finding: Finding, arch: Architecture) -> list[PrescriptionLine]:
    """Outside the article's table: copies of units."""
    return [
        PrescriptionLine(
            Mechanism.CLONED_UNITS,
            "ShrinkAndPerturb",
            {"shrink": 0.8, "perturb": 0.2, "every": "task"},
            kind="periodic",
            level=1,
            cost="low",
            evidence=GRADES["ShrinkAndPerturb"],
            trigger="units of one layer have become copies of each other",
            warning="gradient resets do not see copies: their gradients are healthy",
            text="Shrink all weights and add fresh noise: copies part. Not a row of the article's table.",
            layers=finding.layers,
        )
    ]


def all_three(arch: Architecture) -> PrescriptionLine:
    """All three mechanisms at once: one new activation instead of three interventions."""
    return PrescriptionLine(
        None,
        "DeepFourier",
        {"width": "half"},
        kind="architectural",
        level=2,
        cost="medium",
        evidence=GRADES["DeepFourier"],
        trigger="dead units, rank collapse and NTK degeneration are all present",
        warning=_NEW_NETWORK
        if arch.plain and not arch.recurrent
        else _NEW_NETWORK + "; convert_ refuses bypass paths, attention and recurrent layers",
        text="Sine and cosine of the same pre-activation instead of three separate interventions.",
    )


def ceiling(arch: Architecture) -> list[PrescriptionLine]:
    """The last two rows of the table, under their own triggers, where the architecture has a place."""
    lines = []
    if arch.language:
        lines.append(
            PrescriptionLine(
                None,
                "SVF",
                {"targets": "linear"},
                kind="architectural",
                level=3,
                cost="high (inference)",
                evidence=GRADES["SVF"],
                trigger="a language model that is fine-tuned in rounds",
                warning="rescales directions the model has; it adds no new ones",
                text="Freeze the weights and learn their singular values (supple.nn.svf_).",
                primary=False,
            )
        )
    if arch.attention:
        lines.append(
            PrescriptionLine(
                None,
                "ForgettingAttention",
                {},
                kind="architectural",
                level=3,
                cost="high (training)",
                evidence=GRADES["ForgettingAttention"],
                trigger="the loss keeps coming back after repair",
                warning=_NEW_NETWORK,
                text="Attention with a learned forget gate.",
                primary=False,
            )
        )
    return lines


def _unexplained(arch: Architecture) -> list[PrescriptionLine]:
    """Learning is lost and no mechanism stands out: what helped most broadly, to be measured first."""
    return [
        PrescriptionLine(
            Mechanism.PLASTICITY_LOSS,
            "L2Init",
            {"coef": 1e-2},
            kind="standing",
            level=1,
            cost="low",
            evidence=GRADES["L2Init"],
            trigger="a trial on copies confirms it",
            warning="no mechanism was identified: this is a guess until measured",
            text="Regularise towards the initial weights.",
            primary=False,
        )
    ]


_MAKERS = {
    Mechanism.DEAD_UNITS: dead_lines,
    Mechanism.RANK_COLLAPSE: rank_lines,
    Mechanism.NTK_DEGENERATION: kernel_lines,
    Mechanism.WEIGHT_GROWTH: growth_lines,
    Mechanism.SATURATION: growth_lines,
    Mechanism.CLONED_UNITS: clone_lines,
}


def table() -> tuple[PrescriptionLine, ...]:
    """All rows of the article's table, as if each applied (for documents and the command line).

    >>> [line.intervention for line in table()][:3]
    ['ReGraMa', 'CReLU', 'ReGraMa']
    """
    relu = Architecture(activations=("relu",))
    skip = Architecture(activations=("relu",), residual=True)
    language = Architecture(attention=True, language=True)
    blank = {m: Finding(m, Status.PRESENT) for m in THREE}
    return (
        *dead_lines(blank[Mechanism.DEAD_UNITS], relu),
        *dead_lines(blank[Mechanism.DEAD_UNITS], skip),
        *rank_lines(blank[Mechanism.RANK_COLLAPSE], relu),
        *kernel_lines(blank[Mechanism.NTK_DEGENERATION], relu),
        all_three(relu),
        *ceiling(language),
    )
