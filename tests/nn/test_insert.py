"""Norms before every nonlinearity: where they stand, what they change, what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from supple.errors import InputError, TopologyError
from supple.interventions import NormalizeAndProject
from supple.models import GPT, MLP, ConvNet, ResNet
from supple.nn import insert_norms_


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(nnf.relu(self.fc2(nnf.relu(self.fc1(x)))))


@pytest.mark.parametrize(
    ("model", "inputs", "places"),
    [
        (lambda: MLP((4, 8, 8, 3)), (5, 4), ["fc1", "fc2"]),
        (Functional, (5, 4), ["fc1", "fc2"]),
        (lambda: ConvNet(1, 32, 2, widths=(3, 4, 5), hidden=(6,)), (2, 1, 32, 32), None),
        (lambda: ResNet((4, 8), (1, 1), 3, channels=1, norm=False), (2, 1, 8, 8), None),
    ],
    ids=["mlp", "functional", "convnet", "resnet"],
)
def test_a_norm_behind_every_hidden_layer(model, inputs, places):
    torch.manual_seed(0)
    net, x = model(), torch.randn(inputs)
    plain = copy.deepcopy(net)
    done = insert_norms_(net, x, verbose=False)
    if places is not None:
        assert [path for path, _ in done.places] == places
    assert done.after == sum(p.numel() for p in net.parameters()) > done.before
    assert net(x).shape == plain(x).shape
    for path, _ in done.places:  # the layer itself is as it was
        assert torch.equal(net.get_submodule(f"{path}.layer").weight, plain.get_submodule(path).weight)
    # what feeds a nonlinearity is normalised, and projection finds its norms
    seen = []
    hooks = [
        net.get_submodule(f"{path}.norm").register_forward_hook(lambda m, a, out: seen.append(out))
        for path, _ in done.places
    ]
    net(x)
    assert all(abs(float(out.detach().mean())) < 0.2 for out in seen)
    for hook in hooks:
        hook.remove()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    NormalizeAndProject().attach(net, optimizer, inputs=x)
    net(x).square().mean().backward()
    optimizer.step()
    with pytest.raises(TopologyError, match="no hidden layer without a norm"):
        insert_norms_(net, x)


def test_choices_and_refusals_leave_the_network_alone(capsys):
    x = torch.randn(3, 4)
    net = Functional()
    insert_norms_(net, x, kind="rms", filter_fn=lambda module, path: path != "fc2")
    assert "behind fc1: RMSNorm(6)" in capsys.readouterr().out
    assert isinstance(net.fc2, nn.Linear)
    with pytest.raises(InputError, match="unknown kind"):
        insert_norms_(Functional(), x, kind="batch")
    conv = ConvNet(1, 32, 2, widths=(3, 4, 5), hidden=(6,))
    before = repr(conv)
    with pytest.raises(TopologyError, match="no form behind a convolution"):
        insert_norms_(conv, torch.randn(2, 1, 32, 32), kind="rms")
    assert repr(conv) == before

    class Reads(Functional):
        def forward(self, x):
            return self.head(nnf.relu(nnf.linear(x, self.fc1.weight[:6])))

    odd = Reads()
    before = repr(odd)
    with pytest.raises(TopologyError):
        insert_norms_(odd, x)
    assert repr(odd) == before


def test_a_transformer_gets_them_in_its_mlps():
    torch.manual_seed(0)
    net, ids = GPT(11, dim=16, depth=2, heads=2, context=8), torch.randint(11, (2, 8))
    done = insert_norms_(net, ids, verbose=False)
    assert len(done.places) == 2
    assert all(norm == "LayerNorm(64)" for _, norm in done.places)
    assert net(ids).shape == (2, 8, 11)


def test_a_parametrised_layer_gets_its_norm():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    done = insert_norms_(net, torch.randn(3, 4), verbose=False)
    assert done.places == (("0", "LayerNorm(8)"),)
    assert net(torch.randn(3, 4)).shape == (3, 2)
