"""Which layers do not lose plasticity? CReLU and Fourier activations, and `convert_`, which puts them
into an existing network with widths kept consistent, or refuses with the module's path.
"""

from supple.nn.convert import convert_
from supple.nn.forgetting import ForgettingAttention, ForgettingCache
from supple.nn.insert import Insertion, insert_norms_
from supple.nn.lora import LoRAAdapter, lora_
from supple.nn.pairs import CReLU, DeepFourier, init_pairs_
from supple.nn.retrofit import ForgetGates, insert_forget_gates_
from supple.nn.svf import SVFAdapter, svf_
from supple.nn.widths import Conversion

__all__ = [
    "CReLU",
    "Conversion",
    "DeepFourier",
    "ForgetGates",
    "ForgettingAttention",
    "ForgettingCache",
    "Insertion",
    "LoRAAdapter",
    "SVFAdapter",
    "convert_",
    "init_pairs_",
    "insert_forget_gates_",
    "insert_norms_",
    "lora_",
    "svf_",
]
