"""What `supple bench run` is asked for: hidden layers, methods, and what is said of them before they run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supple.errors import InputError

if TYPE_CHECKING:
    from supple.bench.protocols import Protocol
    from supple.cli.bench import BenchRun


def widths(text: str) -> dict[str, Any]:
    """``--layers``: the protocol's fields; an error names what is no width."""
    parts = text.split(",")
    if not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        raise InputError("--layers takes whole numbers separated by commas", found=text, do="such as 64,64")
    found = tuple(int(p) for p in parts)
    return {"hidden": found, "variant": "layers-" + "-".join(map(str, found))}


def names(text: str) -> list[str]:
    """``--methods``: names separated by commas, spaces around them or not; each once.

    Raises:
        InputError: no name, or one twice.
    """
    found = [name for part in text.split(",") if (name := part.strip())]
    if not found:
        raise InputError("--methods takes names separated by commas", found=repr(text))
    if twice := sorted({n for n in found if found.count(n) > 1}):
        raise InputError("a method is named twice", found=", ".join(twice), do="name each once")
    return found


def name_data(folder: Path | None) -> None:
    """``--data``: the folder of the data sets, for this process and the workers, which inherit it."""
    if folder is None:
        return
    if not folder.is_dir():
        raise InputError("--data: there is no such folder", where=str(folder))
    os.environ["SUPPLE_DATA"] = str(folder)


def changes(asked: BenchRun) -> dict[str, Any]:
    """What ``--tasks``, ``--optimizer`` and ``--layers`` change of a preset; the last two are in the run's name."""
    found: dict[str, Any] = {k: v for k in ("tasks", "optimizer") if (v := getattr(asked, k)) is not None}
    marks = [asked.optimizer] if asked.optimizer else []
    if asked.layers is not None:
        layers = widths(asked.layers)
        marks.append(layers.pop("variant"))
        found |= layers
    return {**found, "variant": "-".join(marks)} if marks else found


def chosen(protocol: Protocol, wanted: str) -> list[str]:
    """The methods of a list of names. Of ``all``, those that the network has no form of are left out, and named.

    Raises:
        InputError: a name that is unknown, or that the protocol's network has no form of, before anything runs.
    """
    from supple.bench import methods
    from supple.cli.console import note

    kept: list[str] = []
    refused: dict[str, list[str]] = {}
    for name in list(methods.METHODS) if wanted.strip() == "all" else names(wanted):
        try:
            methods.get(name).check(protocol)
        except InputError as error:
            if wanted.strip() != "all":
                raise
            refused.setdefault(error.what, []).append(name)
        else:
            kept.append(name)
    for why, some in refused.items():
        note(f"left out: {', '.join(some)}: {why}")
    if protocol.hidden_boundaries:
        _tell_rhythm(protocol, kept)
    return kept


def _tell_rhythm(protocol: Protocol, names: list[str]) -> None:
    """Say which methods act on steps because nobody tells them a boundary, and how many steps there are."""
    from supple.bench import methods
    from supple.cli.console import note

    told = dataclasses.replace(protocol, hidden_boundaries=False)
    found = [n for n in names if (m := methods.get(n)).settings_in(protocol) != m.settings_in(told)]
    if not found:
        return
    steps = protocol.tasks * protocol.sequence(0).task(0).steps(protocol.batch, protocol.epochs)
    note(
        f"hidden boundaries: {', '.join(found)} every {methods.UNTOLD_EVERY} steps instead of every task "
        f"(a run has about {steps} steps)"
    )
