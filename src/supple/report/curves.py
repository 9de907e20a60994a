"""Curves over the tasks, one line a method: how well it learns, and how many units it has lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from supple.report.data import Arm, Spread, Story, stretch
from supple.report.style import ROLE_PLACE, Svg, cross, figure, look, number, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: a curve of more tasks than this is drawn as a running mean of this share of them
SMOOTH_SHARE = 0.05


def accuracy(story: Story) -> Svg:
    """Online accuracy over tasks: mean over seeds, band from the smallest to the largest seed."""
    worn, reference = story.arm("worn"), story.arm("reference")
    heading = "Online accuracy of each method, task by task"
    if worn is not None and reference is not None:
        w, r = worn.late(story.window), reference.late(story.window)
        gap = r.mean - w.mean
        heading = (
            f"The plain network ends {gap:.2f} below a fresh one: {w.mean:.2f} against {r.mean:.2f}"
            if gap > 0
            else f"The plain network keeps up with a fresh one: {w.mean:.2f} against {r.mean:.2f}"
        )
    rows = tuple(
        (a.title, str(a.early(story.window)), str(a.late(story.window)), a.settings or "–")
        for a in story.ordered
    )
    caption = (
        f"Share of samples answered right at first sight, before the update, {_smoothing(story.tasks)}. "
        f"Line: mean of {len(story.seeds)} seeds; band: smallest to largest seed. Stream: {story.stream}."
    )
    return _curves(
        story,
        "accuracy",
        heading,
        caption,
        "online accuracy",
        lambda a: (
            range(1, story.tasks + 1),
            [running_mean(seed, _width(story.tasks)) for seed in a.online],
        ),
        ("method", stretch("first", story.window), stretch("last", story.window), "settings"),
        rows,
    )


def dead(story: Story) -> Svg:
    """Dead units over tasks, by method."""
    arms = [a for a in story.ordered if any(not math.isnan(v) for seed in a.dead for v in seed)]
    worn = story.arm("worn")
    late = worn.last_dead() if worn is not None else Spread.of([])
    heading = (
        f"{late.mean:.0%} of the plain network's hidden units are dead at the end"
        if late.count
        else "Dead units, task by task"
    )
    caption = (
        "Share of hidden units that answer to no sample of a probe batch of the task at hand, measured after "
        "some of the tasks. Methods without hidden ReLU units are left out."
    )
    rows = tuple((a.title, str(a.last_dead())) for a in arms)
    return _curves(
        story,
        "dead",
        heading,
        caption,
        "dead units",
        lambda a: (a.dead_tasks, list(a.dead)),
        ("method", f"after task {story.tasks}"),
        rows,
        arms,
    )


def _curves(
    story: Story,
    name: str,
    heading: str,
    caption: str,
    axis: str,
    take: Callable[[Arm], tuple[Sequence[int], list[Sequence[float]]]],
    columns: tuple[str, ...],
    rows: tuple[tuple[str, ...], ...],
    arms: Sequence[Arm] | None = None,
) -> Svg:
    with figure(height=4.2) as (drawn, (ax,)):
        for arm in arms if arms is not None else story.ordered:
            _draw(ax, *take(arm), arm)
        ax.set_xlabel("task")
        ax.set_ylabel(axis)
        ax.set_ylim(0, None if name == "dead" else 1)
        ax.margins(x=0.01)
        drawn.legend(loc="outside right upper", handlelength=2.6)
        return Svg(name, to_svg(drawn, name, heading), heading, caption, columns, rows)


def _draw(ax: Axes, tasks: Sequence[int], seeds: Sequence[Sequence[float]], arm: Arm) -> None:
    spreads = [Spread.of(values) for values in zip(*seeds, strict=True)]
    x = list(tasks)[: len(spreads)]
    style = look(ROLE_PLACE[arm.role])
    ax.plot(x, [s.mean for s in spreads], label=arm.title, **style)
    ax.fill_between(
        x, [s.lo for s in spreads], [s.hi for s in spreads], color=style["color"], alpha=0.15, linewidth=0
    )


def _width(tasks: int) -> int:
    return max(1, round(SMOOTH_SHARE * tasks))


def _smoothing(tasks: int) -> str:
    return f"running mean of {_width(tasks)} tasks" if _width(tasks) > 1 else "task by task"


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the last ``width`` values up to each place (fewer at the start); NaN are left out.

    >>> running_mean([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    return [Spread.of(values[max(0, i + 1 - width) : i + 1]).mean for i in range(len(values))]


def stability_map(story: Story) -> Svg:
    """Plasticity against stability, one point a method, bars over seeds."""
    arms = [a for a in story.ordered if a.stability and Spread.of(a.stability).count]
    rows = tuple((a.title, str(a.late(story.window)), str(Spread.of(a.stability))) for a in arms)
    heading = _map_heading(story, arms)
    caption = (
        f"Right: learns new tasks well (online accuracy, {stretch('last', story.window)}). Up: remembers "
        "(accuracy on earlier tasks at the end). Bars: smallest to largest seed."
    )
    with figure(height=4.6) as (drawn, (ax,)):
        for arm in arms:
            x, y = arm.late(story.window), Spread.of(arm.stability)
            cross(ax, (x.mean, x.lo, x.hi), (y.mean, y.lo, y.hi), ROLE_PLACE[arm.role], arm.title)
        ax.set_xlabel(f"plasticity: online accuracy, {stretch('last', story.window)}")
        ax.set_ylabel("stability: accuracy on earlier tasks")
        ax.margins(0.12)
        drawn.legend(loc="outside right upper")
        columns = ("method", "plasticity", "stability")
        return Svg("map", to_svg(drawn, "map", heading), heading, caption, columns, rows)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _map_heading(story: Story, arms: Sequence[Arm]) -> str:
    if not arms:
        return "Plasticity and stability were not measured"
    best = max(arms, key=lambda a: a.late(story.window).mean)
    memory = max(arms, key=lambda a: Spread.of(a.stability).mean)
    return _capital(
        f"{best.title} learns best ({number(best.late(story.window).mean, 2)}); {memory.title} remembers "
        f"most ({number(Spread.of(memory.stability).mean, 2)})"
    )
