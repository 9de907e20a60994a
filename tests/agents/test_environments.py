"""The numpy environments against gymnasium's, and their own contract."""

from __future__ import annotations

import numpy as np
import pytest

from supple.errors import InputError
from supple.streams.rl import ObservationOffset, VectorAcrobot, VectorCartPole, VectorEnv, VectorMountainCar

ENVS = [VectorCartPole, VectorAcrobot, VectorMountainCar]


@pytest.mark.rl
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (VectorCartPole, "CartPole-v1"),
        (VectorAcrobot, "Acrobot-v1"),
        (VectorMountainCar, "MountainCar-v0"),
    ],
)
def test_equal_to_gymnasium_step_by_step(ours: type[VectorEnv], theirs: str) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    other = gymnasium.make(theirs).unwrapped
    env = ours(copies=1, limit=10_000, seed=3)
    rng = np.random.default_rng(0)
    other.reset(seed=0)
    env.reset()
    other.state = env.state[0].copy()
    for _ in range(200):
        action = int(rng.integers(env.actions))
        step = env.step(np.array([action]))
        observation, reward, terminated, _, _ = other.step(action)
        np.testing.assert_allclose(step.final[0], observation, atol=1e-5)
        assert step.reward[0] == reward
        assert step.terminated[0] == terminated
        if terminated:
            other.reset(seed=1)
            other.state = env.state[0].copy()
        else:
            other.state = env.state[0].copy()  # gymnasium returns float32; follow the float64 state


@pytest.mark.parametrize("cls", ENVS)
def test_same_seed_same_course_and_resume(cls: type[VectorEnv]) -> None:
    def course(env: VectorEnv, n: int, rng: np.random.Generator) -> list[np.ndarray]:
        return [env.step(rng.integers(env.actions, size=env.copies)).observation for _ in range(n)]

    one, two = cls(copies=3, limit=20, seed=5), cls(copies=3, limit=20, seed=5)  # type: ignore[call-arg]
    r1, r2 = np.random.default_rng(1), np.random.default_rng(1)
    for x, y in zip(course(one, 30, r1), course(two, 30, r2), strict=True):
        np.testing.assert_array_equal(x, y)
    three = cls(copies=3, limit=20, seed=99)  # type: ignore[call-arg]
    three.load_state_dict(one.state_dict())
    for x, y in zip(course(one, 30, r1), course(three, 30, r2), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("cls", ENVS)
def test_time_limit_truncates_and_returns_add_up(cls: type[VectorEnv]) -> None:
    env = cls(copies=2, limit=5, seed=0)  # type: ignore[call-arg]
    env.reset()
    steps = [env.step(np.zeros(2, dtype=np.int64)) for _ in range(5)]
    assert steps[-1].truncated.all() or any(s.terminated.any() for s in steps)
    ended = [r for s in steps for r in s.returns]
    assert len(ended) >= 2
    assert all(abs(r) <= 5 for r in ended)


def test_bad_actions_are_refused() -> None:
    env = VectorCartPole(copies=2)
    for bad in (np.array([0]), np.array([0, 2]), np.array([-1, 0])):
        with pytest.raises(ValueError, match="actions must be"):
            env.step(bad)


def test_an_offset_of_no_scale_is_refused() -> None:
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="scale of the offsets"):
            ObservationOffset(VectorCartPole(copies=2), scale=scale)


def test_offset_is_constant_within_a_task_and_keyed() -> None:
    env = ObservationOffset(VectorCartPole(copies=2, seed=0), scale=2.0, seed=7)
    plain = VectorCartPole(copies=2, seed=0)
    env.task(2)
    other = ObservationOffset(VectorCartPole(copies=2), scale=2.0, seed=7)
    other.task(2)
    np.testing.assert_array_equal(env.offset, other.offset)
    shift = env.reset() - plain.reset()
    np.testing.assert_allclose(shift, np.tile(env.offset, (2, 1)))
    step, base = env.step(np.array([0, 1])), plain.step(np.array([0, 1]))
    np.testing.assert_allclose(step.observation - base.observation, shift)
    np.testing.assert_allclose(step.final - base.final, shift)
