"""Which network has a form of which method: all of them on a ConvNet, and what `--methods all` leaves out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.bench.conftest import shrunk
from torch import nn

from supple.bench.learner import Learner, TaskResult
from supple.bench.methods import METHODS
from supple.bench.networks import build
from supple.bench.protocols import Protocol, create
from supple.bench.rows import task_rows
from supple.bench.spec import RunSpec
from supple.cli.bench_choice import chosen
from supple.errors import InputError
from supple.models import ConvNet

NAME = "continual-cifar100"


def _small(**values: object) -> Protocol:
    return create(NAME, "demo", tasks=2, **{**shrunk(NAME), **values})


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_two_tasks_on_a_convnet(method: str) -> None:
    learner = Learner(RunSpec(protocol=_small(), method=method, seed=0))
    stream = learner.spec.protocol.sequence(0)
    for index in range(2):
        learner.start(index)
        task = stream.task(index)
        assert learner.learn(task).nonfinite == 0
        assert 0 <= learner.score(task) <= 1


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("layernorm", (nn.GroupNorm, nn.LayerNorm)),
        ("batchnorm", (nn.BatchNorm2d, nn.BatchNorm1d)),
        ("dropout", (nn.Dropout,)),
    ],
)
def test_a_convnet_has_the_reference_behind_every_hidden_layer(method: str, kinds: tuple[type, ...]) -> None:
    protocol = create("continual-imagenet")
    model, plain = (METHODS[m].build(protocol, 0) for m in (method, "plain"))
    assert sum(isinstance(m, kinds) for m in model.modules()) == 5
    own = dict(model.named_parameters())
    assert all(torch.equal(own[n], p) for n, p in plain.named_parameters())  # one draw for both
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2)
    with pytest.raises(InputError, match="unknown norm 'group'"):
        ConvNet(3, 32, 2, norm="group")


def test_layer_norm_of_a_convolution_is_over_channels_and_places() -> None:
    model = ConvNet(3, 32, 2, norm="layer")
    x = model.features.conv1(torch.randn(2, 3, 32, 32))
    mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(
        model.features.norm1(x), (x - mean) / (var + 1e-5).sqrt(), atol=1e-5, rtol=1e-4
    )


def test_a_shallow_network_is_not_linear_where_the_protocol_names_no_width() -> None:
    model = METHODS["shallow"].build(create("five-plus-one-cifar"), 0)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [(128, 3072), (100, 128)]


def test_all_leaves_out_what_a_network_has_no_form_of(capsys: pytest.CaptureFixture[str]) -> None:
    protocol = create("class-sequence-resnet")
    kept = chosen(protocol, "all")
    assert set(METHODS) - set(kept) == {
        *("nap", "layernorm_l2", "crelu", "fourier", "layernorm", "batchnorm", "dropout")
    }
    said = capsys.readouterr().err
    assert "left out: nap, layernorm_l2, layernorm: the network 'resnet8'" in said
    assert "left out: batchnorm: the network 'resnet8' of class-sequence-resnet is batch-normalised" in said
    with pytest.raises(InputError, match="no form with dropout"):
        chosen(protocol, "plain,dropout")
    muon = dataclasses.replace(protocol, optimizer="muon")
    assert chosen(muon, "all") == ["linear", "shallow"]
    with pytest.raises(InputError, match="unknown method 'x'"):
        chosen(protocol, "plain,x")


def test_hidden_boundaries_say_what_acts_on_steps(capsys: pytest.CaptureFixture[str]) -> None:
    chosen(create("digits-permuted", hidden_boundaries=True, tasks=10), "plain,cbp,redo")
    assert (
        "redo every 1000 steps instead of every task (a run has about 1120 steps)" in capsys.readouterr().err
    )
    chosen(create("digits-permuted", hidden_boundaries=True), "plain,cbp")
    chosen(create("digits-permuted"), "redo")
    assert capsys.readouterr().err == ""


def test_the_long_preset_has_a_quarter_of_the_width() -> None:
    protocol = create("continual-tiny-imagenet", "long")
    net = build(protocol)
    shapes = [len(p) for n, p in net.named_parameters() if n.endswith("weight")]
    assert shapes == [8, 16, 32, 32, 32, 2]
    assert protocol.to_dict()["widths"] == (8, 16, 32)
    assert "widths" not in create("continual-tiny-imagenet", "paper").to_dict()  # as in runs from before


def test_a_convnet_runs_channels_last_and_computes_the_same() -> None:
    net = build(create("continual-tiny-imagenet", "long")).double()
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    plain = ConvNet(3, 32, 2, widths=(8, 16, 32), hidden=(32, 32)).double()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("small_data")
def test_an_end_value_counts_what_it_is_judged_on() -> None:
    spec = RunSpec(protocol=_small(per_class=4), method="plain", seed=0)
    task = spec.protocol.sequence(0).task(0)
    assert len(task.judged[1]) != len(task)
    rows = {r.instrument: r.samples for r in task_rows(spec, 1, task, TaskResult(0.5, 1.0, 12, 0), 0.5)}
    assert rows["end_accuracy"] == len(task.judged[1])
    assert rows["online_accuracy"] == 12
