"""What docs/instruments.md says of each record, beside what the registry knows. Every record needs an entry.

Letters: N samples, U units of a layer, P positions (pixels, tokens; 1 without), W a weight matrix (m, n),
s its singular values in descending order, k = min(m, n), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Entry:
    """One record name. ``variants`` maps each variant, or a pattern of them, to what it is."""

    formula: str
    range: str
    missing: str  # when its status is not_measured
    source: str
    rows: str = "layer, pooled"
    variants: dict[str, str] = field(default_factory=lambda: {"": ""})
    function: str = ""  # its name in supple.functional
    arrays: str = ""  # kept beside the records: name and shape


NO_VALUES = "no nonlinearity follows, its values cannot be read, or fewer than 16 responses (N × P)"
NO_GRADIENT = "no gradient arrives, none in the whole network, or fewer than 16 responses (N × P)"
NO_MATRIX = "no readable weight, one row or column, a tied weight (measured once), estimated path"
FEW = "N < 2 U; no nonlinearity follows"
GROUPED = "layer, group, pooled"
RANK = {"": "", "relative": "divided by k"}
FEATURES = {
    "raw": "", "centred": "minus the mean over samples", "raw,relative": "divided by U",
    "centred,relative": "both",
}  # fmt: skip
KERNEL = "no derivative of this kind exists; outputs without a sample axis"

ENTRIES: dict[str, Entry] = {
    # -- outputs ------------------------------------------------------------------------------
    "loss": Entry("loss_fn(outputs, targets)", "as the loss", "–", "–", "pooled"),
    "accuracy": Entry("share of samples with argmax = class", "[0, 1]", "not a classification", "–", "pooled"),
    "max_logit": Entry("max over all outputs of abs(z)", "≥ 0", "no real output", "–", "pooled"),
    "entropy": Entry(
        "mean over samples of −Σ p log p, p = softmax(z), in nats: near 0 where the softmax (a policy) is saturated",
        "[0, log C]", "not a classification", "–", "pooled",
    ),
    "gradient_norm": Entry(
        "‖∂loss/∂W‖ per weight; over all parameters pooled", "≥ 0", "no gradient arrives", "–",
        variants={
            "": "",
            "training*": "(Monitor) of the gradient that the optimizer gets, after clipping; with several "
            "optimizers `training,optimizerN`; per layer with `gradients_every`",
        },
    ),
    "gradient_diversity": Entry(
        "Σ‖g_i‖² / ‖Σ g_i‖², g_i the gradient of sample i", "[1/N, ∞)",
        "more than 10⁸ numbers, re-entrant checkpointing", "Yin et al. 2018", "pooled", function="gradient_diversity",
    ),
    "gradient_snr": Entry(
        "‖E g‖² / tr Cov g, unbiased", "≥ 0", "as `gradient_diversity`", "–", "pooled", function="signal_to_noise"
    ),
    "gradient_mean_cosine": Entry(
        "mean over pairs i ≠ j of cos(g_i, g_j)", "[−1, 1]", "as `gradient_diversity`", "Lyle et al. 2023", "pooled",
        function="gradient_cosines",
    ),
    # -- units --------------------------------------------------------------------------------
    "dormant": Entry(
        "share of units with s_i ≤ τ; s_i = E|h_i| / mean_k E|h_k| over N and P, h after the first nonlinearity",
        "[0, 1]", NO_VALUES, "Sokar et al. 2023", variants={"tau=0.025": "", "tau=0.1": ""},
        function="dormant_scores", arrays="`dormant_scores/<layer>` (U,)",
    ),
    "dead": Entry(
        "share of units with h = 0 (ReLU and kin, gates) or h ≤ 0 (GELU, SiLU and kin) on all N × P", "[0, 1]",
        NO_VALUES + "; an activation without an off state", "Dohare et al. 2024", function="dead_units",
    ),
    "always_on": Entry(
        "share of units with h > 0 on all N × P", "[0, 1]", "as `dead`", "–", function="always_on"
    ),
    "grama": Entry(
        "share of units with G_i ≤ τ; G_i = m_i / mean_k m_k, m_i the mean magnitude of the unit's gradient",
        "[0, 1]", NO_GRADIENT, "Liu et al. 2025, arXiv 2505.24061",
        variants={
            "preactivation,tau=0.025": "∂loss/∂z before the nonlinearity (N, U, P)", "preactivation,tau=0.1": "",
            "weight,tau=0.025": "batch gradient of the incoming row (U, fan-in)",
            "norm,tau=0.025": "batch gradient of a norm's scale; the layer is the norm's path",
        },
        function="grama_scores", arrays="`grama_scores/<layer>` (U,), `grama_scale_scores/<norm>` (U,)",
    ),
    "saturated": Entry(
        "share of units with |tanh| > 0.9, or a sigmoid outside [0.01, 0.99], on ≥ 95 % of N × P", "[0, 1]",
        NO_VALUES + "; another activation", "threshold of the continual-backpropagation code",
        variants={"": "", "responses": "share of all N × P × U responses instead"},
        function="saturation_scores",
    ),
    "cloned": Entry(
        "share of units with max_j |corr(h_i, h_j)| > 0.95, over at most 4096 of N × P", "[0, 1]",
        NO_VALUES + "; more than 4096 units; N < 32", "cf. Joudaki et al., arXiv 2510.00304", function="cloned_units",
    ),
    "unit_age": Entry(
        "optimizer steps since the unit was last born", "≥ 0", "no attached intervention keeps ages",
        "Dohare et al. 2024", variants={"median": "", "mean": "", "max": ""}, arrays="`unit_ages/<layer>` (U,)",
    ),
    # -- weights ------------------------------------------------------------------------------
    "weight_norm": Entry(
        "‖W‖_F", "≥ 0", "its weight cannot be read, or is tied to another layer's", "–",
        variants={
            "": "", "embedding": "pooled over embedding tables, which the other pooled row leaves out",
            "growth,twin": "over the norm in the reference", "growth,initial": "(Monitor) over the norm at attachment",
        },
    ),
    "weight_rms": Entry(
        "‖W‖_F / √(m n)", "≥ 0", "as `weight_norm`", "–", variants={"": "", "embedding": "pooled over tables"}
    ),
    "sigma_ratio": Entry("s_1 / Σ s", "[1/k, 1]", NO_MATRIX, "–", GROUPED, function="spectral_concentration"),
    "sigma_max": Entry(
        "s_1; pooled: the largest", "≥ 0", NO_MATRIX, "–", GROUPED, function="singular_values",
        arrays="`spectrum/<layer>` (k,) or (groups, k)",
    ),
    "sigma_min": Entry("s_k; pooled: the smallest", "≥ 0", NO_MATRIX + "; k > 2048", "–", GROUPED),
    "effective_rank": Entry(
        "exp(−Σ p log p), p = s / Σ s", "[1, k]", NO_MATRIX, "Roy & Vetterli 2007", GROUPED, RANK,
        "effective_rank",
    ),
    "stable_rank": Entry("Σ s² / s_1²", "[1, k]", NO_MATRIX, "–", GROUPED, RANK, "stable_rank"),
    "participation_ratio": Entry(
        "(Σ s²)² / Σ s⁴", "[1, k]", NO_MATRIX, "–", GROUPED, RANK, "participation_ratio"
    ),
    "srank": Entry(
        "least j with s_1 + … + s_j ≥ 0.99 Σ s", "[1, k]", NO_MATRIX + "; k > 2048", "Kumar et al. 2021",
        GROUPED, {"delta=0.01": "", "delta=0.01,relative": "divided by k"}, "srank",
    ),
    "below_noise_floor": Entry(
        "share of s below 0.2125 · spacing · rms(W) · (√m + √n), what rounding to a 16-bit format alone makes",
        "[0, 1]", NO_MATRIX + "; k > 2048", "measured here", GROUPED,
        {"": "", "floor": "the floor itself; 0 for float32"}, "rounding_floor",
    ),
    # -- features -----------------------------------------------------------------------------
    "feature_sigma_ratio": Entry(
        "`sigma_ratio` of the features (N, U), positions averaged", "[1/U, 1]", FEW, "–",
        variants={"raw": "", "centred": ""},
    ),
    "feature_effective_rank": Entry(
        "`effective_rank` of the features", "[1, U]", FEW + "; the null: fewer than 16 units or 17 samples",
        "Kumar et al. 2021; null: Marchenko & Pastur 1967",
        variants={**FEATURES, "centred,null": "over that of features without structure from as many samples"},
        function="null_singular_values",
    ),
    "feature_stable_rank": Entry("`stable_rank` of the features", "[1, U]", FEW, "–", variants=FEATURES),
    "feature_participation_ratio": Entry(
        "`participation_ratio` of the features", "[1, U]", FEW, "–", variants=FEATURES
    ),
    "feature_srank": Entry(
        "`srank` of the features", "[1, U]", FEW, "Kumar et al. 2021 (raw)",
        variants={f"{form},delta=0.01{rel}": "" for form in ("raw", "centred") for rel in ("", ",relative")},
    ),
    # -- kernel and change --------------------------------------------------------------------
    "ntk_rank99": Entry(
        "least j with 99 % of Σ λ, λ the eigenvalues of K_ij = Σ_c ⟨∂f_c(x_i), ∂f_c(x_j)⟩", "[1, n]", KERNEL,
        "–", "pooled", {"": "", "relative": "divided by n"}, "kernel_statistics", "`ntk_spectrum` (n,)",
    ),
    "ntk_effective_rank": Entry(
        "exp(−Σ p log p), p = λ / Σ λ", "[1, n]", KERNEL, "–", "pooled", {"": "", "relative": "divided by n"},
        "kernel_statistics",
    ),
    "ntk_condition": Entry(
        "λ_1 / λ_n", "≥ 1", KERNEL + "; λ_n below float64 noise", "–", "pooled", function="kernel_statistics"
    ),
    "ntk_mean_cosine": Entry(
        "mean over i ≠ j of K_ij / √(K_ii K_jj)", "[−1, 1]", KERNEL, "–", "pooled", function="mean_cosine"
    ),
    "ntk_trace": Entry("Σ λ", "≥ 0", KERNEL, "–", "pooled", function="kernel_statistics"),
    "churn": Entry(
        "change of the outputs on every other sample after one step on the rest", "≥ 0",
        "outputs without a sample axis; `kl`, `ce`, `flip`: not a classification", "Tang et al. 2025, arXiv 2506.00592",
        "pooled",
        {
            "kl": "mean KL(before, after), nats", "mse": "mean squared change", "flip": "share of classes that change",
            "ce": "KL plus the entropy before, as the authors log it",
            "relative": "mean change off the batch over that on it",
            "*,lag=*": "(Monitor) of the run itself on the whole probe, over the last k steps: `kl,lag=1`, …",
            "*,initial": "(Monitor) the same since the monitor was attached",
        },
        "churn",
    ),
    "one_step_gain": Entry(
        "(loss before − loss after) / loss before, of one step on every other sample", "≤ 1",
        "a loss that is not positive",
        "–", "pooled", {"batch": "on the samples of the step", "held_out": "on the other ones"},
    ),
    # -- plasticity ---------------------------------------------------------------------------
    "trainability": Entry(
        "mean score of copies of the network over that of fresh twins, on the same fresh tasks",
        "about [0, 1]; lo, hi: 95 %",
        "no reference; fewer than 8 samples; the twin itself learns next to nothing", "measured here", "pooled",
        {
            "": "the ratio", "score": "mean over the course, of the network", "twin_score": "of its twins",
            "with_unlearning": "the ratio without subtracting the old answers",
        },
    ),
}  # fmt: skip


def _kernels() -> dict[str, Entry]:
    """The other kernels have the statistics of the trace kernel."""
    made = {}
    for kind, what in (
        ("full", "the kernel of all outputs (n C, n C), row n C + c"),
        ("scalar", "the kernel (n, n) of the one output Σ_c f_c / √C"),
    ):
        for name in ("rank99", "effective_rank", "condition", "mean_cosine", "trace"):
            twin = ENTRIES[f"ntk_{name}"]
            variants = {k: v.replace("n", "its rows") for k, v in twin.variants.items()}
            missing = KERNEL + ("; more than 2048 rows for 8 inputs")
            array = f"`ntk_{kind}_spectrum`" if twin.arrays else ""
            made[f"ntk_{kind}_{name}"] = replace(
                twin, formula=f"`ntk_{name}` of {what}", range=twin.range.replace("n]", "rows]"), missing=missing,
                variants=variants, arrays=array,
            )  # fmt: skip
    return made


def _curvature() -> dict[str, Entry]:
    made = {}
    for matrix, formula, function, source in (
        ("ggn", "Gauss-Newton matrix (1/n) Σ J_iᵀ H_i J_i", "ggn_spectrum", "Schraudolph 2002"),
        ("fisher", "empirical Fisher (1/n) Σ g_i g_iᵀ", "fisher_spectrum", "–"),
    ):
        for name, what, span in (
            ("max", "largest eigenvalue", "≥ 0"), ("trace", "trace", "≥ 0"),
            ("effective_rank", "exp(−Σ p log p), p = λ / Σ λ, λ the spectrum", "≥ 1"),
            ("rank99", "least j with 99 % of Σ λ, λ the spectrum", "≥ 1"),
        ):  # fmt: skip
            made[f"{matrix}_{name}"] = Entry(
                f"{what} of the {formula}", span, "as `ntk_full_trace`; a flat loss", source, "pooled",
                function=function, arrays=f"`{matrix}_spectrum`",
            )  # fmt: skip
    made["hessian_max"] = Entry(
        "largest eigenvalue of the Hessian of the loss", "any; error: relative residual", "no second derivative here",
        "–",
        "pooled", function="largest_eigenvalue",
    )  # fmt: skip
    return made


ENTRIES["optimization_readiness"] = Entry(
    "strength · reliability; strength ‖E g‖² / loss, reliability ‖E g‖² / E‖g_B‖², g_B of as many samples", "≥ 0",
    "as `gradient_diversity`; a loss that is not positive", "cf. arXiv 2605.09044 (form unverified)", "pooled",
    {"": "", "strength": "", "reliability": "in [0, 1]"}, "optimization_readiness",
)  # fmt: skip
ENTRIES |= {**_kernels(), **_curvature()}

#: rows that a Monitor adds to those of the instruments
MONITOR: dict[str, Entry] = {
    "update_ratio": Entry(
        "‖W after − W before‖ / ‖W before‖ of the step just made", "≥ 0", "a zero weight", "–",
        variants={"": "", "optimizer*": "pooled, one of several optimizers"},
    ),
    "task_loss": Entry("loss on the probe of a task", "as the loss", "–", "–", "pooled", {"*": "name of that task"}),
    "task_accuracy": Entry(
        "accuracy on the probe of a task", "[0, 1]",
        "not a classification", "–", "pooled", {"*": "name of that task"},
    ),
    "forgetting": Entry(
        "accuracy on the probe of an earlier task when it ended − accuracy on it now", "[−1, 1]",
        "not a classification; no earlier task with a probe of its own", "–", "pooled",
        {"*": "name of that task", "": "mean over the earlier tasks that are kept"},
    ),
}  # fmt: skip
