"""A matrix against its expected spectrum at initialisation, where the model's configuration says how it began.

Known are the model types of `transformers` whose matrices all begin as independent normal numbers with the
standard deviation that `config.json` names (``initializer_range``), and GPT-2, whose projections back into the
stream are divided by sqrt(2 layers). Of every other model the start is not known, and nothing is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supple import functional as F
from supple.records import MEASURED, Record
from supple.scan.matrices import Matrix

#: checked against the models themselves (tests/scan/test_expected.py)
PLAIN_TYPES = frozenset({
    "bert", "distilbert", "gemma", "gemma2", "gpt_neox", "llama", "mistral", "olmo", "phi", "phi3", "qwen2", "qwen3",
    "roberta", "smollm3",
})  # fmt: skip
#: GPT-2's layers that write into the stream
_BACK = "c_proj"
QUANTITIES = ("sigma_max", "nuclear_norm", "effective_rank")


@dataclass(frozen=True)
class Expectation:
    """One quantity of one matrix of the first round, and what it is expected to be at initialisation."""

    layer: str
    part: str
    instrument: str
    value: float
    expected: float
    std: float

    @property
    def name(self) -> str:
        return f"{self.layer} [{self.part}]" if self.part else self.layer

    @property
    def ratio(self) -> float:
        return self.value / self.expected


@dataclass(frozen=True)
class Start:
    """How the matrices of a model began: a standard deviation, or the reason why that is not known."""

    std: float
    back: float = 1.0
    reason: str = ""

    @property
    def known(self) -> bool:
        return not self.reason

    def of(self, layer: str) -> float:
        """The standard deviation of one matrix."""
        return self.std * (self.back if layer.endswith(_BACK) else 1.0)


def start_of(config: Mapping[str, Any]) -> Start:
    """What a model's configuration says of its initialiser.

    >>> start_of({"model_type": "llama", "initializer_range": 0.02}).std
    0.02
    >>> start_of({}).reason
    'there is no config.json that names the initialiser'
    """
    if not config:
        return Start(math.nan, reason="there is no config.json that names the initialiser")
    kind, std = config.get("model_type"), config.get("initializer_range")
    if isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std < math.inf:
        return Start(math.nan, reason=f"config.json names no initializer_range (found {std!r})")
    layers = config.get("n_layer")
    if kind == "gpt2" and isinstance(layers, int) and layers > 0:
        return Start(std, back=1 / math.sqrt(2 * layers))
    if kind in PLAIN_TYPES:
        return Start(std)
    return Start(math.nan, reason=f"how a model of type {kind!r} begins is not known")


def compare(matrix: Matrix, rows: list[Record], start: Start) -> list[Expectation]:
    """sigma_1, the sum of sigma and the effective rank beside those of a normal matrix of this shape and start."""
    if not start.known or matrix.shape:
        return []
    found = {r.instrument: r.value for r in rows if r.status == MEASURED and not r.variant}
    top, ratio = found.get("sigma_max", math.nan), found.get("sigma_ratio", math.nan)
    if ratio and not math.isnan(ratio) and not math.isnan(top):
        found["nuclear_norm"] = top / ratio
    std, (m, n) = start.of(matrix.layer), matrix.values.shape
    null = F.null_singular_values(m, n)
    expected = {
        "sigma_max": std * F.null_largest_singular_value(m, n),
        "nuclear_norm": std * float(null.sum()),
        "effective_rank": float(F.effective_rank(null)),
    }
    return [
        Expectation(matrix.layer, matrix.part, name, found[name], expected[name], std)
        for name in QUANTITIES
        if name in found
    ]
