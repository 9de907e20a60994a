"""The NTK equals the product of per-sample Jacobians, on every kind of layer and every way of using one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.utils._python_dispatch import TorchDispatchMode

import supple
from supple.errors import InputError
from supple.observe import kernel as kernel_module
from supple.observe import kernel_samples
from supple.observe.kernel import ntk


def jacobian(model: nn.Module, inputs: Tensor, forward=None) -> Tensor:
    """(N, C, P) by one backward pass per output of a batch of one: no hooks, no vmap, no batching."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    rows = []
    for i in range(len(inputs)):
        out = model(inputs[i : i + 1]) if forward is None else forward(model, inputs[i : i + 1])
        flat = out.reshape(-1)
        grads = [torch.autograd.grad(f, parameters, retain_graph=True, materialize_grads=True) for f in flat]
        rows.append(torch.stack([torch.cat([g.reshape(-1) for g in gs]) for gs in grads]))
    return torch.stack(rows)


def reference(model: nn.Module, inputs: Tensor, kind: str, forward=None) -> Tensor:
    j = jacobian(model, inputs, forward)
    n, c, _ = j.shape
    if kind == "full":
        return j.reshape(n * c, -1) @ j.reshape(n * c, -1).mT
    if kind == "trace":
        return torch.einsum("ncp,mcp->nm", j, j)
    s = j.sum(1) / math.sqrt(c)
    return s @ s.mT


class ResBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(o)
        self.skip = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        h += self.skip(x)
        return self.act(h)


