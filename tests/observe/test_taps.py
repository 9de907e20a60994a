"""Taps against hand-written passes: before and after the nonlinearity, and the gradient before it."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from supple.errors import InputError
from supple.topology.taps import layer_modules, tap


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Functional(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(5, 6), nn.Linear(6, 3), act

    def forward(self, x):
        return self.b(self.act(self.a(x)))


ACTIVATIONS = [
    F.relu,
    F.leaky_relu,
    F.gelu,
    torch.tanh,
    torch.sigmoid,
    F.silu,
    F.elu,
    F.softplus,
    F.hardtanh,
    F.selu,
    F.mish,
    F.relu6,
    F.hardswish,
    torch.sin,
    lambda z: F.relu(z, inplace=True),
    lambda z: F.dropout(F.relu(z), 0.5, True),
    lambda z: z.clamp(min=0),
    nn.PReLU(),
    lambda z: F.relu(F.layer_norm(z, (6,))),
    nn.ReLU(inplace=True),
]


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda a: getattr(a, "__name__", type(a).__name__))
def test_any_activation_and_the_gradient_before_it(act):
    torch.manual_seed(0)
    model, x = Functional(act), torch.randn(7, 5)
    with tap(model) as taps:
        torch.manual_seed(1)
        model(x).square().mean().backward()
    z = F.linear(x, model.a.weight, model.a.bias).detach().requires_grad_()
    torch.manual_seed(1)
    model.b(act(z.clone())).square().mean().backward()
    assert torch.equal(taps.pre["a"][0].tensor, z)
    torch.testing.assert_close(taps.pre_grad["a"][0], z.grad)
    assert taps.post["a"][0].tensor.shape == (7, 6)
    assert "b" not in taps.post
    assert "without a nonlinearity" in taps.missing["b"]
    assert hooks(model) == 0


def test_dead_units_have_zero_gradient_before_and_not_after():
    torch.manual_seed(0)
    model = Functional(F.relu)
    with torch.no_grad():
        model.a.bias[:3] = -100.0
    with tap(model) as taps:
        model(torch.randn(9, 5)).sum().backward()
    assert (taps.pre_grad["a"][0][:, :3] == 0).all()
    assert (taps.pre_grad["a"][0][:, 3:] != 0).any()
    assert (taps.post["a"][0].tensor[:, :3] == 0).all()


class Block(nn.Module):
    """Post-activation residual block with in-place sums and activations."""

    def __init__(self):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c2, self.r = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.c2(self.r(self.b1(self.c1(x))))
        h += x
        return self.r(h)


def test_residual_block_in_place():
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 4, 5, 5)
    with tap(model) as taps:
        out = model(x)
    z1 = model.c1(x)
    torch.testing.assert_close(taps.pre["c1"][0].tensor, z1)
    a1 = torch.relu(model.b1(z1))
    torch.testing.assert_close(taps.post["c1"][0].tensor, a1)
    torch.testing.assert_close(taps.pre["c2"][0].tensor, model.c2(a1))
    torch.testing.assert_close(taps.post["c2"][0].tensor, out)
    assert taps.post["c2"][0].unit_dim == 1


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 5)
        self.fused, self.glu, self.out = nn.Linear(5, 8), nn.Linear(4, 8), nn.Linear(4, 5)

    def forward(self, x):
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        a, b = self.fused(x).chunk(2, -1)
        return self.out(F.glu(self.glu(a * torch.sigmoid(b)), -1))


def test_gates():
    torch.manual_seed(0)
    model, x = Gated(), torch.randn(3, 2, 5)
    with tap(model) as taps:
        model(x)
    g, u = F.silu(model.gate(x)), model.up(x)
    torch.testing.assert_close(taps.post["gate"][0].tensor, g)
    torch.testing.assert_close(taps.post["up"][0].tensor, g * u)
    y = x + model.down(g * u)
    a, b = model.fused(y).chunk(2, -1)
    torch.testing.assert_close(taps.post["fused"][0].tensor, torch.cat([a * b.sigmoid(), b.sigmoid()], -1))
    z = F.glu(model.glu(a * b.sigmoid()), -1)
    torch.testing.assert_close(taps.post["glu"][0].tensor, torch.cat([z, z], -1))
    assert set(taps.missing) == {"down", "out"}
    assert "addmm" in taps.missing["down"]


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(12, 6), nn.Linear(12, 4)
        self.d = nn.Linear(8, 2)

    def forward(self, x):
        z = self.a(x)
        z = self.b(torch.cat([z.sin(), z.cos()], -1))
        z = self.c(F.relu(torch.cat([z, -z], -1)))
        return self.d(torch.cat([F.relu(z), F.relu(-z)], -1))


def test_pairs_are_two_responses_of_one_unit():
    torch.manual_seed(0)
    model, x = Pairs(), torch.randn(3, 5)
    with tap(model) as taps:
        model(x)
    z = model.a(x)
    torch.testing.assert_close(taps.post["a"][0].tensor, torch.stack([z.sin(), z.cos()], -1))
    for name in "bc":
        z = taps.pre[name][0].tensor
        torch.testing.assert_close(taps.post[name][0].tensor, torch.stack([z.relu(), (-z).relu()], -1))
        assert taps.post[name][0].unit_dim == 1


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 5)

    def forward(self, x):
        return self.a(x).relu() + self.a(x + 1).tanh()


def test_a_layer_used_twice_gives_two_taps():
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(3, 5)
    with tap(model) as taps:
        model(x).sum().backward()
    assert [t.op for t in taps.post["a"]] == ["relu", "tanh"]
    torch.testing.assert_close(taps.post["a"][1].tensor, model.a(x + 1).tanh())
    torch.testing.assert_close(taps.pre_grad["a"][0], (model.a(x) > 0).float())
    torch.testing.assert_close(taps.pre_grad["a"][1], 1 - model.a(x + 1).tanh() ** 2)


class PreNorm(nn.Module):
    """A residual stream: what writes on it meets no nonlinearity before the next matrix."""

    def __init__(self):
        super().__init__()
        self.q, self.o, self.f, self.g = (nn.Linear(6, n) for n in (18, 6, 12, 2))
        self.p, self.n = nn.Linear(12, 6), nn.RMSNorm(6)

    def forward(self, x):
        q, k, v = (t.view(2, 3, 2, 3).transpose(1, 2) for t in self.q(self.n(x)).split(6, -1))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 3, 6))
        return self.g(x + self.p(F.gelu(self.f(self.n(x)))))


def test_residual_stream_and_attention_have_reasons():
    torch.manual_seed(0)
    model = PreNorm()
    with tap(model) as taps:
        model(torch.randn(2, 3, 6))
    assert set(taps.post) == {"f"}
    assert set(taps.missing) == {"q", "o", "p", "g"}
    assert "view" in taps.missing["q"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5))

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    x = torch.randn(4, 5, requires_grad=True)
    with tap(inner) as plain:
        inner(x).square().sum().backward()
    model = Checkpointed()
    with tap(model) as taps:
        model(x).square().sum().backward()
    for name in "02":
        assert len(taps.pre["inner." + name]) == 1
        torch.testing.assert_close(taps.pre_grad["inner." + name][0], plain.pre_grad[name][0])
    torch.testing.assert_close(taps.post["inner.0"][0].tensor, plain.post["0"][0].tensor)


@pytest.mark.parametrize("inplace", [True, False])
def test_compiled_models_run_eagerly(inplace):
    torch.manual_seed(0)
    base = Functional(F.relu)
    x = torch.randn(4, 5)
    if inplace:
        model = base
        model.compile(backend="eager")
    else:
        model = torch.compile(base, backend="eager")
    model(x)
    with tap(model) as taps:
        model(x).sum().backward()
    assert set(taps.pre) == {"a", "b"}
    assert taps.pre_grad["a"][0] is not None
    torch.testing.assert_close(taps.post["a"][0].tensor, base.a(x).relu())


def test_bf16_autocast():
    torch.manual_seed(0)
    model = Functional(F.gelu)
    with tap(model) as taps, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 5)).float().sum().backward()
    assert taps.post["a"][0].tensor.dtype == torch.bfloat16 == taps.pre_grad["a"][0].dtype


def test_hooks_are_gone_after_an_error_and_copies_are_clean():
    class Broken(Functional):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("on purpose")

    model = Broken(F.relu)
    with contextlib.suppress(RuntimeError), tap(model) as taps:
        model(torch.randn(2, 5))
    assert hooks(model) == 0
    assert torch.backends.mha.get_fastpath_enabled()
    assert "a" in taps.post
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_encoder_layer_in_eval_mode_is_seen():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    with torch.no_grad(), tap(model) as taps:
        model(torch.randn(2, 3, 8))
    assert taps.post["linear1"][0].op == "relu"
    assert "not called" in taps.missing["self_attn.out_proj"]


def test_names():
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 4), "fc": nn.Linear(4, 2), "emb": nn.Embedding(5, 3)})
    with tap(model, layers=["lstm", "fc#q", "lstm.weight_ih_l0"]) as taps:
        model["fc"](torch.randn(1, 4))
    assert set(taps.missing) == {"lstm", "fc", "lstm.weight_ih_l0"}
    with pytest.raises(InputError, match="nope"), tap(model, layers=["nope"]):
        pass
    assert list(layer_modules(model)) == ["fc", "emb"]


def test_looking_at_a_parametrised_weight_does_not_change_it():
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert list(layer_modules(model)) == ["0", "2"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_output_nonlinearity_of_the_loss_is_not_the_networks():
    model = Functional(F.relu)
    with tap(model) as taps:
        torch.sigmoid(model(torch.randn(3, 5))).sum().backward()
    assert "b" in taps.missing


def test_freed_memory_is_not_mistaken_for_a_tagged_tensor():
    class Noisy(Functional):
        def forward(self, x):
            self.a(x)  # dropped: its storage may be used again at once
            return torch.relu(torch.zeros(x.shape[0], 6) + 1.0)

    model = Noisy(F.relu)
    with torch.no_grad(), tap(model) as taps:
        model(torch.randn(64, 5))
    assert "a" not in taps.post
