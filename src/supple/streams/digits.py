"""The embedded data set: 1,797 handwritten digits of 8 × 8 pixels, in the package, no download."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    source = resources.files("supple.streams") / "data" / "digits.npz"
    with source.open("rb") as file, np.load(file, allow_pickle=False) as data:
        return data["images"], data["labels"]


def digits_raw() -> tuple[Tensor, Tensor]:
    """The digits as they are: uint8 images (1797, 8, 8) in 0..16 and int64 labels (1797,).

    The test part of the UCI "Optical Recognition of Handwritten Digits" data (Alpaydin & Kaynak 1998,
    CC BY 4.0), as scikit-learn's ``load_digits`` has it.

    >>> images, labels = digits_raw()
    >>> tuple(images.shape), int(images.max()), int(labels[0])
    ((1797, 8, 8), 16, 0)
    """
    images, labels = _load()
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def digits() -> tuple[Tensor, Tensor]:
    """Digits as rows: float32 (1797, 64), standardised by one global mean and deviation; labels int64.

    One mean and one deviation for all pixels keeps the pixels' relative scale; pixel by pixel
    standardisation would divide by zero at the constant corner pixels.

    >>> x, y = digits()
    >>> tuple(x.shape), round(x.mean().item(), 4), round(x.std().item(), 4)
    ((1797, 64), 0.0, 1.0)
    """
    images, labels = digits_raw()
    flat = images.flatten(1).double()
    return ((flat - flat.mean()) / flat.std()).float(), labels