def resnet() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), ResBlock(4, 4, 1),
        ResBlock(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    return net


class GPT(nn.Module):
    """Tokens, learned positions, attention with a packed projection, gated MLP, tied head."""

    def __init__(self, tied: bool = True, vocabulary: int = 7, width: int = 8, length: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.gate, self.down = nn.Linear(width, 12), nn.Linear(width, 12), nn.Linear(12, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(
            nnf.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        )
        h = self.norm2(x)
        return self.head(x + self.down(nnf.silu(self.gate(h)) * self.up(h)))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(torch.relu(self.inner(x)))))


class Functional(nn.Module):
    """A weight used by the module and once more around it: the hook sees half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 2)
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)) @ self.a.weight) * self.gain


class TimeFirst(nn.Module):
    """(T, N, D) inside, and rows flattened time-major; T = N, so shapes alone cannot tell them apart."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.a, self.b, self.flat = nn.Linear(4, 5), nn.Linear(5, 2), flat

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        h = x.transpose(0, 1)
        h = self.a(h.reshape(t * n, -1)).view(t, n, -1) if self.flat else self.a(h)
        return self.b(torch.tanh(h)).transpose(0, 1)


class Mixed(nn.Module):
    """Layers that no hook knows: attention with packed weights, a recurrent layer, weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent = nn.GRU(4, 3, batch_first=True)
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.attention(x, x, x, need_weights=False)
        return self.out(self.recurrent(h)[0][:, -1])


def mlp(activation: type[nn.Module] = nn.ReLU, **options: bool) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), activation(**options), nn.Linear(8, 7), activation(**options), nn.Linear(7, 3)
    )


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2, padding_mode="circular"),
        nn.GELU(), nn.GroupNorm(2, 6),
        nn.Conv2d(6, 6, (1, 2), groups=6, bias=False), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def frozen() -> nn.Module:
    net = mlp()
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    net[4].requires_grad_(False)
    return net


def small(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(copy.deepcopy(layer) for layer in layers))


CASES = {
    "mlp": (mlp, (5, 6)),
    "mlp without bias": (small(nn.Linear(6, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)), (5, 6)),
    "in-place": (lambda: mlp(nn.ReLU, inplace=True), (5, 6)),
    "frozen parts": (frozen, (5, 6)),
    "one sample": (mlp, (1, 6)),
    "one output": (small(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)), (5, 6)),
    "convnet": (convnet, (4, 2, 8, 8)),
    "conv1d": (small(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.BatchNorm1d(3), nn.Flatten()), (4, 2, 5)),
    "conv3d": (small(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)), (3, 1, 3, 3, 3)),
    "transposed": (small(nn.ConvTranspose2d(2, 3, 2), nn.Flatten()), (3, 2, 2, 2)),
    "resnet": (resnet, (4, 2, 6, 6)),
    "shared": (Shared, (5, 6)),
    "functional use": (Functional, (5, 5)),
    "tokens": (small(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)), (3, 6, 4)),
    "long tokens": (small(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), (3, 40, 2)),
    "time first": (lambda: TimeFirst(False), (4, 4, 4)),
    "time first, flat": (lambda: TimeFirst(True), (4, 4, 4)),
    "unknown layers": (Mixed, (4, 3, 4)),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    make, shape = CASES[name]
    return make().double(), torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["trace", "full", "scalar"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_product_of_jacobians(name: str, kind: str) -> None:
    model, x = build(name)
    found = ntk(model, x, kind)
    wanted = reference(model, x, kind)
    assert found.dtype == torch.float64
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10 * float(wanted.abs().max()))
    assert torch.equal(found, found.mT)
    assert not found.requires_grad


@pytest.mark.parametrize("kind", ["trace", "full", "scalar"])
@pytest.mark.parametrize("tied", [True, False])
def test_gpt_with_tokens_positions_and_a_tied_head(tied: bool, kind: str) -> None:
    torch.manual_seed(0)
    model = GPT(tied).double()
    ids = torch.randint(0, 7, (4, 4))
    wanted = reference(model, ids, kind)
    torch.testing.assert_close(
        ntk(model, ids, kind), wanted, rtol=1e-10, atol=1e-10 * float(wanted.abs().max())
    )


def test_padding_tokens_have_no_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 2)).double()
    ids = torch.tensor([[0, 1], [2, 0], [0, 0]])
    torch.testing.assert_close(ntk(model, ids), reference(model, ids, "trace"))


@pytest.mark.parametrize("budget", [1, 4096])
def test_a_small_budget_changes_nothing(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("convnet", "unknown layers", "tokens"):
        model, x = build(name)
        wanted = {k: ntk(model, x, k) for k in kernel_module.KINDS}
        with monkeypatch.context() as m:
            m.setattr(kernel_module, "BUDGET", budget)
            m.setattr("supple.observe.kernel_sums.CHUNK", budget)
            for kind, value in wanted.items():
                torch.testing.assert_close(ntk(model, x, kind), value)


def test_float32_agrees_with_float64() -> None:
    model, x = build("resnet")
    exact = ntk(model, x, "full")
    found = ntk(model.float(), x.float(), "full")
    assert found.dtype == torch.float64
    assert float((found - exact).norm() / exact.norm()) < 1e-5


def test_half_precision_within_a_percent() -> None:
    model, x = build("mlp")
    exact = ntk(model, x)
    found = ntk(model.bfloat16(), x.bfloat16())
    assert float((found - exact).norm() / exact.norm()) < 3e-2


def test_autocast_around_the_call_rounds_nothing() -> None:
    model, x = build("mlp")
    model, x = model.float(), x.float()
    wanted = ntk(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ntk(model, x), wanted)


@pytest.mark.parametrize("name", ["resnet", "unknown layers", "in-place"])
def test_training_state_is_untouched(name: str) -> None:
    model, x = build(name)
    model.train()
    next(iter(model.children())).eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    grads = [p.grad for p in model.parameters()]
    random = torch.get_rng_state()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    ntk(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert flags == [m.training for m in model.modules()]
    assert all(p.grad is g and bool((g == 1).all()) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert hooks == [len(m._forward_hooks) for m in model.modules()]


def test_hooks_are_removed_when_the_model_fails() -> None:
    model = mlp()
    with pytest.raises(RuntimeError):
        ntk(model, torch.randn(3, 4))
    assert all(not m._forward_hooks for m in model.modules())


class Largest(TorchDispatchMode):
    """Entries of the largest new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in known:  # views are free
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("kind", ["trace", "full", "scalar"])
def test_no_parameter_sized_object_for_an_mlp(kind: str) -> None:
    model, x = nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 3)), torch.randn(6, 300)
    with Largest() as seen:
        ntk(model, x, kind)
    assert seen.numel < 300 * 400 / 10


