"""What measuring one matrix takes in memory, known from its shape before a value is read.

The figures follow the code of `supple.functional.singular_values` (float64 Gram of the short side, its eigenvalues,
2048 columns of the long side at a time) and of `estimated_spectrum_statistics` (one float32 copy, the bases of its
probes), and the checks before them; `benchmarks/scan_speed.py --need` compares them with what processes took.
"""

from __future__ import annotations

import math

from supple.scan.header import DTYPE_BITS
from supple.scan.matrices import EXACT_SIDE
from supple.scan.sources import Entry

MIB = 2**20
#: rows of float64 numbers of the long side that the exact path holds at a time
_CHUNK = 2048
#: square float64 matrices of the short side: the Gram in blocks, put together, copied and worked on by the solver
_GRAMS = 5
#: bytes a value beside the stored ones: the finite mask, and the copies of the search for a 16-bit origin
_CHECKS = 8
#: vectors of either side in float32 that the estimate keeps, its probes times its steps, and their float64 copies
_VECTORS = 500


def need(entry: Entry, estimate: bool, experts: bool = False, added: bool = False) -> int:
    """Bytes for one stored tensor and the work on it, read, checked and measured.

    Args:
        entry: the tensor; nothing of it is read.
        estimate: whether the estimated path is taken where the matrix is large enough for it.
        experts: a stack of which one matrix is worked on at a time.
        added: an adapter's product is added to it, in float32.
    """
    count, width = math.prod(entry.shape), byte_width(entry.dtype)
    shape = entry.shape[1:] if experts else (entry.shape[0], math.prod(entry.shape[1:]))
    short, long = sorted(shape)
    one = short * long
    total = count * width + (8 * count if added else 0)
    if estimate and short > EXACT_SIDE:
        return total + 8 * one + 8 * _VECTORS * (short + long)
    return total + _CHECKS * one + 8 * short * (_GRAMS * short + min(_CHUNK, long))


def byte_width(dtype: str) -> int:
    """Bytes of one value of a storage format, rounded up.

    >>> byte_width("BF16"), byte_width("float64")
    (2, 8)
    """
    if dtype in DTYPE_BITS:
        return -(-DTYPE_BITS[dtype] // 8)
    digits = "".join(c for c in dtype.split("_", maxsplit=1)[0] if c.isdigit())
    return -(-int(digits) // 8) if digits else 8


def mib(count: int) -> str:
    """Bytes as a short text.

    >>> mib(3 * 2**20)
    '3 MiB'
    """
    return f"{count / MIB:.3g} MiB"
