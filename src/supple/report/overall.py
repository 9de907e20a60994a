"""The part of a comparison that puts all protocols on one scale: its table and the performance profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supple.report.style import Svg, figure, number, save, to_svg, turn


@dataclass(frozen=True)
class Profile:
    """One method: share of its runs above each threshold, with the interval."""

    title: str
    shares: Sequence[float]
    lo: Sequence[float]
    hi: Sequence[float]


@dataclass(frozen=True)
class OverallPart:
    """Profiles by method in the order of the table, and the table itself as text cells."""

    label: str
    note: str
    thresholds: Sequence[float]
    profiles: Sequence[Profile]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def profiles(part: OverallPart, bands: bool, folder: Path | None = None) -> Svg:
    """Share of runs above a share of the fresh level, one line a method."""
    heading = f"{part.label}: how many runs reach which share of the fresh level"
    caption = part.note + (" Band: 95 % interval over seeds." if bands else "")
    with figure(height=4.4) as (drawn, (ax,)):
        for place, each in enumerate(part.profiles):
            style = turn(place)
            ax.plot(part.thresholds, each.shares, label=each.title, **style)
            if bands:
                ax.fill_between(
                    part.thresholds, each.lo, each.hi, color=style["color"], alpha=0.12, linewidth=0
                )
        ax.set_xlabel("share τ of the fresh level")
        ax.set_ylabel("runs above τ")
        ax.set_ylim(-0.02, 1.02)
        ax.margins(x=0.01)
        drawn.legend(loc="outside right upper", handlelength=2.6, fontsize=9)
        name = "all-protocols-profiles"
        save(drawn, folder, name)
        rows = tuple((p.title, *(number(v, 2) for v in p.shares)) for p in part.profiles)
        columns = ("method", *(f"{t:g}" for t in part.thresholds))
        return Svg(name, to_svg(drawn, name, heading), heading, caption, columns, rows)
