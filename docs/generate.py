"""Write the generated pages of docs/: results from results/*/*.json, instruments and interventions from the registries.

``--check`` fails if one is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page import ROOT
from pages_claims import claims
from pages_lab import lab, matrix, trials
from pages_lm import rounds
from pages_long import long_runs
from pages_registry import instruments, interventions
from pages_results import results, results_index
from pages_studies import studies

#: each source of generated pages; add one function here for a new kind of page
SOURCES: tuple[Callable[[], dict[str, str]], ...] = (
    results,
    long_runs,
    studies,
    lab,
    matrix,
    trials,
    rounds,
    claims,
    instruments,
    interventions,
)


def main(arguments: list[str]) -> int:
    pages: dict[str, str] = {}
    for source in SOURCES:
        pages.update(source())
    names = sorted(Path(n).stem for n in pages if n.startswith("results/"))
    pages["results/README.md"] = results_index(names)
    stale = [n for n, text in pages.items() if not _same(ROOT / "docs" / n, text)]
    if "--check" in arguments:
        print(
            "\n".join(f"out of date: docs/{n}; do: make docs" for n in stale)
            or f"{len(pages)} pages up to date"
        )
        return 1 if stale else 0
    for name in stale:
        target = ROOT / "docs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(pages[name], encoding="utf-8")
    print(f"{len(pages)} pages, {len(stale)} rewritten")
    return 0


def _same(path: Path, text: Any) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
