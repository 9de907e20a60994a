"""The replay buffer against a plain list of transitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from supple.agents import Replay
from supple.errors import InputError


def filled(capacity: int, copies: int, adds: int, dtype: type = np.float32) -> tuple[Replay, list[tuple]]:
    rng, replay, book = np.random.default_rng(0), Replay(capacity, (2, 3, 3), dtype), []
    for i in range(adds):
        x, y = (rng.random((copies, 2, 3, 3)) < 0.5 for _ in range(2))
        a, r = i * copies + np.arange(copies), rng.normal(size=copies)
        t = rng.random(copies) < 0.3
        replay.add(x.astype(float), a, r, y.astype(float), t)
        book += list(zip(x, a, r, y, t, strict=True))
    return replay, book[-capacity:]


@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
@pytest.mark.parametrize(("copies", "adds"), [(1, 3), (1, 25), (4, 2), (4, 7), (7, 9)])
def test_it_holds_the_last_transitions_and_samples_them_whole(copies: int, adds: int, dtype: type) -> None:
    replay, book = filled(10, copies, adds, dtype)
    assert len(replay) == len(book)
    known = {int(a): (x, r, y, t) for x, a, r, y, t in book}
    batch = replay.sample(200, torch.Generator().manual_seed(0), torch.float64)
    assert {int(a) for a in batch.actions} == set(known)  # every one of them is drawn sooner or later
    for i, a in enumerate(batch.actions.tolist()):
        x, r, y, t = known[a]
        np.testing.assert_array_equal(batch.observations[i].numpy(), x.astype(float))
        np.testing.assert_array_equal(batch.following[i].numpy(), y.astype(float))
        assert batch.rewards[i].item() == r
        assert batch.terminated[i].item() == float(t)
    assert batch.observations.dtype == batch.terminated.dtype == torch.float64


def test_a_sample_is_a_copy() -> None:
    replay, _ = filled(10, 2, 3)
    batch = replay.sample(4, torch.Generator().manual_seed(1))
    batch.observations.fill_(9.0)
    assert replay.columns["observations"].max() <= 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
@pytest.mark.parametrize("adds", [0, 2, 7])
def test_state_goes_on_as_before(adds: int, dtype: type) -> None:
    replay, _ = filled(10, 3, adds, dtype)
    state = replay.state_dict()
    other = Replay(10, (2, 3, 3), dtype)
    other.load_state_dict(state)
    more = np.ones((3, 2, 3, 3)), np.arange(3), np.ones(3), np.zeros((3, 2, 3, 3)), np.zeros(3, dtype=bool)
    for buffer in (replay, other):
        buffer.add(*more)
    one, two = (b.sample(50, torch.Generator().manual_seed(2)) for b in (replay, other))
    for name in vars(one):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    again = Replay(10, (2, 3, 3), dtype)
    again.load_state_dict(state)  # a state is no view of the buffer that it came from
    assert len(again) == min(10, 3 * adds)


def test_refusals() -> None:
    replay, _ = filled(10, 2, 2)
    with pytest.raises(InputError, match="cannot take these"):
        replay.add(
            np.ones((11, 2, 3, 3)), np.arange(11), np.ones(11), np.ones((11, 2, 3, 3)), np.ones(11, bool)
        )
    with pytest.raises(InputError, match="empty"):
        Replay(3, (2,)).sample(1, torch.Generator())
    with pytest.raises(InputError, match="at least one"):
        Replay(0, (2,))
    for other in (Replay(11, (2, 3, 3)), Replay(10, (2, 3, 4)), Replay(10, (2, 3, 3), np.bool_)):
        with pytest.raises(InputError, match="another replay buffer"):
            other.load_state_dict(replay.state_dict())
        assert len(other) == 0
