"""The data sets by name: in which layouts they are looked for, and what to do when there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from supple.errors import InputError
from supple.streams.data import formats
from supple.streams.data.cache import cached
from supple.streams.data.formats import Arrays


@dataclass(frozen=True)
class Layout:
    """Where a split lies below the root (patterns that must all be found) and who reads it."""

    read: Callable[[Sequence[Path], str], Arrays]
    train: tuple[str, ...]
    test: tuple[str, ...]
    label: str = "label"
    label_test: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set: classes, layouts in order of preference, and what to put where."""

    classes: int
    layouts: tuple[Layout, ...]
    put: str


def _idx(folder: str, end: str) -> Layout:
    def pair(split: str) -> tuple[str, ...]:
        return (f"{folder}{split}-images-idx3-ubyte{end}", f"{folder}{split}-labels-idx1-ubyte{end}")

    return Layout(formats.idx_pair, pair("train"), pair("t10k"))


def _parquet(folder: str, test: str = "test", label: str = "label") -> Layout:
    return Layout(
        formats.parquet_images, (f"{folder}/train-*.parquet",), (f"{folder}/{test}-*.parquet",), label
    )


SETS: dict[str, DataSet] = {
    "mnist": DataSet(
        10,
        tuple(_idx(folder, end) for folder in ("MNIST/raw/", "mnist/", "") for end in ("", ".gz")),
        "the four files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
        "t10k-labels-idx1-ubyte, raw or .gz, into MNIST/raw",
    ),
    "cifar10": DataSet(
        10,
        (
            Layout(
                formats.cifar_pickles,
                tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
                ("cifar-10-batches-py/test_batch",),
                "labels",
            ),
            _parquet("cifar10/plain_text"),
        ),
        "the unpacked official folder cifar-10-batches-py, or the hub's parquet files into cifar10/plain_text",
    ),
    "cifar100": DataSet(
        100,
        (
            Layout(
                formats.cifar_pickles, ("cifar-100-python/train",), ("cifar-100-python/test",), "fine_labels"
            ),
            _parquet("cifar100/cifar100", label="fine_label"),
        ),
        "the unpacked official folder cifar-100-python, or the hub's parquet files into cifar100/cifar100",
    ),
    "tiny-imagenet-32": DataSet(
        200,
        (_parquet("tiny-imagenet-32/data", test="valid"),),
        "Tiny-ImageNet at 32x32 as parquet (image, label), train-*.parquet and valid-*.parquet, into "
        "tiny-imagenet-32/data",
    ),
    "tiny-imagenet": DataSet(
        200,
        (
            Layout(
                formats.tiny_folder,
                ("tiny-imagenet-200/train/*/images/*.JPEG",),
                ("tiny-imagenet-200/val/val_annotations.txt",),
            ),
            _parquet("tiny-imagenet/data", test="valid"),
        ),
        "the unpacked official folder tiny-imagenet-200, or the hub's parquet files into tiny-imagenet/data",
    ),
    "imagenet32": DataSet(
        1000,
        tuple(
            Layout(
                formats.imagenet_batches,
                (f"{folder}Imagenet32_train_npz/train_data_batch_*.npz",),
                (f"{folder}Imagenet32_val_npz/val_data.npz",),
            )
            for folder in ("", "imagenet32/")
        ),
        "the official down-sampled ImageNet: train_data_batch_1.npz to train_data_batch_10.npz into "
        "Imagenet32_train_npz and val_data.npz into Imagenet32_val_npz",
    ),
    "omniglot28": DataSet(
        964,
        (
            Layout(
                formats.omniglot_archive,
                ("omniglot28/omniglot_background_28.npz",),
                ("omniglot28/omniglot_background_28.npz",),
                "train",
                "test",
            ),
        ),
        "omniglot_background_28.npz (images uint8 of shape 964, 20, 28, 28) into omniglot28",
    ),
}


def _root(name: str, root: str | Path | None) -> Path:
    found = root if root is not None else os.environ.get("SUPPLE_DATA")
    if not found:
        raise InputError(
            f"the data set {name} needs a data folder",
            do=f"put {SETS[name].put} below a folder, and name it with --data or SUPPLE_DATA",
        )
    return Path(found)


def load(name: str, split: str = "train", root: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """A split of a data set as uint8 images (N, C, H, W) and int64 labels (N,).

    Read from ``root`` or ``$SUPPLE_DATA`` in any layout of `SETS`, decoded once into ``$SUPPLE_CACHE`` (or the user's
    cache folder), mapped from there afterwards. The root is never written to.

    Raises:
        InputError: an unknown set or split, a set that is absent (with what to put where), a damaged file.

    >>> load("mnist", root="/nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    supple.errors.InputError: the data set mnist (train) is not there; found: ...
    """
    if name not in SETS:
        raise InputError(f"unknown data set {name!r}", do=f"choose one of {', '.join(SETS)}")
    if split not in ("train", "test"):
        raise InputError(f"unknown split {split!r}", do="choose train or test")
    return _load(name, split, _root(name, root))


@lru_cache(maxsize=4)
def _load(name: str, split: str, root: Path) -> tuple[Tensor, Tensor]:
    data = SETS[name]
    for layout in data.layouts:
        groups = [sorted(root.glob(p)) for p in (layout.train if split == "train" else layout.test)]
        if all(groups):
            files = [file for group in groups for file in group]
            label = (layout.label_test or layout.label) if split == "test" else layout.label
            images, labels = cached(f"{name}-{split}", files, partial(layout.read, files, label))
            return torch.from_numpy(images), torch.from_numpy(labels)
    raise InputError(
        f"the data set {name} ({split}) is not there",
        found="no files of a known layout" if root.is_dir() else "no such folder",
        where=str(root),
        do=f"put {data.put} below this folder, or name another with --data or SUPPLE_DATA",
    )


def mean_and_deviation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of uint8 images, of values scaled to [0, 1]; exact, from a histogram.

    >>> mean_and_deviation(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    (tensor([0.5000]), tensor([0.5000]))
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    rows = [
        torch.stack([part[:, c].flatten().bincount(minlength=256) for part in images.split(10_000)]).sum(0)
        for c in range(images.shape[1])
    ]
    share = torch.stack(rows).double()
    share = share / share.sum(1, keepdim=True)
    mean = share @ values
    return mean.float(), (share @ values.square() - mean.square()).clamp(min=0).sqrt().float()
