"""Modules that trackers tend to miss: every layer is measured, listed as not seen, or the model is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

import supple
from supple.errors import SuppleError
from supple.observe import Monitor, observe


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.h = nn.Parameter(torch.randn(8, 6)), nn.Linear(8, 3)

    def forward(self, x):
        return self.h(F.relu(F.linear(x, self.w)))


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.r, self.h = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.h(self.r(self.a(self.r(self.a(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.m, self.h = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        x = x[:, None].repeat(1, 4, 1)
        return self.h(self.m(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.l, self.h = kind(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.h(self.l(x[:, None].repeat(1, 4, 1))[0][:, -1])


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.g, self.t = nn.Conv1d(2, 4, 3, groups=2, padding=1), nn.ConvTranspose1d(4, 4, 2)
        self.h = nn.Linear(16, 3)

    def forward(self, x):
        return self.h(F.relu(self.t(F.relu(self.g(x.view(-1, 2, 3))))).flatten(1))


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.b, self.h = nn.Embedding(10, 6), nn.EmbeddingBag(10, 6), nn.Linear(6, 3)

    def forward(self, x):
        ids = (x.abs() * 3).long().clamp(max=9)
        return self.h((self.e(ids).mean(1) + self.b(ids)).relu())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.h(self.b(self.a(x).relu()).relu())


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.b, self.h = nn.Bilinear(6, 6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.h(self.b(x, x).relu())


class Branching(nn.Module):
    """One of two layers runs, by the data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.h((self.a(x) if x.sum() > 0 else self.b(x)).relu())


def plain():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def changed(change):
    model = plain()
    change(model)
    return model


def initialised():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    model(torch.randn(2, 6))
    return model


SEEN = {
    "functional": Functional,
    "reused, in place": Reused,
    "attention": Attention,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "grouped and transposed": Convolutions,
    "tables": Tables,
    "tied": Tied,
    "bilinear": Bilinear,
    "branching": Branching,
    "pruned": lambda: changed(lambda m: prune.random_unstructured(m[0], "weight", 0.3)),
    "parametrised": lambda: changed(lambda m: parametrizations.weight_norm(m[0])),
    "partly frozen": lambda: changed(lambda m: m[0].requires_grad_(False)),
    "all frozen": lambda: changed(lambda m: m.requires_grad_(False)),
    "not contiguous": lambda: changed(lambda m: setattr(m[0], "weight", nn.Parameter(torch.randn(6, 8).T))),
    "lazy, initialised": initialised,
    "prelu, norm last": lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.LayerNorm(8), nn.Linear(8, 3)),
    "dropout of all": lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(1.0), nn.ReLU(), nn.Linear(8, 3)),
}


def meta():
    with torch.device("meta"):
        return plain()


REFUSED = {
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)), "0.weight"),
    "meta": (meta, "0.weight"),
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, torch.qint8),
        "no layer with a weight",
    ),
    "scripted": (lambda: torch.jit.script(plain()), "TorchScript"),
}
BATCH = (torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3)


@pytest.mark.parametrize("name", SEEN)
def test_every_parameterised_layer_is_measured_or_listed(name):
    torch.manual_seed(0)
    model = SEEN[name]()
    coverage = supple.coverage(model, BATCH[0])
    rows = observe(model, BATCH, F.cross_entropy, instruments="economy").records
    measured = {r.layer.partition("#")[0] for r in rows}
    told = measured | {layer.name for layer in coverage.layers}
    for path, parameter in model.named_parameters():
        inside = ".parametrizations" in path
        owner = path.partition(".parametrizations")[0] if inside else path.rpartition(".")[0]
        if parameter.dim() > 1:
            assert owner in told or path in told or any(t.startswith(owner) for t in told if owner), path
    assert all(layer.reason for layer in coverage.missed)
    assert all(r.note for r in rows if r.status != "measured")


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_cannot_be_looked_into_is_refused_by_name(name):
    make, says = REFUSED[name]
    with pytest.raises(SuppleError, match=says):
        observe(make(), BATCH, F.cross_entropy, instruments="economy")
    with pytest.raises(SuppleError, match=says):
        supple.coverage(make(), BATCH[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_monitor_refuses_torchscript():
    model = torch.jit.script(plain())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SuppleError, match="TorchScript"):
        Monitor(model, optimizer, probe=BATCH, loss_fn=F.cross_entropy)
    assert not optimizer._optimizer_step_pre_hooks
