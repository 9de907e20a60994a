"""Singular value decompositions of weights: computed once, in processes where asked, and kept on disk.

Shape letters: O outputs, I inputs, r = min(O, I) components.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from supple.checksum import checksum
from supple.errors import InputError, StoreError
from supple.processes import Died, spread

FORMAT = "supple-svd-1"
#: relative error of W x from kept factors above which they are computed again; float32 factors reach about 1e-6
CLOSE = 1e-4

#: U (O, r), sigma (r,) descending, V^T (r, I), float32 of a float64 decomposition
Factors = tuple[Tensor, Tensor, Tensor]
#: called with (name, decompositions done so far, all of them)
Progress = Callable[[str, int, int], None]


def decompose(
    weights: Mapping[str, Tensor],
    cache: str | Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, Factors]:
    """The thin SVD of every weight, on the weight's device.

    Args:
        weights: (O, I) each, finite.
        cache: a folder, made where it is missing: a file for each weight, named by its checksum (of dtype, shape and
            bytes). A weight that is there is read and tried on a vector; one that changed has another name. A file
            that is damaged or does not give its weight is computed and written again.
        workers: spawned processes of one torch thread each; 0 computes in this process.
        progress: called as ``progress(name, done, total)`` after each, read or computed.

    Raises:
        InputError: the cache is a file, or negative workers.
        StoreError: a process died.

    >>> u, s, vt = decompose({"w": torch.diag(torch.tensor([1.0, 3.0]))})["w"]
    >>> s.tolist()
    [3.0, 1.0]
    """
    folder = None if cache is None else Path(cache)
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise InputError("the cache of decompositions must be a folder", where=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Factors] = {}
    done = [0]

    def told(name: str) -> None:
        done[0] += 1
        if progress is not None:
            progress(name, done[0], len(weights))

    files = {n: None if folder is None else folder / f"{checksum(w)}.safetensors" for n, w in weights.items()}
    for name, file in files.items():
        kept = None if file is None else _read(file, weights[name])
        if kept is not None:
            found[name] = kept
            told(name)
    missing = [n for n in weights if n not in found]
    jobs = [(_plain(weights[n]), files[n]) for n in missing]
    for name, answer in zip(
        missing, spread(_work, jobs, workers, lambda place, _: told(missing[place])), strict=True
    ):
        if isinstance(answer, Died):
            raise StoreError(
                "a process that decomposed a weight died",
                found=answer,
                where=name,
                do="take fewer workers; what was finished is in the cache"
                if folder
                else "take fewer workers",
            )
        found[name] = tuple(torch.from_numpy(a) for a in answer)  # type: ignore[assignment]
    return {n: _on(found[n], weights[n].device) for n in weights}


def _on(factors: Factors, device: torch.device) -> Factors:
    u, s, vt = factors
    return u.to(device), s.to(device), vt.to(device)


def _plain(weight: Tensor) -> np.ndarray:
    """The values for another process, in a format that holds all of them."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.detach().to("cpu", wide).numpy()


def _work(job: tuple[np.ndarray, Path | None], tell: Callable[[Any], None]) -> tuple[np.ndarray, ...]:
    """One decomposition; written before it is answered, so that a later death takes only what was in work."""
    values, file = job
    u, s, vt = torch.linalg.svd(torch.from_numpy(values).double(), full_matrices=False)
    factors = tuple(t.float().contiguous() for t in (u, s, vt))
    if file is not None:
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        save_file(dict(zip(("u", "s", "vt"), factors, strict=True)), temporary, metadata={"format": FORMAT})
        os.replace(temporary, file)
    tell("done")
    return tuple(t.numpy() for t in factors)


def _read(file: Path, weight: Tensor) -> Factors | None:
    """Kept factors that give back their weight, or None."""
    if not file.is_file():
        return None
    try:
        with safe_open(str(file), framework="pt") as kept:
            if (kept.metadata() or {}).get("format") != FORMAT:
                return None
            u, s, vt = (kept.get_tensor(name) for name in ("u", "s", "vt"))
    except (SafetensorError, OSError, RuntimeError):
        return None
    o, i = weight.shape
    r = min(o, i)
    if (u.shape, s.shape, vt.shape) != ((o, r), (r,), (r, i)):
        return None
    w = weight.detach().to("cpu", torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(i, generator=generator), torch.randn(o, generator=generator)
    right, left = w @ x, y @ w
    off = ((u @ (s * (vt @ x)) - right).norm() + (((y @ u) * s) @ vt - left).norm()).item()
    near = off <= CLOSE * (right.norm() + left.norm()).item()
    return (u, s, vt) if near else None
