"""The sums of a kernel: what each layer's inputs and gradients add to it.

Shape letters: N samples, C outputs per sample, B cotangents at a time, T positions, I fan-in, O outputs. A
layer's per-sample gradient is sum_t left_t (x) right_t: gradient and input of a matrix layer, one-hot index
and gradient of an embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from supple.observe.kernel_calls import Call

#: entries of a temporary at a time
CHUNK = 2**22
#: rows of the kernel at a time: small enough to stay in cache, large enough for the matrix product
BLOCK = 256


class Kernel:
    """Accumulates the lower triangle of (N, N), or (N C, N C) for "full", in float64."""

    def __init__(self, kind: str, samples: int, outputs: int, device: torch.device) -> None:
        self.kind, self.n, self.c = kind, samples, outputs
        self.cotangents = 1 if kind == "scalar" else outputs
        self.size = samples * outputs if kind == "full" else samples
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.zeros(self.size, self.size, dtype=dtype, device=device)

    def cotangent(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        """(B, N, C) cotangents number ``start`` to ``stop``."""
        if self.kind == "scalar":
            return torch.full_like(outputs, self.c**-0.5)[None]
        v = outputs.new_zeros(stop - start, self.n, self.c)
        v[torch.arange(stop - start), :, torch.arange(start, stop)] = 1
        return v

    def add_gradients(self, gradients: Tensor) -> None:
        """Per-sample gradients (B, N, P): all cotangents at once for "full", any number of them otherwise."""
        rows = gradients.transpose(0, 1).reshape(self.size, -1)
        step = max(1, CHUNK // self.size)
        for start in range(0, rows.shape[1], step):
            part = rows[:, start : start + step].to(self.values.dtype)
            for i in range(0, self.size, BLOCK):
                j = i + BLOCK
                self.values[i:j, :j].addmm_(part[i:j], part[:j].mT)

    def add_vectors(self, similar: Tensor, g: Tensor) -> None:
        """Layers without positions: similarity of inputs (N, N) times that of gradients (B, N, 1, O)."""
        full = self.kind == "full"
        if self._is_output(g):
            # gradients of outputs by themselves: only equal outputs meet
            if full:
                blocks = self.values.view(self.n, self.c, self.n, self.c)
                blocks.diagonal(dim1=1, dim2=3).add_(similar[..., None])
            else:
                self.values.add_(similar, alpha=self.c)
            return
        rows = g[:, :, 0].transpose(0, 1)  # (N, B, O)
        rows = rows.to(self.values.dtype, memory_format=torch.contiguous_format)
        per = self.c if full else 1
        rows = rows.reshape(self.n * per, -1)
        step = max(1, BLOCK // per)
        for i in range(0, self.n, step):
            j = min(i + step, self.n)
            block = rows[i * per : j * per] @ rows[: j * per].mT
            weight = similar[i:j, :j]
            block.view(j - i, per, j, per).mul_(weight[:, None, :, None])
            self.values[i * per : j * per, : j * per] += block

    def _is_output(self, g: Tensor) -> bool:
        """True for gradients (B, N, 1, O) of the output layer, of all cotangents: one-hot in their own output."""
        if g.shape[-1] != self.c or len(g) != self.c or self.kind == "scalar":
            return False
        rows = g[:, :, 0]
        return torch.equal(rows, torch.eye(self.c, dtype=g.dtype, device=g.device)[:, None].expand_as(rows))

    def add_pairs(self, similar: Tensor, g: Tensor) -> None:
        """Layers with positions: similarity of inputs (N T, N T), gradients (B, N, T, O)."""
        b, n, t, _ = g.shape
        full = self.kind == "full"
        g = g.to(self.values.dtype)
        rows = (
            g.permute(1, 0, 2, 3).reshape(n * b * t, -1) if full else g.permute(1, 2, 0, 3).reshape(n * t, -1)
        )
        per = (b if full else 1) * t
        step = max(1, CHUNK // (per * n * per))
        for i in range(0, n, step):
            j = min(i + step, n)
            block = rows[i * per : j * per] @ rows[: j * per].mT
            weight = similar[i * t : j * t, : j * t]
            if full:
                block = block.view(j - i, b, t, j, b, t) * weight.view(j - i, 1, t, j, 1, t)
                self.values[i * b : j * b, : j * b] += block.sum((2, 5)).reshape((j - i) * b, j * b)
            else:
                self.values[i:j, :j] += (block * weight).view(j - i, t, j, t).sum((1, 3))

    def result(self) -> Tensor:
        """The whole symmetric matrix."""
        for i in range(0, self.size, BLOCK):
            j = min(i + BLOCK, self.size)
            self.values[:i, i:j] = self.values[i:j, :i].mT
            corner = self.values[i:j, i:j]
            corner.copy_(corner.tril() + corner.tril(-1).mT)
        return self.values

    def unusable(self) -> Tensor:
        return torch.full_like(self.values, torch.nan)


@dataclass(eq=False)
class Block:
    """A parameter (or a weight and its bias) and every call that uses it."""

    role: str  # "matrix" | "embedding" | "mixed" | "bias" | "scale"
    calls: list[Call]
    bias: bool = False  # "matrix" only: the bias comes along
    groups: int = 1


def blocks_of(
    model: nn.Module, calls: Sequence[Call], uses: Counter[int]
) -> tuple[list[Block], dict[str, nn.Parameter]]:
    """(parameters whose every use was seen by a hook, the rest by name)."""
    owners: dict[int, list[tuple[Call, str]]] = {}
    for one in calls:
        for role, p in one.module.named_parameters(recurse=False):
            owners.setdefault(id(p), []).append((one, role))
    blocks: dict[int, Block] = {}
    rest: dict[str, nn.Parameter] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad or not uses[id(p)]:
            continue
        seen = owners.get(id(p), [])
        if (
            len(seen) != uses[id(p)]
            or any(c.layout is None for c, _ in seen)
            or (block := _block(seen)) is None
        ):
            rest[name] = p
        else:
            blocks[id(p)] = block
    return _joined(list(blocks.values())), rest


def _block(seen: Sequence[tuple[Call, str]]) -> Block | None:
    calls = [c for c, _ in seen]
    roles = {_role(c.module, r) for c, r in seen}
    groups = {int(getattr(c.module, "groups", 1)) for c in calls}
    if roles <= {"matrix", "embedding"} and len(roles) == 2 and groups == {1}:
        return Block("mixed", calls)
    if len(roles) > 1 or len(groups) > 1:
        return None
    return Block(roles.pop(), calls, groups=groups.pop())


def _role(module: nn.Module, parameter: str) -> str:
    if parameter == "bias":
        return "bias"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "matrix" if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) else "scale"


def _joined(blocks: list[Block]) -> list[Block]:
    """A bias used by exactly the calls of a matrix shares its sums."""
    biases = {tuple(map(id, b.calls)): b for b in blocks if b.role == "bias"}
    for block in blocks:
        if block.role == "matrix" and tuple(map(id, block.calls)) in biases:
            del biases[tuple(map(id, block.calls))]
            block.bias = True
    return [b for b in blocks if b.role != "bias"] + list(biases.values())


def add_block(kernel: Kernel, block: Block, grads: Sequence[Tensor]) -> None:
    """Add what one block contributes; ``grads`` are the gradients at the outputs of its calls."""
    g = [c.grads(x) for c, x in zip(block.calls, grads, strict=True)]
    if block.role == "bias":
        kernel.add_gradients(_total([x.sum(2).flatten(2) for x in g]))
    elif block.role == "scale":
        kernel.add_gradients(
            _total([(x * c.inputs()).sum(2).flatten(2) for c, x in zip(block.calls, g, strict=True)])
        )
    elif block.role == "matrix":
        a = _joined_positions([c.inputs() for c in block.calls], 1)
        together = _joined_positions(g, 2)
        for x, y in zip(a.chunk(block.groups, -1), together.chunk(block.groups, -1), strict=True):
            _add_matrix(kernel, x, y, block.bias)
    else:
        _add_by_rows(kernel, block, g)


def _joined_positions(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Calls of one parameter add up before they are multiplied: that is where cross terms come from."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _add_matrix(kernel: Kernel, a: Tensor, g: Tensor, bias: bool) -> None:
    """Inputs (N, T, I), gradients (B, N, T, O): position pairs or per-sample gradients, the cheaper."""
    n, t, fan = a.shape
    if t == 1 or _pairs_are_cheaper(kernel, t, fan, g.shape[-1]):
        rows = a.reshape(n * t, fan).to(kernel.values.dtype)
        similar = rows @ rows.mT
        if bias:
            similar += 1
        kernel.add_vectors(similar, g) if t == 1 else kernel.add_pairs(similar, g)
        return
    if bias:
        a = torch.cat([a, torch.ones_like(a[..., :1])], -1)
    step = max(1, CHUNK // (len(g) * n * a.shape[-1]))
    for start in range(0, g.shape[-1], step):
        part = torch.einsum("bnto,nti->bnoi", g[..., start : start + step], a.to(g.dtype))
        kernel.add_gradients(part.flatten(2))


def _pairs_are_cheaper(kernel: Kernel, t: int, fan: int, out: int) -> bool:
    """Operations of the two exact routes; for one cotangent T^2 (I + O) < I O (T / N + 1)."""
    n, b = kernel.n, kernel.cotangents
    each = b * b if kernel.kind == "full" else b
    pairs = n * n * t * t * (fan + each * out)
    samples = b * n * t * fan * out + each * n * n * fan * out
    return pairs < samples


def _add_by_rows(kernel: Kernel, block: Block, g: Sequence[Tensor]) -> None:
    """An embedding, alone or tied to a matrix: per-sample gradients, a slice of the vocabulary at a time."""
    weight = block.calls[0].module.weight
    assert isinstance(weight, Tensor)
    used = torch.arange(weight.shape[0], device=weight.device)
    if block.role == "embedding":  # rows of tokens that do not occur have no gradient
        used = torch.cat([c.inputs().flatten() for c in block.calls]).unique()
    b, n = g[0].shape[:2]
    step = max(1, CHUNK // (b * n * weight.shape[1]))
    for start in range(0, len(used), step):
        rows = used[start : start + step]
        parts = [_rows(c, x, rows) for c, x in zip(block.calls, g, strict=True)]
        kernel.add_gradients(_total(parts).flatten(2))


def _rows(one: Call, g: Tensor, rows: Tensor) -> Tensor:
    """(B, N, rows, width): the chosen rows of the per-sample gradient of one call."""
    if isinstance(one.module, nn.Embedding):
        tokens = one.inputs()  # (N, T)
        hit = tokens[..., None] == rows
        if one.module.padding_idx is not None:
            hit = hit & (tokens != one.module.padding_idx)[..., None]
        return torch.einsum("ntr,bntd->bnrd", hit.to(g.dtype), g)
    return torch.einsum("bntr,ntd->bnrd", g[..., rows], one.inputs().to(g.dtype))
