"""convert_: widths that fit together, counts that are told, and refusals before any write."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

import supple
from supple.errors import InputError, TopologyError
from supple.models import GPT, ResNet
from supple.nn import CReLU, DeepFourier, convert_, insert_norms_


def mlp(*sizes):
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convnet(norm=nn.BatchNorm2d, after=False):
    def block(a, b):
        parts = [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
        parts.insert(2 if after else 1, norm(b))
        return nn.Sequential(*parts, nn.MaxPool2d(2))

    return nn.Sequential(
        block(3, 8),
        block(8, 16),
        nn.Flatten(),
        nn.Linear(16 * 4, 32),
        nn.Tanh(),
        nn.Dropout(0.1),
        nn.Linear(32, 5),
    )


class Attributes(nn.Module):
    """Written as attributes; one activation serves three places; a functional flatten in between."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.out = nn.Linear(24, 5)  # defined before it is used
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 6, 3, stride=2, padding=1)

    def forward(self, x):
        return self.out(self.act(self.conv2(self.act(self.conv1(x)))).flatten(1))


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("activation", ["fourier", "crelu"])
@pytest.mark.parametrize("width", ["half", "match_params", "double"])
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: mlp(64, 256, 256, 10), (7, 64)),
        (convnet, (7, 3, 8, 8)),
        (lambda: convnet(after=True), (7, 3, 8, 8)),
        (lambda: convnet(lambda c: nn.GroupNorm(2, c)), (7, 3, 8, 8)),
        (Attributes, (7, 3, 8, 8)),
    ],
)
@pytest.mark.parametrize("watched", [True, False])
def test_converted_networks_run_train_and_count_right(activation, width, build, shape, watched, capsys):
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    if isinstance(model, Attributes) and not watched:
        with pytest.raises(TopologyError, match="pass inputs"):
            convert_(model, activation, width)
        return
    before, wanted = count(model), model(x).shape
    state = torch.get_rng_state()
    result = convert_(model, activation, width, inputs=x if watched else None)
    assert not torch.equal(state, torch.get_rng_state())  # it drew
    assert str(result) in capsys.readouterr().out
    assert (result.before, result.after) == (before, count(model))
    kinds = {type(m) for m in model.modules()}
    assert {"fourier": DeepFourier, "crelu": CReLU}[activation] in kinds
    assert nn.ReLU not in kinds
    out = model(x)
    assert out.shape == wanted
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    ratio = result.after / result.before
    assert {"half": ratio < 0.75, "match_params": abs(ratio - 1) < 0.15, "double": ratio > 1.3}[width]


def test_half_width_count_of_the_specification():
    model = mlp(784, 256, 256, 10)
    result = convert_(model, "crelu", verbose=False)
    assert (result.before, result.after) == (269322, 135946)
    matched = convert_(mlp(784, 256, 256, 10), "crelu", "match_params", verbose=False)
    assert abs(matched.after / 269322 - 1) < 0.005


def test_initialisation_has_the_right_gain_in_every_layer():
    torch.manual_seed(0)
    model = mlp(256, 1024, 1024, 10)
    convert_(model, "fourier", verbose=False)
    assert model[0].weight.std().item() * 256**0.5 == pytest.approx(1.0, rel=0.02)
    assert model[2].weight.std().item() * 1024**0.5 == pytest.approx(2**0.5, rel=0.02)
    assert model[4].weight.std().item() * 1024**0.5 == pytest.approx(2**0.5, rel=0.03)
    x = torch.randn(64, 256)
    assert model[:1](x).var().item() == pytest.approx(1, rel=0.1)
    assert model[:3](x).var().item() == pytest.approx(1, rel=0.1)


def test_filter_keeps_an_activation_and_the_layers_it_alone_touches():
    torch.manual_seed(0)
    model = mlp(6, 8, 8, 8, 3)
    kept = model[0].weight.detach().clone()
    convert_(model, "crelu", filter_fn=lambda m, path: path == "5", verbose=False)
    assert [type(m).__name__ for m in model] == [
        "Linear",
        "ReLU",
        "Linear",
        "ReLU",
        "Linear",
        "CReLU",
        "Linear",
    ]
    assert torch.equal(model[0].weight, kept)
    assert (model[4].out_features, model[6].in_features) == (4, 8)


def test_the_unit_axis_is_right_for_sequences_and_unbatched_images():
    model = mlp(6, 8, 3)
    convert_(model, "fourier", verbose=False)
    assert model(torch.randn(2, 5, 6)).shape == (2, 5, 3)
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    convert_(conv, "fourier", verbose=False)
    assert conv(torch.randn(3, 9, 9)).shape == (4, 5, 5)


