"""What happened inside: dormant and gradient-starved units per layer, weight spectra, the kernel, churn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from supple.diagnose.types import DiagnosisReport
from supple.report.data import Spread
from supple.report.style import CYCLE, Svg, figure, look, number, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Spectra = Mapping[str, tuple[Sequence[float], Sequence[float]]]
#: (bar label, instrument, variant): the two definitions at the same threshold
UNIT_MEASURES = (
    ("τ-dormant (activation), τ 0.1", "dormant", "tau=0.1"),
    ("GraMa (gradient), τ 0.1", "grama", "preactivation,tau=0.1"),
)
#: more matrices than this do not fit beside each other; more layer names than this are written upright
PANELS, LEVEL_NAMES = 4, 8
LOG_SPAN = 30
KERNEL_MEASURES = (
    ("ntk_rank99", "directions with 99 % of the kernel"),
    ("ntk_effective_rank", "effective rank of the kernel"),
    ("ntk_mean_cosine", "mean cosine between samples"),
    ("ntk_condition", "condition number"),
)
CHURN_WORDS = {
    "kl": "churn (KL)",
    "mse": "churn (mean square)",
    "flip": "churn (changed answers)",
    "relative": "churn (relative)",
}


def per_seed(
    reports: Sequence[DiagnosisReport], instrument: str, variant: str = "", layer: str = "*"
) -> Spread:
    """One measurement of several diagnoses (one a seed) as a spread; unmeasured rows do not count."""
    values = []
    for report in reports:
        row = report.records.last(instrument=instrument, variant=variant, layer=layer)
        if row is not None and row.status == "measured":
            values.append(row.value)
    return Spread.of(values)


def unit_layers(reports: Sequence[DiagnosisReport]) -> list[str]:
    """The layers whose units were scored, in the order of the network."""
    names: dict[str, None] = {}
    for report in reports:
        for row in report.records:
            if row.layer != "*" and any((row.instrument, row.variant) == (i, v) for _, i, v in UNIT_MEASURES):
                names[row.layer] = None
    return list(names)


def units(worn: Sequence[DiagnosisReport], fresh: Sequence[DiagnosisReport] = ()) -> Svg | None:
    """τ-dormant beside GraMa for every layer; hatched bars behind them are the fresh network."""
    known = unit_layers(worn)
    layers = [n for n in known if any(per_seed(worn, i, v, n).count for _, i, v in UNIT_MEASURES)]
    if not layers:
        return None
    heading = _units_heading(worn, layers)
    caption = (
        "Two definitions of a useless unit, at the same threshold. τ-dormant: its activation is at most τ "
        "of the layer's mean. GraMa: the gradient that reaches it before its nonlinearity is at most τ of "
        "the layer's mean; it also sees units that still answer but no longer learn."
    )
    if fresh:
        caption += " Hollow bars: a fresh network on the same probe."
    if len(layers) < len(known):
        caption += f" Without hidden units to score: {', '.join(n for n in known if n not in layers)}."
    rows = []
    with figure(height=3.6) as (drawn, (ax,)):
        for k, (label, instrument, variant) in enumerate(UNIT_MEASURES):
            spreads = [per_seed(worn, instrument, variant, layer) for layer in layers]
            healthy = [per_seed(fresh, instrument, variant, layer) for layer in layers]
            _bars(ax, k, label, spreads, healthy)
            rows += [
                (layer, label, str(s), str(h)) for layer, s, h in zip(layers, spreads, healthy, strict=True)
            ]
        ax.set_xticks(range(len(layers)), layers, rotation=90 if len(layers) > LEVEL_NAMES else 0)
        ax.set_ylabel("share of units")
        ax.set_ylim(0, 1)
        ax.grid(axis="x", visible=False)
        drawn.legend(loc="outside right upper")
        rows.sort(key=lambda row: layers.index(row[0]))
        columns = ("layer", "measure", "worn", "fresh")
        return Svg("units", to_svg(drawn, "units", heading), heading, caption, columns, tuple(rows))


def _bars(ax: Axes, k: int, label: str, worn: Sequence[Spread], fresh: Sequence[Spread]) -> None:
    width = 0.36
    x = [i + (k - 0.5) * width for i in range(len(worn))]
    heights = [_zero(s.mean) for s in worn]
    spans = [[_zero(s.mean - s.lo) for s in worn], [_zero(s.hi - s.mean) for s in worn]]
    color = CYCLE[(1, 0)[k]]
    ax.bar(x, heights, width * 0.92, color=color, alpha=0.75, hatch=("", "//")[k], label=label, yerr=spans,
           error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#7F7F7F"})  # fmt: skip
    for place, spread in zip(x, worn, strict=True):
        if not spread.count:  # no bar must not look like a healthy one
            ax.text(place, 0.02, "not measured", rotation=90, ha="center", va="bottom", fontsize=9)
    if any(s.count for s in fresh):
        hollow = [_zero(s.mean) for s in fresh]
        ax.bar(x, hollow, width * 0.92, fill=False, edgecolor="#7F7F7F", linewidth=1.4)


def _zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _units_heading(worn: Sequence[DiagnosisReport], layers: Sequence[str]) -> str:
    pairs = {layer: [per_seed(worn, i, v, layer).mean for _, i, v in UNIT_MEASURES] for layer in layers}
    measured = {k: v for k, v in pairs.items() if not any(math.isnan(x) for x in v)}
    if not measured:
        return "Unit scores could not be measured"
    layer = max(measured, key=lambda name: measured[name][1])
    dormant, grama = measured[layer]
    return f"In {layer}, GraMa finds {grama:.0%} of the units without gradient; τ-dormant finds {dormant:.0%}"


def spectra(
    pairs: Spectra, names: tuple[str, str] = ("after the first task", "after the last task"), note: str = ""
) -> Svg:
    """Singular values of each weight matrix, early and late, logarithmic; an empty side is left out.

    With more than `PANELS` matrices the ones that are most concentrated now are drawn; the table has all.
    """
    drawn_layers = sorted(pairs, key=lambda k: -_concentration(pairs[k][1]))[:PANELS]
    shown = {k: pairs[k] for k in pairs if k in drawn_layers}
    rows = []
    for layer, both in pairs.items():
        for when, values in zip(names, both, strict=True):
            if not values:
                continue
            rows.append((layer, when, number(max(values)), number(_concentration(values)), str(len(values))))
    heading = _spectra_heading(pairs)
    told = [f"{n} ({s})" for n, s, k in zip(names, ("dashed", "solid"), (0, 1), strict=True)
            if any(both[k] for both in pairs.values())]  # fmt: skip
    caption = f"Singular values of each weight matrix, largest first: {' and '.join(told)}. {note}".strip()
    if len(shown) < len(pairs):
        caption += f" The {len(shown)} most concentrated of {len(pairs)} matrices are drawn."
    with figure(height=3.2, width=9.6, columns=max(1, len(shown))) as (drawn, axes):
        for ax, (layer, both) in zip(axes, shown.items(), strict=False):
            for place, values, name in zip((0, 1), both, names, strict=True):
                if not values:
                    continue
                style: dict[str, Any] = {**look(place), "linestyle": ("--", "-")[place]}
                ax.plot(range(1, len(values) + 1), values, label=name, **style)
            _scale(ax, [v for values in both for v in values])
            ax.set_title(layer)
            ax.set_xlabel("index")
        axes[0].set_ylabel("singular value")
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=2)
        columns = ("layer", "when", "σ1", "σ1/Σσ", "singular values")
        return Svg("spectra", to_svg(drawn, "spectra", heading), heading, caption, columns, tuple(rows))


def _scale(ax: Axes, values: Sequence[float]) -> None:
    """Logarithmic where the values span more than a factor of thirty, from zero otherwise."""
    from matplotlib.ticker import NullFormatter

    positive = [v for v in values if v > 0]
    if positive and max(positive) > LOG_SPAN * min(positive):
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_ylim(bottom=0)


def _concentration(values: Sequence[float]) -> float:
    """The share of the largest singular value in their sum; 0 without any."""
    total = math.fsum(values)
    return max(values) / total if total > 0 else 0.0


def _spectra_heading(pairs: Spectra) -> str:
    growth = {k: max(b, default=math.nan) / max(a) for k, (a, b) in pairs.items() if a and max(a) > 0}
    if not growth:
        layer = max(pairs, key=lambda k: _concentration(pairs[k][1]))
        share = number(_concentration(pairs[layer][1]))
        return f"The most concentrated spectrum is that of {layer}: σ1/Σσ = {share}"
    layer = max(growth, key=lambda k: growth[k])
    word = "grows" if growth[layer] > 1 else "changes"
    return f"The largest singular value {word} most in {layer}: {growth[layer]:.1f} times its first value"


def kernel(
    worn: Sequence[DiagnosisReport], fresh: Sequence[DiagnosisReport] = (), name: str = "worn"
) -> Svg | None:
    """The spectrum of the NTK, worn against fresh, with kernel statistics and churn as numbers."""
    if not any("ntk_spectrum" in r.arrays for r in worn):
        return None
    rows = [
        (words, str(per_seed(worn, instrument)), str(per_seed(fresh, instrument)))
        for instrument, words in KERNEL_MEASURES
        if per_seed(worn, instrument).count
    ]
    churn = {
        r.variant: CHURN_WORDS.get(r.variant, f"churn ({r.variant})")
        for report in worn
        for r in report.records.select(instrument="churn", layer="*")
    }
    rows += [
        (words, str(per_seed(worn, "churn", v)), str(per_seed(fresh, "churn", v)))
        for v, words in churn.items()
    ]
    heading = _kernel_heading(worn, fresh)
    caption = (
        "Eigenvalues of the neural tangent kernel on the probe, each divided by the largest. A curve that "
        "falls fast means that few directions of change are left. Churn: how much one step on one batch "
        "moves the outputs on other inputs."
    )
    if len(worn) > 1:
        caption += " One line a seed."
    with figure(height=3.6) as (drawn, (ax,)):
        for reports, whose, place in ((fresh, "fresh", 0), (worn, name, 1)):
            for i, report in enumerate(r for r in reports if "ntk_spectrum" in r.arrays):
                values = sorted((float(v) for v in report.arrays["ntk_spectrum"].flatten()), reverse=True)
                shown = [v / values[0] for v in values if values[0] > 0 and v / values[0] > 1e-9]
                label = whose if i == 0 else None
                ax.plot(range(1, len(shown) + 1), shown, label=label, alpha=0.85, **look(place))
        ax.set_yscale("log")
        ax.set_xlabel("index")
        ax.set_ylabel("eigenvalue / largest")
        drawn.legend(loc="outside right upper")
        columns = ("quantity", name, "fresh")
        return Svg("kernel", to_svg(drawn, "kernel", heading), heading, caption, columns, tuple(rows))


def _kernel_heading(worn: Sequence[DiagnosisReport], fresh: Sequence[DiagnosisReport]) -> str:
    a, b = per_seed(worn, "ntk_effective_rank"), per_seed(fresh, "ntk_effective_rank")
    if not a.count:
        return "The kernel on the probe"
    if not b.count:
        return f"The kernel has an effective rank of {a.mean:.1f} on the probe"
    word = "below" if a.mean < b.mean else "not below"
    return f"The kernel's effective rank is {word} a fresh network's: {a.mean:.1f} against {b.mean:.1f}"
