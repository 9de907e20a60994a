"""A folder of texts, one file a domain: plays, code, letters, whatever is to be learned one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from supple.errors import InputError
from supple.streams.data.languages import FEWEST_BYTES

MOST_BYTES = 4_000_000  # of one file; the rest of a longer one is not read
SUFFIXES = (".txt", ".jsonl")
PUT = "put one .txt file a domain into it, or one folder a domain with train.txt or train.jsonl"
#: fields of a row of .jsonl that are text, in this order
FIELDS = ("question", "answer", "text")


def texts(folder: Path) -> dict[str, Tensor]:
    """Name of a domain -> its bytes as int64 tokens, in order of names.

    A domain is ``NAME.txt``, or ``NAME/train.txt``; ``.jsonl`` in their place gives the fields ``question``, ``answer``
    and ``text`` of its rows. Other files are not looked at. Of a file longer than 4 MB the beginning is read.

    Raises:
        InputError: no such folder, fewer than two domains, a name that occurs twice, a file that is no UTF-8 text or is
            shorter than 9 kB; the file is named.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise InputError("the texts need a folder", found=found, where=str(folder), do=PUT)
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in SUFFIXES]
    named = [(p.stem, p) for p in files]
    for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
        named += [(inner.name, f) for s in SUFFIXES if (f := inner / f"train{s}").is_file()]
    if len(named) < 2:
        raise InputError(
            "one domain after another takes two or more", found=len(named), where=str(folder), do=PUT
        )
    names = [name for name, _ in named]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError("two files give the same domain", found=twice[0], where=str(folder))
    return {name: _read(path) for name, path in sorted(named)}


def _read(path: Path) -> Tensor:
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES)
    if path.suffix == ".jsonl":
        raw = _rows(raw, path)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if (
            len(raw) < MOST_BYTES or error.start < MOST_BYTES - 4
        ):  # a letter cut in two at the end is no damage
            raise InputError(
                "this file is no UTF-8 text", found=f"byte {error.start}", where=str(path)
            ) from error
        raw = raw[: error.start]
    if b"\0" in raw:
        raise InputError("this file is no text", found="a zero byte", where=str(path))
    if len(raw) < FEWEST_BYTES:
        raise InputError("this text is too short for a round", found=f"{len(raw)} bytes", where=str(path),
                         do=f"give {FEWEST_BYTES} bytes or more")  # fmt: skip
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()


def _rows(raw: bytes, path: Path) -> bytes:
    """The text of rows, an empty line between two of them; what follows the last whole line is left out."""
    lines = raw.split(b"\n")
    lines = lines[:-1] if len(raw) == MOST_BYTES else lines
    found = []
    for number, line in enumerate((n for n in lines if n.strip()), 1):
        try:
            row = json.loads(line)
            parts = [row[f] for f in FIELDS if isinstance(row.get(f), str)]
        except (ValueError, AttributeError, RecursionError) as error:
            raise InputError(
                "a row of this file is no JSON object", found=f"row {number}", where=str(path)
            ) from error
        if not parts:
            raise InputError(
                f"a row of this file has none of {', '.join(FIELDS)}", found=f"row {number}", where=str(path)
            )
        found.append("\n".join(parts))
    return "\n\n".join(found).encode("utf-8", errors="replace")
