"""The safetensors header, read and checked without any library, before a single value is touched.

Eight bytes of little-endian length, that many bytes of JSON (name -> dtype, shape, data_offsets), then the
data. What does not add up (a length beyond the file, offsets with holes or overlaps, a shape that does not
fill its bytes) is refused with the number that is wrong.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supple.errors import InputError

MAX_HEADER_BYTES = 100_000_000
#: bits of one value of every dtype the format knows and torch can hold
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor as the header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> list[HeaderEntry]:
    """The entries of a safetensors file in the order of their data.

    Raises:
        InputError: the file is too short, its header is no JSON object, or an entry contradicts the file.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise InputError(
                "this is not a complete safetensors file",
                found=f"{size} bytes, header length {length}" if len(prefix) == 8 else f"{size} bytes",
                where=str(path),
                do="download or save it again",
            )
        raw = file.read(length)
    table = _parse(raw, path)
    entries = [_entry(name, row, path) for name, row in table.items() if name != "__metadata__"]
    entries.sort(key=lambda e: (e.begin, e.end))
    _check_layout(entries, size - 8 - length, path)
    return entries


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(
            "the header of this safetensors file is damaged", found=_brief(error), where=str(path)
        ) from error
    if not isinstance(table, dict):
        raise InputError(
            "the header of this safetensors file is damaged", found=type(table).__name__, where=str(path)
        )
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _entry(name: str, row: object, path: Path) -> HeaderEntry:
    def refuse(found: object) -> InputError:
        return InputError(
            "an entry of this safetensors header is damaged", found=found, where=f"{path}, {name!r}"
        )

    if not isinstance(row, Mapping):
        raise refuse(row)
    dtype, shape, offsets = row.get("dtype"), row.get("shape"), row.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise refuse(f"dtype {dtype!r}")
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
        raise refuse(f"shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise refuse(f"data_offsets {offsets!r}")
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - begin):
        raise refuse(f"shape {shape} of {dtype} needs {bits / 8:g} bytes, the offsets give {end - begin}")
    return HeaderEntry(name, dtype, tuple(shape), begin, end)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_layout(entries: list[HeaderEntry], data_bytes: int, path: Path) -> None:
    at = 0
    for entry in entries:
        if entry.begin != at:
            kind = "a hole" if entry.begin > at else "an overlap"
            raise InputError(
                "the data of this safetensors file is damaged",
                found=f"{kind} before byte {entry.begin}",
                where=f"{path}, {entry.name!r}",
            )
        at = entry.end
    if at != data_bytes:
        raise InputError(
            "this safetensors file is cut short" if at > data_bytes else "this safetensors file has a tail",
            found=f"{data_bytes} bytes of data",
            where=str(path),
            do=f"the header promises {at}; download or save it again",
        )


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
