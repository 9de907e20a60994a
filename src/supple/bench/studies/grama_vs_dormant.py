"""Do activations or gradients show more inactive units, and which reset helps more? On an MLP, a ResNet and a U-Net.

The claim that is tested (Liu et al. 2025, arXiv 2505.24061, as it is often retold): in an MLP the dormant share and
GraMa agree; in residual and diffusion networks GraMa finds two to three times as many units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from supple.bench import protocols
from supple.bench.rows import curve
from supple.bench.spec import RunSpec
from supple.bench.statistics import Estimate, Paired, final_tenth, mean, paired
from supple.bench.studies.base import finished, short
from supple.diagnose.types import plain
from supple.errors import InputError
from supple.records import Records
from supple.store import StoredRun

#: network -> protocol that wears it
WEAR = {"MLP": "class-sequence", "ResNet-8": "class-sequence-resnet", "U-Net": "image-domains"}
METHODS = ("plain", "fresh", "redo", "regrama")
TAUS = (0.025, 0.1)
FEWEST = 0.01  # a dormant share below this says nothing as a denominator


@dataclass(frozen=True)
class Comparison:
    """Inactive units of one worn network at one tau: shares, their ratio, and what one sees that the other does not.

    ``missed``: share of the units with little gradient that are not dormant; ``extra``: share of the dormant units
    that do have gradient. None where a denominator is too small in some seed.
    """

    network: str
    tau: float
    dormant: Estimate
    grama: Estimate
    ratio: Estimate | None
    missed: Estimate | None
    extra: Estimate | None


@dataclass(frozen=True)
class LayerShare:
    """The two shares in one layer, means over seeds, at the larger tau."""

    network: str
    layer: str
    dormant: float
    grama: float


@dataclass(frozen=True)
class Repair:
    """The metric over the last tenth of the tasks by method; what ReGraMa gains over ReDo, paired over seeds."""

    network: str
    metric: str
    levels: Mapping[str, Estimate]
    gain: Paired


@dataclass(frozen=True)
class GramaVsDormant:
    """The answer; see `specs` for the runs and `read` for how it is made."""

    comparisons: tuple[Comparison, ...]
    layers: tuple[LayerShare, ...]
    repairs: tuple[Repair, ...]
    seeds: int

    name: ClassVar[str] = "grama-vs-dormant"
    description: ClassVar[str] = (
        "dormant share against GraMa, ReDo against ReGraMa, on an MLP, a ResNet and a U-Net"
    )
    presets: ClassVar[tuple[str, ...]] = ("small", "day", "demo")

    @staticmethod
    def specs(preset: str, seeds: Sequence[int]) -> list[RunSpec]:
        """Three protocols × plain, fresh, ReDo, ReGraMa × seeds; the networks are measured after the last task."""
        return [
            RunSpec(
                protocol=protocol, method=method, seed=seed, measure_every=protocol.tasks,
                edge_instruments="economy",
            )
            for seed in seeds
            for protocol in (protocols.create(name, preset) for name in WEAR.values())
            for method in METHODS
        ]  # fmt: skip

    @classmethod
    def read(cls, root: Path) -> GramaVsDormant:
        """From the finished runs below ``root``.

        Raises:
            StoreError: a run is missing or not finished.
            InputError: methods of one protocol that have different seeds.
        """
        comparisons, layers, repairs = [], [], []
        seeds = 0
        for network, protocol in WEAR.items():
            runs = {method: finished(Path(root) / protocol / method) for method in METHODS}
            if len({tuple(found) for found in runs.values()}) > 1:
                raise InputError(
                    "the methods of one protocol must have the same seeds",
                    found="; ".join(f"{m}: {list(found)}" for m, found in runs.items()),
                    where=f"{root}/{protocol}",
                )
            worn = list(runs["plain"].values())
            seeds = len(worn)
            comparisons += [_compare(network, worn, tau) for tau in TAUS]
            layers += _by_layer(network, worn)
            repairs.append(_repair(network, protocol, runs))
        return cls(tuple(comparisons), tuple(layers), tuple(repairs), seeds)

    def to_dict(self) -> dict[str, Any]:
        """Plain types; what one run has no interval for is None."""
        return dict(plain(asdict(self)))

    def __str__(self) -> str:
        lines = [f"inactive units of worn networks, {self.seeds} seeds", ""]
        form = "{:<10} {:>6}  {:<22} {:<22} {:<22} {:<22} {:<22}"
        lines.append(
            form.format("network", "tau", "dormant", "GraMa", "ratio", "GraMa only", "dormant only").rstrip()
        )
        for c in self.comparisons:
            cells = [short(x) for x in (c.dormant, c.grama, c.ratio, c.missed, c.extra)]
            lines.append(form.format(c.network, f"{c.tau:g}", *cells).rstrip())
        lines += ["", "repairs: level over the last tenth of the tasks", ""]
        form = "{:<10} {:<9} " + "{:<22} " * (len(METHODS) + 1)
        lines.append(form.format("network", "metric", *METHODS, "regrama - redo").rstrip())
        for r in self.repairs:
            cells = [short(r.levels[m]) for m in METHODS]
            lines.append(form.format(r.network, r.metric, *cells, short(r.gain.difference)).rstrip())
        return "\n".join(lines)


def _last(records: Records, instrument: str, variant: str) -> Records:
    """Rows of the last measured task."""
    rows = [r for r in records.select(instrument=instrument, variant=variant) if r.status == "measured"]
    return Records(r for r in rows if r.task == rows[-1].task)


def _share(run: StoredRun, instrument: str, variant: str) -> float:
    return _last(run.records, instrument, variant).select(layer="*").values()[-1]


def _compare(network: str, runs: list[StoredRun], tau: float) -> Comparison:
    dormant = [_share(run, "dormant", f"tau={tau:g}") for run in runs]
    grama = [_share(run, "grama", f"preactivation,tau={tau:g}") for run in runs]
    sets = [_sets(run, tau) for run in runs]
    return Comparison(
        network, tau, mean(dormant), mean(grama),
        _over([(g, d) for d, g in zip(dormant, grama, strict=True)]),
        _over([(only_g, g) for only_g, _, g, _ in sets]),
        _over([(only_d, d) for _, only_d, _, d in sets]),
    )  # fmt: skip


def _over(pairs: list[tuple[float, float]]) -> Estimate | None:
    """Mean of the quotients; None where a denominator is too small."""
    return mean([a / b for a, b in pairs]) if all(b >= FEWEST for _, b in pairs) else None


def _sets(run: StoredRun, tau: float) -> tuple[float, float, float, float]:
    """Shares of all scored units: GraMa alone, dormant alone, GraMa, dormant; of layers that have both scores."""
    arrays: Mapping[str, Tensor] = run.arrays(f"task-{run.manifest['run']['protocol']['tasks'] - 1}")
    counts, total = [0, 0, 0, 0], 0
    for name, scores in arrays.items():
        kind, _, layer = name.partition("/")
        if kind != "dormant_scores" or f"grama_scores/{layer}" not in arrays:
            continue
        d, g = scores <= tau, arrays[f"grama_scores/{layer}"] <= tau
        for i, mask in enumerate((g & ~d, d & ~g, g, d)):
            counts[i] += int(mask.sum())
        total += len(scores)
    shares = [n / max(total, 1) for n in counts]
    return shares[0], shares[1], shares[2], shares[3]


def _by_layer(network: str, runs: list[StoredRun]) -> list[LayerShare]:
    tau = TAUS[-1]
    shares: dict[str, tuple[list[float], list[float]]] = {}
    for run in runs:
        for i, (instrument, form) in enumerate((("dormant", ""), ("grama", "preactivation,"))):
            for row in _last(run.records, instrument, f"{form}tau={tau:g}"):
                if row.layer != "*":
                    shares.setdefault(row.layer, ([], []))[i].append(row.value)
    return [
        LayerShare(network, layer, sum(d) / len(d), sum(g) / len(g))
        for layer, (d, g) in shares.items()
        if d and g
    ]


def _repair(network: str, protocol: str, runs: Mapping[str, Mapping[int, StoredRun]]) -> Repair:
    levels = {
        m: [final_tenth(curve(run.records, "online")) for run in found.values()] for m, found in runs.items()
    }
    metric = protocols.PROTOCOLS[protocol].metric
    return Repair(
        network, metric, {m: mean(x) for m, x in levels.items()}, paired(levels["regrama"], levels["redo"])
    )
