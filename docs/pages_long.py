"""The pages of runs over thousands of tasks: means over blocks of tasks."""

from __future__ import annotations

from typing import Any

from page import NOTICE, ROOT, origin, read

HEAD = (
    "Runs of thousands of tasks, one seed each. Per block of tasks: **online**, mean accuracy of the batches before",
    "they are learned; **end**, mean accuracy on the images that a task is judged on, after it was learned; dead and",
    "dormant units and GraMa (shares of all units) at the last look of the block.",
    "",
)
COLUMNS = ("online_accuracy", "end_accuracy", "dead", "dormant", "grama")


def long_runs() -> dict[str, str]:
    """Path below docs/ -> content, for every result that holds blocks of tasks."""
    pages = {}
    for path in sorted((ROOT / "results").glob("*/*.json")):
        data = read(path)
        if "long" not in data:
            continue
        title = f"# {data['long']['name']}, preset {path.stem}"
        lines = [NOTICE, "", title, "", *HEAD, _setting(data["long"]), ""]
        for run in data["runs"]:
            lines += _table(run, data["block"])
        pages[f"results/{path.parent.name}.md"] = "\n".join([*lines, *origin(data)])
    return pages


def _setting(made: dict[str, Any]) -> str:
    widths, hidden = ("-".join(map(str, made[k])) for k in ("widths", "hidden"))
    return (
        f"{widths} channels, {hidden} hidden units; {made['optimizer']} with learning rate {made['lr']}, batch "
        f"{made['batch']}, {made['epochs']} epochs a task."
    )


def _table(run: dict[str, Any], block: int) -> list[str]:
    ends = [r["end_accuracy"] for r in run["rows"]]
    lines = [
        f"## {run['method']}, {run['tasks']} tasks",
        "",
        f"End accuracy {ends[0]:.3f} in the first block, {ends[-1]:.3f} in the last, {max(ends):.3f} in the best.",
        "",
        "| tasks | online | end | dead | dormant | GraMa |",
        "|---|---|---|---|---|---|",
    ]
    for row in run["rows"]:
        cells = (f"{row[k]:.3f}" if k in row else "–" for k in COLUMNS)
        lines.append(f"| {row['first']}–{row['first'] + block - 1} | " + " | ".join(cells) + " |")
    return [*lines, ""]
