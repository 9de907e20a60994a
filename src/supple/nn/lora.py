"""Low-rank adapters (LoRA): a product of two thin matrices beside each frozen weight.

Shape letters: O outputs, I inputs, R rank of the product.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from supple.errors import InputError, StoreError
from supple.layouts import is_conv1d, linear_size, linear_weight
from supple.nn.adapter import LinearAdapter
from supple.nn.targets import Targets, choose_linears

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class LoRAAdapter(LinearAdapter):
    """W' = W + (alpha / R) B A with B (O, R) zero and A (R, I) uniform in ±1/√I at the start; only A, B train.

    Hu et al. 2022 (arXiv 2106.09685); the start of A is that of the authors' code. Both factors are
    kept in float32. As B is zero the adapted model is the base model at first. The adapter is a module of
    its own, as `SVFAdapter` is: the base model keeps its class, its names and its state dict. Build it with
    `lora_`.

    After `merge` and `detach` the product is a part of the weight, and a new adapter can be put on: over
    rounds the products add up, which is what a scan of the merged checkpoints sees.
    """

    def __init__(
        self, layers: dict[str, nn.Module], rank: int = 8, alpha: float = 16.0, seed: int = 0
    ) -> None:
        super().__init__(layers)
        self.rank, self.alpha = rank, alpha
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        generator = torch.Generator().manual_seed(seed)
        for layer in layers.values():
            inputs, outputs = linear_size(layer)
            device = linear_weight(layer).device
            bound = 1 / math.sqrt(inputs)
            start = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
            self.a.append(nn.Parameter(start.to(device)))
            self.b.append(nn.Parameter(torch.zeros(outputs, rank, device=device)))
        self._install()

    @property
    def scale(self) -> float:
        """alpha / R."""
        return self.alpha / self.rank

    def delta(self, name: str) -> Tensor:
        """(O, I) what merging would add to the weight of the layer, float32."""
        index = self.names.index(name)
        return self.scale * (self.b[index] @ self.a[index])

    def _added(self, index: int, inputs: Tensor) -> Tensor:
        low = F.linear(inputs, self.a[index].to(inputs.dtype))
        return self.scale * F.linear(low, self.b[index].to(low.dtype))

    # -- disk -----------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> None:
        """Write the adapter in peft's layout, which peft and `supple scan` read, with the base's checksums."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), str(folder / WEIGHTS), metadata={"format": "pt", **self._sums()})
        config = {
            "peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "target_modules": self.names,
            "lora_dropout": 0.0, "bias": "none",
            "fan_in_fan_out": all(is_conv1d(x) for x in self.layers.values()), "inference_mode": True,
            "task_type": None, "base_model_name_or_path": None,
        }  # fmt: skip
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @torch.no_grad()
    def load(self, folder: str | Path) -> None:
        """Read A and B; refuses other matrices, another rank or scale, or another base where the file names it."""
        self.check_free("another one")
        folder, mine = Path(folder), self._tensors()
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            with safe_open(str(folder / WEIGHTS), framework="pt") as file:
                meta = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise StoreError("cannot read the adapter", found=error, where=str(folder)) from error
        settings = (config.get("r"), config.get("lora_alpha")) if isinstance(config, dict) else None
        if settings != (self.rank, self.alpha) or {k: v.shape for k, v in found.items()} != {
            k: v.shape for k, v in mine.items()
        }:
            raise StoreError(
                "the adapter was made for other matrices, another rank or another alpha",
                found=f"{len(found)} tensors, (rank, alpha) {settings}; here {len(mine)}, {(self.rank, self.alpha)}",
                where=str(folder),
            )
        for name in self.names:
            if f"base:{name}" in meta:  # peft names no base
                self._check_base(name, meta[f"base:{name}"])
        for name, tensor in mine.items():
            tensor.copy_(found[name])

    def _tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, a, b in zip(self.names, self.a, self.b, strict=True):
            out[f"base_model.model.{name}.lora_A.weight"] = a.detach()
            out[f"base_model.model.{name}.lora_B.weight"] = b.detach()
        return out


def lora_(
    model: nn.Module, targets: Targets | None = None, rank: int = 8, alpha: float = 16.0, seed: int = 0
) -> LoRAAdapter:
    """Adapt the model by low-rank products: its parameters are frozen, the returned adapter trains.

    Args:
        targets: an ending or endings of layer names (``["q_proj", "v_proj"]``), or ``filter(module, name)``;
            None adapts every linear layer (``nn.Linear``, GPT-2's Conv1D) whose weight is used by nothing else.
        rank: columns of B, at most the short side of every weight.
        alpha: the product is scaled by alpha / rank.
        seed: of the start of A; no random state outside is touched.

    Raises:
        InputError: a target that is not a plain linear layer, no match, a layer that has an adapter, a weight
            that is tied, parametrised or not finite, a rank that is not between 1 and a short side; nothing has
            been changed then.

    >>> net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> adapter = lora_(net, rank=2)
    >>> sum(p.numel() for p in adapter.parameters())  # Σ R (I + O)
    32
    """
    chosen = choose_linears(model, targets)
    for name, layer in chosen.items():
        if not 1 <= rank <= min(linear_size(layer)):
            raise InputError(
                "the rank of an adapter lies between 1 and the short side of the weight",
                found=f"rank {rank}, weight {linear_size(layer)[::-1]}",
                where=name,
            )
    adapter = LoRAAdapter(chosen, rank, alpha, seed)
    adapter.freeze(model)
    return adapter
