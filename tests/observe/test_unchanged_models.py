"""Observing never changes training: bitwise, over the larger architectures."""

import pytest
from tests.observe.cases import MODELS
from tests.observe.watched import same, train


@pytest.mark.parametrize("name", MODELS)
def test_training_is_bitwise_the_same(name):
    assert same(train(name, watch=False), train(name, watch=True))


@pytest.mark.parametrize("name", ["gpt"])
def test_training_is_bitwise_the_same_in_bf16(name):
    assert same(train(name, watch=False, autocast=True), train(name, watch=True, autocast=True))
