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
    ("earlier tasks", "kept"),
    ("forgetting", "forgetting"),
)
#: figures beside a table: file -> what it shows
PICTURES = {"courses": "Online accuracy over tasks", "map": "Plasticity and stability"}
TOGETHER = "all-protocols"


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
            "with its 95 % t interval; `against fresh` is paired over seeds. `earlier tasks`: accuracy on at most 20 "
            "earlier tasks, evenly spread, after the last one; `forgetting`: what those lost since each ended, mean "
            "over all looks back.",
            "",
            "| method | seeds | " + " | ".join(h for h, _ in COLUMNS) + " |",
            "|---|---|" + "---|" * len(COLUMNS),
        ]
        for row in data["rows"]:
            cells = " | ".join(cell(row.get(key)) for _, key in COLUMNS)
            lines.append(f"| {row['method']} | {len(row['seeds'])} | {cells} |")
        lines += ["", *pictures(path.parent), *origin(data)]
    return "\n".join(lines)


def pictures(folder: Path) -> list[str]:
    """The figures kept beside a table, as far as there are any."""
    lines: list[str] = []
    for stem, words in PICTURES.items():
        if (folder / f"{stem}.svg").exists():
            lines += [f"![{words}](../../results/{folder.name}/{stem}.svg)", ""]
    return lines


def together_page() -> str:
    """All protocols on the scale of their fresh reference."""
    folder = ROOT / "results" / TOGETHER
    data = read(folder / "overall.json")
    lines = [
        NOTICE,
        "",
        f"# {TOGETHER}",
        "",
        *TOGETHER_WORDS.format(names=", ".join(data["protocols"])).splitlines(),
        "",
    ]
    lines += ["| method | runs | interquartile mean, fresh = 1 | P(beats plain) |", "|---|---|---|---|"]
    for method, row in data["methods"].items():
        numbers = [
            "–" if e is None else f"{e[0]:.3f} [{e[1]:.3f}, {e[2]:.3f}]"
            for e in (row["iqm"], row["better_than_plain"])
        ]
        lines.append(f"| {method} | {row['runs']} | {' | '.join(numbers)} |")
    lines += ["", *(f"Left out: {name}: {why}." for name, why in data["left_out"].items())]
    return "\n".join(
        [*lines, f"![Performance profiles](../../results/{TOGETHER}/profiles.svg)", "", *origin(data)]
    )


TOGETHER_WORDS = """\
Score of a run: mean of its last tenth over that of the fresh reference in the same protocol. Protocols:
{names}.

Interquartile mean over seeds and protocols, probability that a run beats one of the plain network on the same
protocol, each with a 95 % interval that resamples seeds within each protocol (Agarwal et al. 2021). Six protocols
over digits and MNIST with small networks: an order of methods here, not in general."""


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
    pages = {f"results/{name}.md": results_page(name, files) for name, files in folders.items()}
    if (ROOT / "results" / TOGETHER / "overall.json").exists():
        pages[f"results/{TOGETHER}.md"] = together_page()
    return pages
