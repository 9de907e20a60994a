"""Readers of the published file formats: idx, CIFAR pickles, hub parquet, npz batches, image folders.

Each gives uint8 images (N, C, H, W) and int64 labels (N,), and refuses what is not of its format.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from supple.errors import InputError, MissingExtraError

Arrays = tuple[np.ndarray, np.ndarray]
#: all that the official CIFAR pickles name; every other name is refused before anything of it is called
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes, raw or gzipped: 00 00 08 rank, big-endian sizes, data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read()
    except (OSError, EOFError) as error:
        raise InputError("cannot read the file", found=error, where=str(path)) from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise InputError("not an idx file of unsigned bytes", found=raw[:4].hex(), where=str(path))
    rank = raw[3]
    sizes = tuple(int(n) for n in np.frombuffer(raw[4 : 4 + 4 * rank], ">u4"))
    data = np.frombuffer(raw, np.uint8, offset=min(4 + 4 * rank, len(raw)))
    if len(sizes) != rank or data.size != int(np.prod(sizes, dtype=np.int64)):
        raise InputError(
            "the idx file is cut short or too long", found=f"{data.size} of {sizes}", where=str(path)
        )
    return data.reshape(sizes)


def idx_pair(files: Sequence[Path], label: str) -> Arrays:
    """Images and labels in two idx files, in this order."""
    images, labels = read_idx(files[0]), read_idx(files[1])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(
            "images and labels do not belong together",
            found=(images.shape, labels.shape),
            where=str(files[0]),
        )
    return images[:, None], labels.astype(np.int64)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return super().find_class(module, name)
        raise InputError("the pickle asks for more than arrays and was not read", found=f"{module}.{name}")


def read_pickle(path: Path) -> dict[bytes, Any]:
    """A pickled dict of arrays, lists, strings and numbers; no code of the file is run."""
    try:
        with path.open("rb") as file:
            found = _Reader(file, encoding="bytes").load()
    except InputError as error:
        raise InputError(
            error.what, found=error.found, where=str(path), do="take the official file"
        ) from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError("cannot read the pickle", found=repr(error), where=str(path)) from error
    if not isinstance(found, dict):
        raise InputError("the pickle holds no dict", found=type(found).__name__, where=str(path))
    return {(k.encode() if isinstance(k, str) else k): v for k, v in found.items()}


def cifar_pickles(files: Sequence[Path], label: str) -> Arrays:
    """The official CIFAR batches, joined: rows of 3,072 bytes, red, green, blue."""
    parts = []
    for path in files:
        batch = read_pickle(path)
        data = batch.get(b"data")
        labels = batch.get(label.encode())
        if (
            not isinstance(data, np.ndarray)
            or (data.dtype, data.shape[1:]) != (np.uint8, (3072,))
            or not isinstance(labels, list)
            or len(labels) != len(data)
        ):
            raise InputError(
                f"the pickle is no CIFAR batch with {label!r}",
                found=sorted(k.decode("latin1") for k in batch if isinstance(k, bytes)),
                where=str(path),
            )
        parts.append((data.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)))
    return _join(parts)


def parquet_images(files: Sequence[Path], label: str) -> Arrays:
    """Parquet as on the hub: a struct of encoded ``bytes`` and a label column."""
    try:
        import pyarrow.parquet as pq
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "reading parquet needs pyarrow and pillow", do="pip install supple[bench]"
        ) from error
    _check_shards(files)
    parts = []
    for path in files:
        table = pq.read_table(path)
        column = next((c for c in ("img", "image") if c in table.column_names), None)
        if column is None or label not in table.column_names:
            raise InputError(
                f"no image column or no column {label!r}", found=table.column_names, where=str(path)
            )
        encoded = table.column(column).combine_chunks().field("bytes").to_pylist()
        decoded = [np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for b in encoded]
        images = np.stack(decoded).transpose(0, 3, 1, 2)
        parts.append((images, table.column(label).to_numpy().astype(np.int64)))
    return _join(parts)


def _check_shards(files: Sequence[Path]) -> None:
    """``train-00000-of-00002``: all two must be there, or half the data would be taken for the whole."""
    for path in files:
        count = path.stem.rpartition("-of-")[2]
        if count.isdigit() and int(count) != len(files):
            raise InputError(
                f"{path.name} is one of {int(count)} files", found=f"{len(files)}", where=str(path.parent)
            )


def imagenet_batches(files: Sequence[Path], label: str) -> Arrays:
    """The official down-sampled ImageNet: ``data`` (N, 3 S²) uint8, ``labels`` 1 to 1000, made 0 to 999."""
    parts = []
    for path in files:
        try:
            with np.load(path, allow_pickle=False) as batch:
                data, labels = batch["data"], np.asarray(batch["labels"], np.int64)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(
                "not a batch of down-sampled ImageNet", found=repr(error), where=str(path)
            ) from error
        side = round((data.shape[-1] / 3) ** 0.5)
        if data.dtype != np.uint8 or data.ndim != 2 or 3 * side**2 != data.shape[1] or labels.min() < 1:
            raise InputError(
                "not a batch of down-sampled ImageNet", found=(data.dtype, data.shape), where=str(path)
            )
        parts.append((data.reshape(-1, 3, side, side), labels - 1))
    return _join(parts)


def tiny_folder(files: Sequence[Path], label: str) -> Arrays:
    """The official Tiny-ImageNet folder: JPEGs by class, or ``val_annotations.txt``; ids sorted are the classes."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("reading images needs pillow", do="pip install supple[bench]") from error
    if files[0].name == "val_annotations.txt":
        lines = [line.split("\t") for line in files[0].read_text().splitlines()]
        named = [(files[0].parent / "images" / line[0], line[1]) for line in lines]
        ids = sorted(p.name for p in (files[0].parent.parent / "train").iterdir() if p.is_dir())
    else:
        named = [(path, path.parent.parent.name) for path in files]
        ids = sorted({name for _, name in named})
    number = {name: i for i, name in enumerate(ids)}
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in named])
    return images.transpose(0, 3, 1, 2), np.asarray([number[name] for _, name in named], np.int64)


def omniglot_archive(files: Sequence[Path], label: str) -> Arrays:
    """``images`` (classes, 20, 28, 28): of each class 15 drawings (label "train") or the other 5 ("test")."""
    with np.load(files[0], allow_pickle=False) as archive:
        images = archive["images"]
    if images.ndim != 4 or images.shape[1] != 20:
        raise InputError("not the Omniglot archive", found=images.shape, where=str(files[0]))
    kept = images[:, :15] if label == "train" else images[:, 15:]
    labels = np.repeat(np.arange(len(kept), dtype=np.int64), kept.shape[1])
    return kept.reshape(-1, 1, *images.shape[2:]), labels


def _join(parts: Sequence[Arrays]) -> Arrays:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
