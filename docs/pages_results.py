"""One page for each protocol with committed results, and their index."""

from __future__ import annotations

from pathlib import Path

from page import NOTICE, ROOT, cell, origin, read

#: what a column of a results table shows: (heading, field of the row)
COLUMNS = (
    ("first tasks", "first"),
    ("last tenth", "last"),
    ("area", "area"),
    ("below own peak", "from_peak"),
    ("against fresh", "against_fresh"),
)


def results_page(name: str, files: list[Path]) -> str:
    """One page per protocol: each committed preset as a table, with the command that made it."""
    lines = [NOTICE, "", f"# {name}", ""]
    for path in files:
        data = read(path)
        protocol = data["protocol"]
        shape = "-".join(str(n) for n in (protocol["inputs"], *protocol["hidden"], protocol["outputs"]))
        lines += [
            f"## Preset `{path.stem}`",
            "",
            f"{protocol['tasks']} tasks, batch {protocol['batch']}, network {shape}, {protocol['optimizer']} with "
            f"learning rate {protocol['lr']}. Online accuracy (each batch before its update), mean over seeds "
            "with its 95 % t interval; `against fresh` is paired over seeds.",
            "",
            "| method | seeds | " + " | ".join(h for h, _ in COLUMNS) + " |",
            "|---|---|" + "---|" * len(COLUMNS),
        ]
        for row in data["rows"]:
            cells = " | ".join(cell(row.get(key)) for _, key in COLUMNS)
            lines.append(f"| {row['method']} | {len(row['seeds'])} | {cells} |")
        lines += ["", *origin(data)]
    return "\n".join(lines)


def results_index(names: list[str]) -> str:
    """The list of results pages, of all kinds."""
    lines = [NOTICE, "", "# Results", "", "Every figure here was measured by the command beside it.", ""]
    return "\n".join([*lines, *(f"* [{n}]({n}.md)" for n in names), ""])


def tables(folder: Path) -> list[Path]:
    """The result files of a protocol that hold a table of methods."""
    found = sorted(folder.glob("*.json"))
    return [p for p in found if {"rows", "protocol"} <= set(read(p))]


def results() -> dict[str, str]:
    """Path below docs/ -> content, for every protocol with committed results."""
    folders = {p.name: tables(p) for p in sorted((ROOT / "results").iterdir()) if p.is_dir()}
    folders = {name: files for name, files in folders.items() if files}
    return {f"results/{name}.md": results_page(name, files) for name, files in folders.items()}
