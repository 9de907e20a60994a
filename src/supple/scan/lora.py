"""Low-rank adapters on disk: the product s B A by its thin factors, or added to the matrix it was trained for.

Shape letters: O outputs, I inputs, R rank of the product.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supple.checksum import checksum
from supple.errors import InputError
from supple.scan.matrices import PLAIN, Matrix, Skipped, split, why_not
from supple.scan.pattern import first_hit
from supple.scan.sources import Checkpoint, Entry

#: what peft and PyTorch's own naming put between a module and its factors
_FACTOR = re.compile(r"^(?P<stem>.*)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?P<tail>\..*)?$")
_PREFIX = "base_model.model."
#: starts that take a part out of the base weights, so that the product fits the changed base alone
_RESIDUAL = ("pissa", "olora", "corda", "loftq")


@dataclass
class Pair:
    """The two factors of one adapted weight, gathered as they come."""

    stem: str
    tail: str
    embedding: bool
    sides: dict[str, Entry] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.stem + self.tail

    def problem(self) -> str:
        """Why the factors make no product, or nothing."""
        if set(self.sides) != {"A", "B"}:
            return f"an adapter with lora_{'/'.join(sorted(self.sides))} alone"
        a, b = self.sides["A"], self.sides["B"]
        for side in (a, b):
            if side.odd or side.dtype not in PLAIN:
                return f"adapter factor {side.name}: {side.odd or f'stored as {side.dtype}'}"
        flat = len(b.shape) >= 2 and math.prod(b.shape[2:]) == 1
        if len(a.shape) < 2 or not flat or a.shape[0] != b.shape[1] or not math.prod(a.shape + b.shape):
            return f"adapter factors {b.shape} and {a.shape} do not multiply"
        return ""

    def factors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """B (O, R) and A (R, I); kernels unfolded."""
        b, a = (self.sides[side].load().to(dtype).flatten(1) for side in "BA")
        return b, a


def gather(pairs: dict[str, Pair], entry: Entry) -> bool:
    """Whether the entry is a factor of an adapter; it is put beside its partner then."""
    found = _FACTOR.match(entry.name)
    if found is None:
        return False
    stem, tail, embedding = found["stem"], found["tail"] or "", bool(found["embedding"])
    pairs.setdefault(stem + tail, Pair(stem, tail, embedding)).sides[found["side"]] = entry
    return True


def scale_of(config: Mapping[str, Any], stem: str, rank: int) -> tuple[float | None, str]:
    """The factor s before B A that peft's configuration gives this weight, or the reason why it is not known.

    alpha / R, or alpha / sqrt(R) with ``use_rslora``; ``alpha_pattern`` names modules with an alpha of their own.

    >>> scale_of({"peft_type": "LORA", "lora_alpha": 16}, "layer", 8)
    (2.0, '')
    """
    if not config:
        return None, "there is no adapter_config.json, so the scale of the product is not known"
    if config.get("peft_type", "LORA") != "LORA":
        return None, f"peft_type {config['peft_type']}: only the products of LORA are known"
    alpha = config.get("lora_alpha")
    pattern = config.get("alpha_pattern")
    if isinstance(pattern, Mapping):
        try:
            key = first_hit(pattern, stem.removeprefix(_PREFIX))
        except InputError as error:
            return None, f"alpha_pattern: {error}"
        alpha = alpha if key is None else pattern[key]
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        return None, f"lora_alpha {alpha!r} is no number"
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), ""


def product(pair: Pair, config: Mapping[str, Any]) -> Matrix | Skipped:
    """s B A as its R x R core (QR of both thin factors): the same singular values, no (O, I) matrix."""
    problem = pair.problem()
    if problem:
        return Skipped(pair.name, problem)
    rank = pair.sides["A"].shape[0]
    scale, reason = scale_of(config, pair.stem, rank)
    if scale is None and config:
        return Skipped(pair.name, reason)
    b, a = pair.factors()
    layer, dtype = pair.name.removesuffix(".weight"), pair.sides["A"].dtype
    shape = (b.shape[0], a.shape[1])
    if not bool(torch.isfinite(b).all() and torch.isfinite(a).all()):
        return Matrix(layer, "B·A", torch.full((2, 2), math.nan), dtype, shape=shape)
    core = torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T
    notes = [f"LoRA product of rank at most {rank}"]
    notes += [reason] if scale is None else [f"scaled by {scale:g}"]
    notes += ["DoRA: before its rescaling"] if config.get("use_dora") else []
    return Matrix(layer, "B·A", core * (1.0 if scale is None else scale), dtype, "; ".join(notes), shape)


@dataclass(frozen=True)
class Base:
    """The model that adapters were trained on, opened once."""

    checkpoint: Checkpoint

    def entry(self, stem: str) -> Entry:
        """The base weight of an adapted module; its name may have a longer or a shorter beginning.

        Raises:
            InputError: none or several such matrices.
        """
        module = stem.removeprefix(_PREFIX)
        for wanted in (f"{module}.weight", module):
            if wanted in self.checkpoint.entries:
                return self.checkpoint.entries[wanted]
        wanted = f"{module}.weight"
        near = [
            e
            for n, e in self.checkpoint.entries.items()
            if n.endswith("." + wanted) or wanted.endswith("." + n)
        ]
        if len(near) == 1:
            return near[0]
        raise InputError(
            "the base has no such matrix" if not near else "several matrices of the base fit this adapter",
            found=", ".join(e.name for e in near[:4]) or f"{len(self.checkpoint.entries)} other tensors",
            where=f"{self.checkpoint.path}, {wanted!r}",
            do="name the base that the adapter was trained on",
        )

    def name_of(self, name: str) -> str:
        """The base's name for a tensor that an adapter file keeps whole (``modules_to_save``)."""
        try:
            return self.entry(name.removesuffix(".weight")).name
        except InputError:  # a new head: the base has none
            return name.removeprefix(_PREFIX)


