"""What a command says and where: results on stdout; progress on stderr, live on a terminal, else plain."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

PLAIN_EVERY = 5.0  # seconds between two plain progress lines


def say(text: str = "") -> None:
    """A line of result."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line about the work itself."""
    print(text, file=sys.stderr, flush=True)


def emit_json(table: Mapping[str, Any], target: Path | None) -> None:
    """The table as JSON into a file, or onto stdout for ``-``; nothing without a target."""
    if target is None:
        return
    text = json.dumps(table, indent=1, allow_nan=False)
    if str(target) == "-":
        say(text)
    else:
        write_text(target, text + "\n")


def write_text(path: str | Path, text: str) -> Path:
    """Write a whole file at once, so that a kill leaves the old one or the new one."""
    import os

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)
    return target


def wrap(text: str) -> str:
    """A paragraph in 80 columns."""
    return textwrap.fill(text, 80, subsequent_indent="  ", break_on_hyphens=False)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(7.4), duration(95), duration(3700)
    ('7 s', '1 min 35 s', '1 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """One bar, from 0 to 1, with the time left.

    On a terminal a live bar of `rich`; elsewhere a plain line every few seconds and one at the end.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._started = self._spoken = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
                TextColumn("{task.fields[left]}"), TextColumn("[dim]{task.fields[detail]}"),
            )  # fmt: skip
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self.title, total=1.0, left="", detail="")
            self._bar.start()
        return self

    def update(self, fraction: float, detail: str = "", left: float | None = None) -> None:
        """Set how much is done; ``left`` in seconds, None while it is unknown."""
        remaining = "" if left is None else f"{duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction, left=remaining, detail=detail)
        elif time.monotonic() - self._spoken >= PLAIN_EVERY:
            self._spoken = time.monotonic()
            note(", ".join(p for p in (f"{self.title}: {fraction:.0%}", remaining, detail) if p))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            note(f"{self.title}: done in {duration(time.monotonic() - self._started)}")