def test_hooks_of_the_user_and_checkpointing_do_not_disturb() -> None:
    from torch.utils.checkpoint import checkpoint

    model, x = build("mlp")
    model[0].register_forward_hook(lambda m, a, out: 2 * out)
    wanted = reference(model, x, "full")
    torch.testing.assert_close(ntk(model, x, "full"), wanted)

    def forward(net: nn.Module, inputs: Tensor) -> Tensor:
        return checkpoint(net, inputs, use_reentrant=False)

    torch.testing.assert_close(ntk(model, x, "full", forward=forward), wanted)


def test_reentrant_checkpointing_is_refused() -> None:
    from torch.utils.checkpoint import checkpoint

    model, x = build("mlp")
    with pytest.raises(InputError, match="use_reentrant=False"):
        ntk(model, x, forward=lambda m, v: m[4](checkpoint(m[1:4], m[0](v), use_reentrant=True)))


def test_inputs_as_tuple_mapping_and_forward() -> None:
    torch.manual_seed(0)
    model = nn.Bilinear(2, 3, 2).double()
    a, b = torch.randn(4, 2).double(), torch.randn(4, 3).double()
    wanted = ntk(model, (a, b))
    assert torch.equal(ntk(model, {"input1": a, "input2": b}), wanted)
    features = torch.einsum("ni,nj->nij", a, b).flatten(1)
    torch.testing.assert_close(wanted, 2 * (features @ features.mT + 1))


def test_the_loop_stands_in_where_vmap_does_not_go(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0).double())

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale if float(x.sum()) > -1e9 else x

    model, x = Branching(), torch.randn(3, 2).double()
    for kind in kernel_module.KINDS:
        torch.testing.assert_close(ntk(model, x, kind), reference(model, x, kind))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no batching rule")

    model, x = build("unknown layers")
    wanted = {kind: ntk(model, x, kind) for kind in kernel_module.KINDS}
    monkeypatch.setattr(kernel_samples, "vmap", refuse)
    for kind, value in wanted.items():
        torch.testing.assert_close(ntk(model, x, kind), value)


def test_nan_in_the_network_or_the_inputs_is_nan_not_a_number() -> None:
    model, x = build("mlp")
    x[0, 0] = math.nan
    assert bool(ntk(model, x).isnan().all())
    model, x = build("mlp")
    model[0].weight.data[0, 0] = math.inf
    assert bool(ntk(model, x, "full").isnan().all())
    roots = nn.Sequential(nn.Linear(2, 2), nn.Flatten())
    # the output is finite, the gradient of the square root at 0 is not
    found = ntk(roots, torch.zeros(3, 2), forward=lambda m, v: (m(v) - m[0].bias.detach()).abs().sqrt())
    assert bool(found.isnan().all())


def test_coupled_samples_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    with pytest.raises(InputError, match="samples influence one another"):
        ntk(model, torch.randn(5, 3))


@pytest.mark.parametrize(
    ("model", "inputs", "kind", "message"),
    [
        (mlp(), torch.randn(3, 6), "diagonal", "unknown kind"),
        (mlp(), torch.randn(0, 6), "trace", "samples on its first axis"),
        (mlp().requires_grad_(False), torch.randn(3, 6), "trace", "no parameter that requires grad"),
        (nn.LSTM(2, 2), torch.randn(3, 2, 2), "trace", "one floating-point tensor"),
        (mlp(), [torch.randn(3, 6)], "trace", "tuple"),
    ],
)
def test_refusals_say_what_to_do(model: nn.Module, inputs, kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ntk(model, inputs, kind)


def test_public_name() -> None:
    model, x = build("mlp")
    assert torch.equal(supple.ntk(model, x, kind="full"), ntk(model, x, "full"))