def test_a_final_activation_and_flags_stay():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid()).eval()
    model[0].weight.requires_grad_(False)
    convert_(model, "crelu", verbose=False)
    assert isinstance(model[3], nn.Sigmoid)
    assert not model[1].training
    assert not model[0].weight.requires_grad
    assert model[0].weight.shape == (4, 6)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.b(self.act(self.a(x)))


class InPlaceActivation(Residual):
    """As torchvision writes it: norm, then an activation that writes over it."""

    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.BatchNorm1d(6), nn.ReLU(inplace=True)

    def forward(self, x):
        return x + self.b(self.act(self.norm(self.a(x))))


class InPlaceResidual(Residual):
    def forward(self, x):
        h = self.a(x)
        h += x
        return self.b(self.act(h))


class Functional(Residual):
    def forward(self, x):
        return self.b(nnf.relu(self.a(x)))


class Shared(Residual):
    def forward(self, x):
        return self.b(self.act(self.a(self.act(self.a(x)))))


class TwoHeads(Residual):
    def __init__(self):
        super().__init__()
        self.c = nn.Linear(6, 2)

    def forward(self, x):
        h = self.act(self.a(x))
        return self.b(h), self.c(h)


class Concat(Residual):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(12, 6)

    def forward(self, x):
        h = self.act(self.a(x))
        return self.b(torch.cat([h, x], 1))


class Unused(Residual):
    def __init__(self):
        super().__init__()
        self.c = nn.Linear(6, 2)

    def forward(self, x):
        return self.b(self.act(self.a(x)))


class BareParameter(Residual):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.b(self.act(self.a(x)))


@pytest.mark.parametrize(
    ("build", "place"),
    [
        (InPlaceResidual, "act"),
        (Functional, "b"),
        (Shared, "a"),
        (Concat, "b"),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 2)), "1"),
        (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), "0"),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Tanh(), nn.Linear(6, 2)), "2"),
        (lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), "0"),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), "the model"),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Softmax(-1), nn.Linear(6, 2)), "2"),
        (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), "norm1"),
    ],
)
def test_refusals_name_the_place_and_write_nothing(build, place):
    torch.manual_seed(0)
    model = build()
    x = torch.randn(2, 3, 6) if isinstance(model, nn.TransformerEncoderLayer) else torch.randn(3, 6)
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    flags, hooks = [m.training for m in model.modules()], sum(len(m._forward_hooks) for m in model.modules())
    with pytest.raises(TopologyError) as caught:
        convert_(model, "crelu", inputs=x)
    assert caught.value.where == place or place in str(caught.value)
    after = model.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert [type(m) for m in model.modules()] == kinds
    assert [m.training for m in model.modules()] == flags
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks


def test_odd_sizes_between_channels_and_consumer_are_refused_by_the_trial_run():
    class Pooled(nn.Module):
        """Reads a fixed number of features whatever arrives: no resize makes that right."""

        def __init__(self):
            super().__init__()
            self.a, self.act, self.b = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)

        def forward(self, x):
            return self.b(self.act(self.a(x)).view(-1, 6))

    model = Pooled()
    with pytest.raises(TopologyError, match=r"does not run|another shape"):
        convert_(model, "crelu", "double", inputs=torch.randn(3, 6))
    assert model.b.in_features == 6


def test_unknown_words_are_refused():
    with pytest.raises(InputError, match="fourier, crelu"):
        supple.convert_(mlp(4, 4, 2), "relu")
    with pytest.raises(InputError, match="half"):
        convert_(mlp(4, 4, 2), width="third")


