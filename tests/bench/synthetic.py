"""Small data sets in their published layouts, drawn at random, for tests without the real ones."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, array: np.ndarray) -> None:
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(head + array.tobytes())


def write_mnist(
    root: Path, train: int = 200, test: int = 50, end: str = ".gz"
) -> tuple[np.ndarray, np.ndarray]:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    draw, kept = np.random.default_rng(0), None
    for split, n in (("train", train), ("t10k", test)):
        images = draw.integers(0, 256, (n, 28, 28), np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte{end}", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte{end}", labels)
        kept = kept or (images, labels)
    return kept


def write_cifar(root: Path, per_class: int = 6, classes: int = 100) -> dict[str, np.ndarray]:
    """`classes` = 10: five batches and a test batch; 100: train and test."""
    draw, seen = np.random.default_rng(1), {}
    folder, names, label = (
        (root / "cifar-100-python", ("train", "test"), "fine_labels")
        if classes == 100
        else (
            root / "cifar-10-batches-py",
            (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
            "labels",
        )
    )
    folder.mkdir(parents=True)
    for name in names:
        data = draw.integers(0, 256, (per_class * classes, 3072), np.uint8)
        labels = [int(i) for i in np.arange(per_class * classes) % classes]
        (folder / name).write_bytes(pickle.dumps({"data": data, label: labels}, protocol=2))
        seen[name] = data
    return seen


def write_imagenet(root: Path, per_class: int = 4, classes: int = 8) -> np.ndarray:
    draw, folder, parts = np.random.default_rng(2), root / "Imagenet32_train_npz", []
    folder.mkdir(parents=True)
    for i in (1, 2, 10):
        data = draw.integers(0, 256, (per_class * classes, 3072), np.uint8)
        labels = [int(k) + 1 for k in np.arange(per_class * classes) % classes]
        np.savez(folder / f"train_data_batch_{i}.npz", data=data, labels=labels, mean=np.zeros(3072))
        parts.append(data)
    return np.concatenate(parts)


def write_tiny(root: Path, per_class: int = 2, classes: int = 200) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    folder = root / "tiny-imagenet-32" / "data"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(3)
    for split in ("train", "valid"):
        rows, labels = [], [int(i) for i in np.arange(per_class * classes) % classes]
        for _ in labels:
            out = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(out, format="PNG")
            rows.append({"bytes": out.getvalue(), "path": ""})
        pq.write_table(pa.table({"image": rows, "label": labels}), folder / f"{split}-00000-of-00001.parquet")
