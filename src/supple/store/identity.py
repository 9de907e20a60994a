"""Which run is this, and with what was it made? Comparison of manifests, versions, git state."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import supple
from supple.errors import StoreError


def environment() -> dict[str, Any]:
    """Versions, the machine, and the git state of the package's checkout, if any."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "git": git_state(Path(supple.__file__).parent),
    }


def versions() -> dict[str, str]:
    """Versions that decide the numbers."""
    return {"supple": supple.__version__, "torch": str(torch.__version__)}


@lru_cache(maxsize=1)
def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout that holds ``folder``; None outside a checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        # an environment inside somebody's repository is not a checkout of this package
        if not _git(folder, "ls-files", "--", "__init__.py"):
            return None
        return {"commit": commit, "clean": not _git(folder, "status", "--porcelain", "--", ".")}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def difference(there: Any, here: Any, path: str = "") -> list[str]:
    """Where two nested values differ, as ``path: there -> here``.

    >>> difference({"seed": 1, "lr": 0.1}, {"seed": 2, "lr": 0.1})
    ['seed: 1 -> 2']
    """
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in sorted(set(there) | set(here)):
            inner = f"{path}.{key}" if path else str(key)
            found += difference(there.get(key, "absent"), here.get(key, "absent"), inner)
        return found
    return [] if there == here else [f"{path}: {there} -> {here}"]


def refuse_other(path: Path, body: dict[str, Any], identity: dict[str, Any], version: int) -> None:
    """Raise if the manifest on disk belongs to another run."""
    if body.get("format") != version:
        raise StoreError(
            "a run of another format version", found=body.get("format"), where=str(path),
            do=f"read it with the version of supple that wrote it (this one reads format {version})",
        )  # fmt: skip
    if changed := difference(body["run"], identity):
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise StoreError(
            "this folder holds a run of another configuration",
            found="; ".join(changed[:6]) + more, where=str(path),
            do="choose another folder, or the configuration of this one",
        )  # fmt: skip


def refuse_other_versions(path: Path, body: dict[str, Any]) -> None:
    """Raise if an unfinished run was begun with versions whose numbers may differ."""
    if changed := difference(body["versions"], versions()):
        raise StoreError(
            "this run was begun with other versions and cannot be continued bit for bit",
            found="; ".join(changed), where=str(path),
            do="finish it with those versions, or choose a new folder",
        )  # fmt: skip


def refuse_foreign(path: Path) -> None:
    """Raise if the folder has files and no manifest: it is somebody's, not a run."""
    if (path / "manifest.json").exists():
        return
    strangers = sorted(p.name for p in path.iterdir() if p.name != "lock" and p.suffix != ".tmp")
    if strangers:
        raise StoreError(
            "this folder holds something else than a run", found=", ".join(strangers[:5]), where=str(path),
            do="choose an empty or new folder",
        )  # fmt: skip