def test_fourier_network_learns():
    torch.manual_seed(0)
    model = mlp(16, 64, 64, 4)
    convert_(model, "fourier", verbose=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, y = torch.randn(64, 16), torch.randint(0, 4, (64,))
    for _ in range(150):
        optimizer.zero_grad()
        loss = nnf.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


# -- branches -------------------------------------------------------------------------------------
def counted(model):
    return sum(p.numel() for p in model.parameters())


BRANCHED = {
    "residual": (Residual, (3, 6), ["a", "b"]),
    "in place": (InPlaceActivation, (3, 6), ["a", "b"]),
    "two heads": (TwoHeads, (3, 6), ["a", "b", "c"]),
    "unused": (Unused, (3, 6), ["a", "b"]),
    "resnet": (lambda: ResNet((8, 16), (1, 2), 5, channels=1), (2, 1, 8, 8), None),
    "resnet without norms": (lambda: ResNet((8, 16), (1, 1), 5, channels=1, norm=False), (2, 1, 8, 8), None),
}


@pytest.mark.parametrize("activation", ["crelu", "fourier"])
@pytest.mark.parametrize("width", ["half", "match_params", "double"])
@pytest.mark.parametrize("name", BRANCHED)
def test_branches_keep_their_stream(name, width, activation):
    build, shape, layers = BRANCHED[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    plain = copy.deepcopy(model)
    done = convert_(model, activation, width, inputs=x, verbose=False)
    assert (done.before, done.after) == (counted(plain), counted(model))
    if width == "match_params" and name.startswith("resnet"):
        assert abs(done.after / done.before - 1) < 0.05
    if layers is not None:
        assert [line.split(" ")[0] for line in done.layers] == layers
    paths = [line.split(" ")[0] for line in done.layers]
    for path, module in plain.named_modules():
        new = model.get_submodule(path)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and path not in paths:
            assert torch.equal(new.weight, module.weight), path  # the stream and what is beside it
        if path.endswith("conv1") or path == "a":
            units, reads = (
                new.weight.shape[0],
                model.get_submodule(path[:-1] + ("2" if path[-1] == "1" else "b")),
            )
            assert reads.weight.shape[1] == 2 * units
            factor = {"half": 0.5, "double": 1.0}.get(width)
            assert factor is None or units == factor * module.weight.shape[0]
        if path.endswith("conv2") or path in ("b", "head"):
            assert new.weight.shape[0] == module.weight.shape[0]
    model.train()
    out = model(x)
    sum(o.square().sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if "c." not in n
    )


def test_the_mlps_of_a_transformer():
    torch.manual_seed(0)
    ids = torch.randint(11, (2, 8))
    model = GPT(11, dim=16, depth=2, heads=2, context=8)
    attention = copy.deepcopy(model.blocks[0].attention.state_dict())
    done = convert_(model, "crelu", "half", inputs=ids, verbose=False)
    assert [line.split(" (")[0] for line in done.layers] == [
        f"blocks.{i}.mlp.{n}" for i in (0, 1) for n in ("up", "down")
    ]  # fmt: skip
    assert model.blocks[0].mlp.up.out_features == 32
    assert model(ids).shape == (2, 8, 11)
    assert all(torch.equal(v, attention[k]) for k, v in model.blocks[0].attention.state_dict().items())


def test_what_stays_is_named_and_what_cannot_is_refused():
    class Both(nn.Module):
        """A branch that can be converted, and an activation on the stream."""

        def __init__(self):
            super().__init__()
            self.a, self.act, self.b = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)
            self.outer, self.head = nn.ReLU(), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.outer(x + self.b(self.act(self.a(x)))))

    x = torch.randn(3, 6)
    done = convert_(Both(), "crelu", inputs=x, verbose=False)
    assert any(line.startswith("outer stays: it does not read just what one Linear") for line in done.layers)
    gated = GPT(11, dim=16, depth=1, heads=2, context=8, gated=True)
    before = copy.deepcopy(gated.state_dict())
    with pytest.raises(TopologyError, match=r"blocks.0.mlp.act: blocks.0.mlp.down reads other units too"):
        convert_(gated, "crelu", inputs=torch.randint(11, (2, 8)))
    assert all(torch.equal(v, before[k]) for k, v in gated.state_dict().items())
    odd = Residual()
    odd.a, odd.b = nn.Linear(6, 5), nn.Linear(5, 6)
    with pytest.raises(TopologyError, match="halved"):
        convert_(odd, "crelu", inputs=x)
    convert_(odd, "crelu", "match_params", inputs=x, verbose=False)
    assert odd(x).shape == (3, 6)


class Branch(nn.Module):
    """A residual branch whose activation writes in place."""

    def __init__(self, norm=False):
        super().__init__()
        self.a, self.norm = nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity()
        self.act, self.b = nn.ReLU(inplace=True), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.b(self.act(self.norm(self.a(x))))


@pytest.mark.parametrize("norm", [True, False])
def test_activations_in_place_are_converted_and_statistics_start_anew(norm):
    net, x = nn.Sequential(nn.Linear(4, 8), Branch(norm), nn.Linear(8, 2)), torch.randn(6, 4)
    for _ in range(3):
        net(x)
    done = convert_(net, "crelu", inputs=x, verbose=False)
    assert isinstance(net[1].act, CReLU)
    assert "1.a (Linear): 8 -> 16 becomes 8 -> 8" in done.layers
    if norm:
        assert int(net[1].norm.num_batches_tracked) == 0
    assert net(x).shape == (6, 2)


def test_a_compiled_network_is_watched_eagerly_and_a_replicated_one_refused(tmp_path):
    x = torch.randn(6, 4)
    net = mlp(4, 8, 2)
    compiled = torch.compile(net, backend="eager")
    compiled(x)
    convert_(compiled, "crelu", inputs=x, verbose=False)
    assert torch.equal(compiled(x), net(x))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        net = mlp(4, 8, 2)
        wrapped, before = nn.parallel.DistributedDataParallel(net), repr(net)
        for change in (convert_, insert_norms_):
            with pytest.raises(TopologyError, match="would not average"):
                change(wrapped, inputs=x)
        assert repr(net) == before
    finally:
        torch.distributed.destroy_process_group()
