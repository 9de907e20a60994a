"""Decoded data sets on disk: two npy files and their digests, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from supple.streams.data.formats import Arrays

#: raised when what is stored changes its form
FORM = 1
PART = 1 << 24


def cache_root() -> Path:
    """``$SUPPLE_CACHE``, else ``supple`` in the user's cache folder."""
    if own := os.environ.get("SUPPLE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "supple"


def digest(path: Path) -> str:
    """BLAKE2b of a file."""
    sum_ = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(PART):
            sum_.update(part)
    return sum_.hexdigest()


def cached(name: str, files: Sequence[Path], decode: Callable[[], Arrays]) -> Arrays:
    """The decoded arrays, mapped from disk; decoded first where the cache has none of these very files.

    A source that changes (path, size, time) is another entry. An entry that is damaged is made anew.
    """
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.blake2b(json.dumps([FORM, stats]).encode(), digest_size=8).hexdigest()
    folder = cache_root() / "data" / f"{name}-{key}"
    if not _whole(folder):
        images, labels = decode()
        _write(folder, np.ascontiguousarray(images), labels)
    # copy on write: a caller may write into what it got, and the file stays as it is
    return np.load(folder / "images.npy", mmap_mode="c"), np.load(folder / "labels.npy")


def _whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "digests.json").read_text())
        return all(digest(folder / name) == sums[name] for name in ("images.npy", "labels.npy"))
    except (OSError, ValueError, KeyError):
        return False


def _write(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        np.save(work / "images.npy", images)
        np.save(work / "labels.npy", labels)
        sums = {name: digest(work / name) for name in ("images.npy", "labels.npy")}
        (work / "digests.json").write_text(json.dumps(sums))
        if folder.exists() and not _whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            work.replace(folder)
        except OSError:  # another process was first; what it wrote is the same
            if not _whole(folder):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