def check_pair(pair: Pair, base: Base, config: Mapping[str, Any]) -> Entry:
    """The base weight that a product can be added to.

    Raises:
        InputError: factors that do not multiply, a scale that is not known, a base without that matrix, of another
            shape, or quantised.
    """
    problem = pair.problem() or scale_of(config, pair.stem, 1)[1]
    if not problem and config.get("use_dora"):
        problem = "DoRA rescales what it adds; merge the adapter and scan the merged model"
    if problem:
        raise InputError("this adapter cannot be added to its base", found=problem, where=pair.name)
    entry = base.entry(pair.stem)
    a, b = pair.sides["A"], pair.sides["B"]
    shape = (b.shape[0], *a.shape[1:])
    if shape[::-1] == entry.shape and (config.get("fan_in_fan_out") or pair.embedding):
        shape = entry.shape
    if shape != entry.shape:
        raise InputError(
            "the base has another shape than the adapter",
            found=f"{entry.shape} beside {shape}",
            where=f"{base.checkpoint.path}, {entry.name!r}",
            do="name the base that the adapter was trained on",
        )
    reason = why_not(entry, embeddings=True)
    if reason is not None:
        raise InputError("the base weight cannot be added to", found=reason, where=entry.name)
    return entry


def on_base(
    pair: Pair, base: Base, entry: Entry, config: Mapping[str, Any], sums: Mapping[str, str]
) -> Iterator[Matrix]:
    """W + s B A, split as the base matrix is (packed projections, kernels).

    Raises:
        InputError: the adapter names another checksum of this weight.
    """
    weight = entry.load()
    said = sums.get(f"base:{pair.stem.removeprefix(_PREFIX)}")
    if said is not None and said != checksum(weight):
        raise InputError(
            "the adapter fits another base weight",
            found="a different checksum",
            where=f"{base.checkpoint.path}, {entry.name!r}",
            do="name the base that the adapter was trained on",
        )
    rank = pair.sides["A"].shape[0]
    scale = scale_of(config, pair.stem, rank)[0] or 0.0
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    b, a = pair.factors(wide)
    added = (scale * b) @ a
    if added.shape == weight.shape[::-1] and (config.get("fan_in_fan_out") or pair.embedding):
        added = added.T
    values = weight.to(wide) + added.reshape(entry.shape)
    note = f"base + {scale:g} B·A of rank at most {rank}"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_RESIDUAL):
        note += f"; its start {start!r} changes the base: right only beside the base saved with it"
    yield from split(
        entry.name, values, "F64" if wide is torch.float64 else "F32", base.checkpoint.config, note
    )


def base_sums(checkpoint: Checkpoint) -> dict[str, str]:
    """The checksums of base weights in the metadata of an adapter file; peft writes none."""
    path = checkpoint.path / "adapter_model.safetensors" if checkpoint.path.is_dir() else checkpoint.path
    if path.suffix != ".safetensors" or not Path(path).is_file():
        return {}
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {})
