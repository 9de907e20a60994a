"""Singular-value adapters (Transformer²): scale the singular values of frozen weights, nothing else.

Shape letters: O outputs, I inputs, r = min(O, I) components.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from supple.errors import InputError, StoreError
from supple.layouts import linear_weight
from supple.nn.adapter import LinearAdapter
from supple.nn.factors import Progress, decompose
from supple.nn.targets import Targets, choose_linears

FORMAT = "supple-svf-1"


class SVFAdapter(LinearAdapter):
    """One trainable vector z per adapted matrix: W' = U diag(σ ⊙ z) Vᵀ, z = 1 is the base model.

    Sun, Cetin & Tang 2025 (arXiv 2501.06252). Computed as W x + U((σ (z - 1)) ⊙ Vᵀx), so that z = 1
    gives the base model exactly; z is kept in float32. ``form="published"`` uses the authors' code
    instead: m = σ(p), W' = U diag(σ m) Vᵀ · Σσ / Σ(σ m), p starting at N(0.1, 0.01²); any constant p is
    the base model there, and no singular value can change sign.

    The adapter is a module of its own: its parameters are the only trainable ones, the base model keeps
    its class, its names and its state dict. Build it with `svf_`.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        form: str = "plain",
        cache: str | Path | None = None,
        workers: int = 0,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(layers)
        if form not in ("plain", "published"):
            raise InputError(f"unknown form {form!r}", do='choose "plain" or "published"')
        self.form = form
        self.z = nn.ParameterList()
        weights = {name: linear_weight(layer) for name, layer in layers.items()}
        self._factors = list(decompose(weights, cache, workers, progress).values())
        generator = torch.Generator().manual_seed(0)
        for _, s, _ in self._factors:
            start = torch.ones(len(s))
            if form == "published":
                start = torch.empty(len(s)).normal_(0.1, 0.01, generator=generator)
            self.z.append(nn.Parameter(start.to(s.device)))
        self._install()

    # -- the formula ----------------------------------------------------------------------------
    def scale(self, index: int) -> Tensor:
        """(r,) factor on each singular value of the given matrix."""
        z = self.z[index]
        if self.form == "plain":
            return z
        s, mask = self._factors[index][1], torch.sigmoid(z)
        return mask * s.sum() / (s * mask).sum()

    def delta(self, name: str) -> Tensor:
        """(O, I) what merging would add to the weight of the layer, float32."""
        u, s, vt = self._factors[self.names.index(name)]
        return (u * (s * (self.scale(self.names.index(name)) - 1))) @ vt

    def _added(self, index: int, inputs: Tensor) -> Tensor:
        u, s, vt = self._factors[index]
        low = F.linear(inputs, vt.to(inputs.dtype))
        gain = (s * (self.scale(index) - 1)).to(low.dtype)
        return F.linear(low * gain, u.to(low.dtype))

    # -- disk -----------------------------------------------------------------------------------
    def save(self, path: str | Path) -> None:
        """Write z as safetensors, with the checksum of each base weight it fits."""
        tensors = {n: z.detach().cpu().contiguous() for n, z in zip(self.names, self.z, strict=True)}
        save_file(tensors, str(path), metadata={"format": FORMAT, "form": self.form, **self._sums()})

    @torch.no_grad()
    def load(self, path: str | Path) -> None:
        """Read z; refuses a file of another form, other matrices, or another base."""
        self.check_free("another one")
        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise StoreError("cannot read the adapter", found=error, where=str(path)) from error
        if meta.get("format") != FORMAT or meta.get("form") != self.form:
            raise StoreError(
                f"not a {self.form} singular-value adapter",
                found=f"format {meta.get('format')!r}, form {meta.get('form')!r}",
                where=str(path),
            )
        if set(tensors) != set(self.names):
            raise StoreError(
                "the adapter was made for other matrices",
                found=f"{len(tensors)} of them; here: {len(self.names)}",
                where=str(path),
            )
        for name, z in zip(self.names, self.z, strict=True):
            self._check_base(name, meta.get(f"base:{name}"))
            if tensors[name].shape != z.shape:
                raise StoreError("the adapter has another size", found=tuple(tensors[name].shape), where=name)
        for name, z in zip(self.names, self.z, strict=True):
            z.copy_(tensors[name])


def svf_(
    model: nn.Module,
    targets: Targets | None = None,
    form: str = "plain",
    *,
    cache: str | Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> SVFAdapter:
    """Adapt the model by singular-value vectors: its parameters are frozen, the returned adapter trains.

    Args:
        targets: an ending or endings of layer names (``["up_proj", "down_proj"]``), or ``filter(module, name)``;
            None adapts every linear layer (``nn.Linear``, GPT-2's Conv1D) whose weight is used by nothing else.
        form: ``"plain"`` or ``"published"``; see `SVFAdapter`.
        cache: a folder that keeps the decompositions by the checksum of their weight, so that the next adapter of this
            base reads them; a weight that changed is decomposed anew.
        workers: spawned processes that decompose; 0 does it here.
        progress: called as ``progress(name, done, total)`` after each matrix.

    Raises:
        InputError: a target that is not a plain linear layer, no match, a layer that has an adapter, or a weight
            that is tied, parametrised or not finite, a cache that is a file; nothing has been changed then.

    >>> net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> adapter = svf_(net)
    >>> sum(p.numel() for p in adapter.parameters())  # Σ min(m, n)
    6
    """
    chosen = choose_linears(model, targets)
    adapter = SVFAdapter(chosen, form, cache, workers, progress)
    adapter.freeze(model)
    return adapter
