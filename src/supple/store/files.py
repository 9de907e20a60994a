"""Files that are whole or absent: atomic replacement, appends of one write, locks, names, hashes.

Every failure of the operating system becomes a `StoreError` that says which file and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supple.errors import StoreError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")

ADVICE = {
    errno.ENOSPC: "free some space on that disk and start again: it continues where it stopped",
    errno.EDQUOT: "free some of your quota and start again: it continues where it stopped",
    errno.EFBIG: "raise the file size limit (ulimit -f) and start again: it continues where it stopped",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder on a writable disk",
    errno.ENOTDIR: "choose another folder: a part of this path is a file",
}


@contextlib.contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` with the file and a way out."""
    try:
        yield
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "see the message of the operating system")
        raise StoreError(
            f"could not {action}", found=error.strerror or str(error), where=str(path), do=advice
        ) from error


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def safe_name(name: str) -> str:
    """A name that can only be a file inside its folder: no separators, no leading dot, no ``..``."""
    if not NAME.fullmatch(name) or ".." in name:
        raise StoreError(
            "this is not a name for a file in a run", found=repr(name), do="use letters, digits, _ . -"
        )
    return name


def make_folder(path: Path) -> None:
    with explained("make the folder", path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Temporary name, fsync, `os.replace`, fsync of the folder: whole or absent after a kill."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with explained("write", path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove_temporary(folder: Path) -> None:
    """Clear what a killed writer left half written; call only while holding the lock."""
    with explained("clear temporary files in", folder):
        for leftover in folder.rglob("*.tmp"):
            leftover.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make a rename durable; a platform that cannot open folders has no such need."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any) -> bytes:
    """Canonical bytes: sorted keys, no NaN."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def write_sealed(path: Path, body: Any) -> None:
    """JSON with the SHA-256 of its own body inside."""
    write_atomic(path, to_json({"body": body, "sha256": sha256(to_json(body))}))


#: what is left to do about a damaged run
DAMAGED = "take the folder of the run from a copy, or remove it to compute the run again"


def read_sealed(path: Path) -> Any:
    """Body of a sealed file; damage is an error, never a half-read value."""
    with explained("read", path):
        data = path.read_bytes()
    try:
        outer = json.loads(data)
        body, digest = outer["body"], outer["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            "not a file of a run, or a damaged one", found=type(error).__name__, where=str(path), do=DAMAGED
        ) from error
    if sha256(to_json(body)) != digest:
        raise StoreError(
            "the checksum does not match: the file was changed or damaged", where=str(path), do=DAMAGED
        )
    return body


class Lock:
    """One writer per folder. The lock belongs to the process and vanishes with it, however it ends."""

    def __init__(self, path: Path, wait: float) -> None:
        try:
            import fcntl
        except ImportError:  # no advisory locks on this platform
            self._handle = None
            return
        with explained("open the lock file", path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    self.release()
                    raise StoreError(
                        "another process is writing this run",
                        where=str(path.parent),
                        do="wait for it or end it, then start again",
                    ) from error
                time.sleep(0.05)

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class Appender:
    """An append-only file of lines: one `os.write` a line, a running hash of all that was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained("open", path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            data = path.read_bytes()
        self.offset = len(data)
        self._hash = hashlib.sha256(data)

    def line(self, data: bytes) -> None:
        with explained("append to", self.path):
            left = memoryview(data)
            while left:  # a disk that fills up takes a part first; asking again gets its reason
                left = left[os.write(self._handle, left) :]
        self.offset += len(data)
        self._hash.update(data)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def prefix_digest(self, offset: int) -> str | None:
        """Hash of the first ``offset`` bytes, or None where the file is shorter."""
        with explained("read", self.path):
            data = self.path.read_bytes()
        return sha256(data[:offset]) if len(data) >= offset else None

    def truncate(self, offset: int) -> None:
        with explained("truncate", self.path):
            os.ftruncate(self._handle, offset)
            data = self.path.read_bytes()
        self.offset = len(data)
        self._hash = hashlib.sha256(data)

    def sync(self) -> None:
        with explained("write", self.path):
            os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)
