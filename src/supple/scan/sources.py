"""Checkpoints on disk as names with shapes, whose tensors are read one at a time and never executed.

Understood: a ``.safetensors`` file; a folder with ``*.safetensors.index.json`` or one or more shards (a
Hugging Face model folder is one); a ``.pt``, ``.pth``, ``.ckpt`` or ``.bin`` state dict, read by
``torch.load(weights_only=True)``; a folder of ``.bin`` shards. A refusal is an `InputError` with the path.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supple.errors import InputError
from supple.scan.header import read_header

PICKLED = (".pt", ".pth", ".ckpt", ".bin")
#: under these keys training scripts keep the weights beside optimizer state and counters
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "module", "weights", "params")
#: what a damaged or hostile pickle or zip makes torch.load raise
LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, OSError, EOFError, zipfile.BadZipFile, struct.error,
    AssertionError, AttributeError, ImportError, LookupError, MemoryError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One stored tensor: what is known without reading it, and how to read it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Tensor]
    odd: str = ""  # why its values cannot be read as they stand, whatever its dtype
    place: tuple[
        object, ...
    ] = ()  # where its values lie, the same for tied tensors; () where files cannot tie


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its label (unique in a scan), its path, its entries by name."""

    label: str
    path: Path
    entries: dict[str, Entry]
    config: dict[str, Any]
    adapter: dict[str, Any] = field(default_factory=dict)  #: of peft's adapter_config.json

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())


def open_checkpoint(path: str | Path, label: str = "", limit: int | None = None) -> Checkpoint:
    """Open a file or folder; nothing but headers is read (a pickled file is mapped, not copied).

    Args:
        limit: bytes; a pickled file of the older format, which is read whole, may not be larger.

    Raises:
        InputError: missing, unknown, damaged, or not made of tensors.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("there is no such checkpoint", where=str(path), do="check the path")
    config: dict[str, Any] = {}
    if path.is_dir():
        files = _files_of_folder(path)
        config = _read_json(path / "config.json") if (path / "config.json").is_file() else {}
    else:
        files = [path]
    entries: dict[str, Entry] = {}
    for file in files:
        for entry in _open_file(file, limit):
            if entry.name in entries:
                raise InputError(
                    "two files of this checkpoint hold the same tensor", found=entry.name, where=str(file)
                )
            entries[entry.name] = entry
    if path.is_dir():
        _check_index(path, entries)
    if not entries:
        raise InputError("this checkpoint holds no tensor", where=str(path))
    return Checkpoint(label or path.name, path, entries, config, _adapter_config(path))


def _adapter_config(path: Path) -> dict[str, Any]:
    """What peft says of an adapter: the file in its folder, or beside its weights."""
    folder = path if path.is_dir() else path.parent if path.stem == "adapter_model" else None
    file = folder / "adapter_config.json" if folder is not None else None
    return _read_json(file) if file is not None and file.is_file() else {}


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, on the CPU."""
    return {entry.name: entry.load() for entry in open_checkpoint(path)}


def _open_file(path: Path, limit: int | None) -> list[Entry]:
    if path.stat().st_size == 0:
        raise InputError("this file is empty", where=str(path), do="save the checkpoint again")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in PICKLED:
        return _open_pickled(path, limit)
    raise InputError(
        "this is not a checkpoint that can be read",
        found=f"suffix {path.suffix!r}",
        where=str(path),
        do="pass .safetensors, .pt, .pth, .ckpt, .bin, or a model folder",
    )


def _open_safetensors(path: Path) -> list[Entry]:
    def loader(name: str) -> Callable[[], Tensor]:
        def load() -> Tensor:
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(str(path), framework="pt") as file:
                    return file.get_tensor(name)
            except (SafetensorError, OSError, RuntimeError, AttributeError) as error:
                raise _unreadable(path, error, name) from error

        return load

    return [Entry(_shown(h.name), h.shape, h.dtype, loader(h.name)) for h in read_header(path)]


