"""Which layers do not lose plasticity? CReLU and Fourier activations, and `convert_`, which puts them
into an existing network with widths kept consistent, or refuses with the module's path.
"""

from supple.nn.forgetting import ForgettingAttention, ForgettingCache
from supple.nn.svf import SVFAdapter, svf_

__all__ = ["ForgettingAttention", "ForgettingCache", "SVFAdapter", "svf_"]
