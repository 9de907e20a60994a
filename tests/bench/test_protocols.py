"""Protocols: the published counts, a source for every value, presets, refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tests.bench.conftest import shrunk

from supple.bench import methods, protocols
from supple.bench.protocols import PROTOCOLS, DigitsPermuted, DigitsRandomLabels, Protocol
from supple.errors import InputError


@pytest.mark.parametrize("cls", PROTOCOLS.values())
def test_every_value_names_its_source(cls: type[Protocol]) -> None:
    sources = cls.sources()
    assert set(sources) == {f.name for f in dataclasses.fields(cls)}
    assert all(len(text) > 10 for text in sources.values())
    assert cls.title
    assert cls.description


@pytest.mark.parametrize("cls", PROTOCOLS.values())
def test_every_preset_makes_a_protocol_that_json_can_hold(cls: type[Protocol]) -> None:
    for preset in cls.presets:
        protocol = cls.preset(preset)
        assert json.loads(json.dumps(protocol.to_dict()))["name"] == cls.name
        assert set(protocol.settings) <= set(methods.METHODS)
    assert {"demo", "small"} <= set(cls.presets)
    assert {"paper", "day"} & set(cls.presets)  # the published setting, or the long one of an own protocol
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.tasks = 3


def test_d2_and_a_are_as_in_the_study() -> None:
    d2 = DigitsPermuted.preset("paper")
    assert (d2.tasks, d2.batch, d2.epochs, d2.hidden, d2.optimizer, d2.lr) == (
        150,
        16,
        1,
        (64, 64),
        "adam",
        3e-3,
    )
    assert d2.stream(0).task(0).steps(d2.batch, d2.epochs) == 112
    a = DigitsRandomLabels.preset("paper")
    assert (a.tasks, a.batch, a.epochs, a.hidden, a.optimizer, a.lr) == (60, 16, 20, (64, 64), "sgd", 0.1)
    assert a.stream(0).task(0).steps(a.batch, a.epochs) == 360
    assert isinstance(d2.build_optimizers([torch.zeros(1, requires_grad=True)])[0], torch.optim.Adam)
    assert DigitsPermuted.preset("demo").hidden == (128, 128)


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("cls", [p for p in PROTOCOLS.values() if p.supervised])
def test_streams_depend_on_the_seed_alone(cls: type[Protocol]) -> None:
    first, again = (cls(tasks=3, **shrunk(cls.name)).stream(4).task(2) for _ in range(2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert len(cls(tasks=3, **shrunk(cls.name)).stream(0)) == 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: protocols.create("mnist"), "unknown protocol 'mnist'; do: choose one of digits-permuted"),
        (lambda: protocols.create("digits-permuted", "huge"), "unknown preset 'huge'"),
        (lambda: protocols.create("digits-permuted", taks=3), "found: taks"),
        (lambda: protocols.create("digits-permuted", tasks=0), "tasks must be at least 1"),
        (lambda: protocols.create("digits-permuted", optimizer="lion"), "unknown optimizer 'lion'"),
    ],
)
def test_wrong_names_are_refused_with_the_right_ones(make, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()
