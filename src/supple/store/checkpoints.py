"""Checkpoints of a run: a safetensors file and a JSON file that seals it.

The JSON file is written last and names the SHA-256 of the tensor file, so a checkpoint exists when
its JSON file does. The two newest are kept: should the newest be damaged on disk, the run goes on
from the one before and recomputes the same records.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from supple.errors import StoreError
from supple.store.encode import decode, encode
from supple.store.files import explained, make_folder, read_sealed, sha256, write_atomic, write_sealed

FORMAT = 1
KEEP = 2


def save(folder: Path, state: Any, *, offset: int, digest: str) -> int:
    """Write the next checkpoint and forget the oldest; returns its number."""
    make_folder(folder)
    number = max(numbers(folder), default=-1) + 1
    tensors: dict[str, Any] = {}
    tree = encode(state, tensors)
    data = safetensors.torch.save(tensors)
    write_atomic(folder / f"{number:08d}.safetensors", data)
    body = {
        "format": FORMAT,
        "number": number,
        "tensors": sha256(data),
        "records_bytes": offset,
        "records_sha256": digest,
        "state": tree,
    }
    write_sealed(folder / f"{number:08d}.json", body)
    prune(folder)
    return number


def numbers(folder: Path) -> list[int]:
    """Numbers of the checkpoints that were completed, ascending."""
    return sorted(int(p.stem) for p in folder.glob("*.json") if p.stem.isdigit())


def prune(folder: Path) -> None:
    """Keep the newest; seals go first, so that no sealed checkpoint lacks its tensors."""
    keep = {f"{n:08d}" for n in numbers(folder)[-KEEP:]}
    with explained("remove old checkpoints from", folder):
        for suffix in ("*.json", "*.safetensors"):
            for path in folder.glob(suffix):
                if path.stem not in keep:
                    path.unlink(missing_ok=True)


def read(folder: Path, number: int) -> dict[str, Any]:
    """One checkpoint: its body with ``state`` decoded. Damage is a `StoreError`."""
    path = folder / f"{number:08d}.json"
    body = read_sealed(path)
    if body.get("format") != FORMAT:
        raise StoreError(
            "a checkpoint of another format version", found=body.get("format"), where=str(path),
            do=f"read it with the version of supple that wrote it (this one reads format {FORMAT})",
        )  # fmt: skip
    tensor_path = path.with_suffix(".safetensors")
    with explained("read", tensor_path):
        data = tensor_path.read_bytes()
    if sha256(data) != body["tensors"]:
        raise StoreError(
            "the checksum does not match: the file was changed or damaged", where=str(tensor_path)
        )
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise StoreError("not a safetensors file", found=str(error), where=str(tensor_path)) from error
    return {**body, "state": decode(body["state"], tensors)}
