"""Check the documentation: every relative link resolves, every `supple` command shown exists."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^\s*(?:\$ )?supple ([a-z][a-z-]*)", re.MULTILINE)


def pages() -> list[Path]:
    """All Markdown pages of the repository outside environments."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    return sorted(p for p in found if ".venv" not in p.parts)


def broken_links(page: Path) -> list[str]:
    """Relative links of the page that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    targets = [t for t in LINK.findall(text) if not re.match(r"[a-z]+:", t)]
    return [f"{page.relative_to(ROOT)}: broken link {t}" for t in targets if not (page.parent / t).exists()]


@functools.cache
def exists(command: str) -> bool:
    """Whether the command line answers ``supple COMMAND --help``."""
    from supple.cli import main as supple

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return supple([command, "--help"]) == 0


def unknown_commands(page: Path) -> list[str]:
    """`supple` sub-commands shown on the page that the command line does not have."""
    shown = sorted(set(COMMAND.findall(page.read_text(encoding="utf-8"))))
    return [f"{page.relative_to(ROOT)}: unknown command `supple {c}`" for c in shown if not exists(c)]


def main() -> int:
    problems = [p for page in pages() for p in (*broken_links(page), *unknown_commands(page))]
    print("\n".join(problems) or f"docs: {len(pages())} pages, no broken link, no unknown command")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
