"""The pages of the studies of agents: remedies beside the plain agent and the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from page import NOTICE, cell, origin, read


def agents_page(path: Path) -> str:
    """`rl-gym` and `rl-minatar`: a table for each protocol, and the course over tasks."""
    data = read(path)
    name, answer = path.parent.name, data["answer"]
    lines = [NOTICE, "", f"# {name}", "", *HEAD, f"{answer['seeds']} seeds, mean with 95 % interval.", ""]
    for protocol in dict.fromkeys(a["protocol"] for a in answer["agents"]):
        mine = [a for a in answer["agents"] if a["protocol"] == protocol]
        mine.sort(key=lambda a: -a["returns"]["value"])
        lines += [f"## {protocol}", "", *_table(mine), "", *_courses(mine), ""]
    return "\n".join([*lines, *origin(data)])


def _table(mine: list[dict[str, Any]]) -> list[str]:
    heads = ["method", "return", "share of the gap", *mine[0]["health"]]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for a in mine:
        health = ["–" if v is None else f"{v:.2f}" for v in a["health"].values()]
        cells = [a["method"], _level(a["returns"]), _level(a["share"]), *health]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _courses(mine: list[dict[str, Any]]) -> list[str]:
    """Return of each task; as a share of the oracle's where the study counts in oracles."""
    lines = ["| method | " + " | ".join(mine[0]["tasks"]) + " |", "|" + "---|" * (1 + len(mine[0]["tasks"]))]
    for a in mine:
        course = a["relative"] or a["course"]
        digits = 2 if a["relative"] else 0
        cells = ["–" if v is None else f"{v:.{digits}f}" for v in course]
        lines.append(f"| {a['method']} | " + " | ".join(cells) + " |")
    return lines


def _level(entry: dict[str, float] | None) -> str:
    """An interval; of one seed the value alone."""
    if entry is None:
        return "no gap"
    return cell(entry) if entry.get("lo") is not None else f"{entry['value']:.3f}"


HEAD = (
    "Does an agent stop learning from task to task, and what helps? After Tang et al. 2025 (arXiv 2506.00592). The",
    "oracle (`fresh`) has new networks in every task. Return: mean over the tasks after the first, in which all",
    "methods are new; in `rl-minatar` each task's return counts as a share of the oracle's mean in that task. Share of",
    "the gap: (method − plain) / (oracle − plain), where the oracle is better than the plain agent. The other columns",
    "are of the networks at the end of the last task; trainability is relative to fresh networks.",
    "",
)