def _open_pickled(path: Path, limit: int | None) -> list[Entry]:
    # Only the zip format can be mapped; a file of the older format is read whole.
    try:
        mapped = zipfile.is_zipfile(path)  # raises for an archive that says it spans several disks
    except LOAD_ERRORS as error:
        raise _unreadable(path, error) from error
    if limit is not None and not mapped and path.stat().st_size > limit:
        raise InputError(
            "a file of this older format is read whole, which the memory bound does not allow",
            found=f"{path.stat().st_size} bytes",
            where=str(path),
            do="save it again with a newer PyTorch or as .safetensors",
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except LOAD_ERRORS as error:
        raise _unreadable(path, error) from error
    state = find_state(loaded, str(path))
    return [_held(_shown(name), tensor) for name, tensor in state.items()]


def _shown(name: str) -> str:
    """A name that a terminal can be given: control characters are written out."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def _held(name: str, t: Tensor) -> Entry:
    """A tensor of a pickled file, which may be of kinds that no file of weights should hold."""
    dtype = str(t.dtype).removeprefix("torch.")
    if t.is_nested:
        return Entry(name, (0, 0), dtype, lambda: t, "a nested tensor, not a matrix")
    shape, odd = tuple(t.shape), ""
    if t.layout is not torch.strided:
        odd = f"stored as {str(t.layout).removeprefix('torch.')}; save it dense"
    elif t.is_meta:
        odd = "without values (on the meta device)"
    elif t.numel() * t.element_size() > t.untyped_storage().nbytes():
        odd = "its values overlap: it is larger than what is stored"
    place = () if odd or not t.numel() else (t.data_ptr(), t.stride(), shape, dtype)
    return Entry(name, shape, dtype, lambda: t, odd, place)


def find_state(loaded: object, where: str) -> dict[str, Tensor]:
    """The weights in what a checkpoint file held: the mapping itself, or the one under a usual key."""
    if not isinstance(loaded, Mapping):
        raise InputError(
            "this file holds no state dict",
            found=type(loaded).__name__,
            where=where,
            do="save model.state_dict()",
        )
    state = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if state:
        return {k: v.detach() for k, v in state.items()}
    for key in WEIGHT_KEYS:
        if isinstance(loaded.get(key), Mapping):
            return find_state(loaded[key], f"{where}, key {key!r}")
    raise InputError(
        "this file holds no tensors by name",
        found=f"keys {sorted(map(str, loaded))[:8]}",
        where=where,
        do=f"save model.state_dict(), alone or under one of {', '.join(WEIGHT_KEYS)}",
    )


def _files_of_folder(folder: Path) -> list[Path]:
    index = _index_of(folder)
    if index is not None:
        names = sorted(set(_weight_map(index).values()))
        for name in names:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise InputError("the index points outside its folder", found=name, where=str(index))
            if not (folder / name).is_file():
                raise InputError("a shard named by the index is missing", found=name, where=str(index))
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    files = files or sorted(p for s in PICKLED for p in folder.glob(f"*{s}") if p.name != "training_args.bin")
    if not files:
        raise InputError(
            "this folder holds no checkpoint", where=str(folder), do="look for .safetensors or .bin files"
        )
    return files


def _index_of(folder: Path) -> Path | None:
    for pattern in ("*.safetensors.index.json", "*.bin.index.json"):
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    return None


def _weight_map(index: Path) -> dict[str, str]:
    table = _read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()) or not table:
        raise InputError("this index has no weight_map from names to files", where=str(index))
    return table


def _check_index(folder: Path, entries: dict[str, Entry]) -> None:
    index = _index_of(folder)
    missing = sorted(set(_weight_map(index)) - set(entries)) if index is not None else []
    if missing:
        raise InputError(
            "the index promises tensors that no shard holds",
            found=f"{len(missing)} missing, the first {missing[0]!r}",
            where=str(index),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("this JSON file cannot be read", found=str(error)[:120], where=str(path)) from error
    if not isinstance(table, dict):
        raise InputError("this JSON file is not a table", found=type(table).__name__, where=str(path))
    return table


def _strange_start(path: Path) -> str:
    """What a file begins with that is no archive and no pickle; the parser's own words would not help."""
    if path.suffix == ".safetensors" or not path.is_file():
        return ""
    with path.open("rb") as file:
        start = file.read(8)
    return "" if start.startswith((b"PK", b"\x80")) else f"a file that begins with {start!r}"


def _unreadable(path: Path, error: BaseException, name: str = "") -> InputError:
    lines = str(error).splitlines() or [type(error).__name__]
    hostile = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower()
    return InputError(
        "this file wants to run code or is no plain state dict; it was not loaded"
        if hostile
        else "this checkpoint cannot be read; it is damaged or of another format",
        found=_strange_start(path) or f"{type(error).__name__}: {lines[0][:140]}",
        where=f"{path}, {name!r}" if name else str(path),
        do="save tensors alone, best as .safetensors" if hostile else "download or save it again",
    )
