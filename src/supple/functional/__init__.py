"""What is the formula? Pure tensor functions, each with its formula, range, source and a runnable
example: dormancy, GraMa, spectra and ranks, kernel statistics, churn, readiness, penalties and
utilities. No module, no optimizer and no state belongs here, and nothing but torch is imported.
"""

from supple.functional.churn import churn, relative_churn
from supple.functional.curvature import (
    Eigenvalue,
    fisher_spectrum,
    ggn_spectrum,
    gradient_gram,
    largest_eigenvalue,
)
from supple.functional.dormancy import (
    always_on,
    cloned_units,
    dead_units,
    dormant_fraction,
    dormant_scores,
    firing_rate,
    saturated_fraction,
    saturation_scores,
)
from supple.functional.gradients import (
    BatchGradient,
    gradient_diversity,
    gradient_statistics,
    grama_scores,
    signal_to_noise,
)
from supple.functional.kernels import (
    KernelStatistics,
    centre_kernel,
    gradient_cosines,
    kernel_spectrum,
    kernel_statistics,
    mean_cosine,
    normalise_kernel,
)
from supple.functional.lanczos import SingularTriplet, largest_singular_value
from supple.functional.noise import null_largest_singular_value, null_singular_values, rounding_floor
from supple.functional.penalties import (
    bias_penalty,
    feature_rank_penalty,
    l2_init_penalty,
    l2_penalty,
    parseval_penalty,
    spectral_penalty,
    wasserstein_penalty,
)
from supple.functional.quadrature import SpectrumEstimate, estimated_spectrum_statistics
from supple.functional.ranks import (
    SpectrumStatistics,
    effective_rank,
    energy_effective_rank,
    nuclear_rank,
    numerical_rank,
    participation_ratio,
    pca_rank,
    spectral_concentration,
    spectrum_statistics,
    srank,
    stable_rank,
)
from supple.functional.readiness import Readiness, optimization_readiness
from supple.functional.spectra import (
    PowerStep,
    power_step,
    singular_values,
    spectral_norm_bounds,
    weight_matrix,
)
from supple.functional.utilities import (
    adaptable_contribution_utility,
    age_corrected,
    contribution_utility,
    outgoing_magnitude,
    running_average,
    zero_contribution_utility,
)

__all__ = [
    "BatchGradient",
    "Eigenvalue",
    "KernelStatistics",
    "PowerStep",
    "Readiness",
    "SingularTriplet",
    "SpectrumEstimate",
    "SpectrumStatistics",
    "adaptable_contribution_utility",
    "age_corrected",
    "always_on",
    "bias_penalty",
    "centre_kernel",
    "churn",
    "cloned_units",
    "contribution_utility",
    "dead_units",
    "dormant_fraction",
    "dormant_scores",
    "effective_rank",
    "energy_effective_rank",
    "estimated_spectrum_statistics",
    "feature_rank_penalty",
    "firing_rate",
    "fisher_spectrum",
    "ggn_spectrum",
    "gradient_cosines",
    "gradient_diversity",
    "gradient_gram",
    "gradient_statistics",
    "grama_scores",
    "kernel_spectrum",
    "kernel_statistics",
    "l2_init_penalty",
    "l2_penalty",
    "largest_eigenvalue",
    "largest_singular_value",
    "mean_cosine",
    "normalise_kernel",
    "nuclear_rank",
    "null_largest_singular_value",
    "null_singular_values",
    "numerical_rank",
    "optimization_readiness",
    "outgoing_magnitude",
    "parseval_penalty",
    "participation_ratio",
    "pca_rank",
    "power_step",
    "relative_churn",
    "rounding_floor",
    "running_average",
    "saturated_fraction",
    "saturation_scores",
    "signal_to_noise",
    "singular_values",
    "spectral_concentration",
    "spectral_norm_bounds",
    "spectral_penalty",
    "spectrum_statistics",
    "srank",
    "stable_rank",
    "wasserstein_penalty",
    "weight_matrix",
    "zero_contribution_utility",
]
