"""The gymnasium wrappers: what changes, what stays, when the task switches, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
pytestmark = pytest.mark.rl

from gymnasium import spaces  # noqa: E402
from gymnasium.utils.env_checker import check_env  # noqa: E402

from supple.errors import InputError  # noqa: E402
from supple.streams import rl  # noqa: E402
from supple.streams.rl.gym import (  # noqa: E402
    ActionPermutation,
    DynamicsShift,
    ObservationOffset,
    ObservationPermutation,
    TaskSequence,
)

CARTPOLE = partial(gymnasium.make, "CartPole-v1")
CHANGES: dict[str, Callable[[Any], Any]] = {
    "offset": lambda env: ObservationOffset(env, 2.0, seed=3, tasks=5),
    "observations": lambda env: ObservationPermutation(env, seed=3),
    "actions": lambda env: ActionPermutation(env, seed=3),
    "gravity": lambda env: DynamicsShift(env, gravity=(0.5, 2.0), seed=3),
}


class Model:
    """What a MuJoCo model shows of its friction and gravity."""

    def __init__(self) -> None:
        self.geom_friction = np.tile([1.0, 0.5, 0.25], (3, 1))
        self.opt = type("Options", (), {"gravity": np.array([0.0, 0.0, -9.81])})()


class Blank(gymnasium.Env):
    """An environment of given spaces that samples observations and never ends."""

    def __init__(self, observations: Any, actions: Any, model: Any = None) -> None:
        self.observation_space, self.action_space, self.model = observations, actions, model
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.first_draw = float(self.np_random.random())
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        return self.observation_space.sample(), 0.0, False, False, {}


def course(env: Any, steps: int, seed: int = 0) -> list[Any]:
    found = [env.reset(seed=seed)[0]]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
        found.append(observation)
        if terminated or truncated:
            found.append(env.reset()[0])
    return found


@pytest.mark.filterwarnings("ignore:.*WARN")
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("index", [0, 2])
def test_gymnasium_s_own_checker_accepts_every_change(name: str, index: int) -> None:
    env = CHANGES[name](CARTPOLE())
    env.task(index)
    check_env(env, skip_render_check=True)
    check_env(TaskSequence(CHANGES[name](CARTPOLE()), every=7), skip_render_check=True)


@pytest.mark.parametrize("name", CHANGES)
def test_task_0_is_the_environment_and_a_task_is_its_index_alone(name: str) -> None:
    plain, changed, other = CARTPOLE(), CHANGES[name](CARTPOLE()), CHANGES[name](CARTPOLE())
    np.testing.assert_array_equal(course(plain, 30), course(changed, 30))
    for index in (4, 1, 3):  # by another way to the same task
        other.task(index)
    changed.task(3)
    np.testing.assert_array_equal(course(changed, 30), course(other, 30))
    other.task(4)
    assert not np.array_equal(course(changed, 30), course(other, 30))
    other.task(0)
    np.testing.assert_array_equal(course(plain, 30), course(other, 30))


@pytest.mark.parametrize("name", CHANGES)
def test_observations_lie_in_the_space_in_every_task(name: str) -> None:
    env = CHANGES[name](gymnasium.make("MountainCar-v0"))
    space = env.observation_space
    for index in range(5):
        env.task(index)
        assert env.observation_space == space
        assert all(space.contains(x) for x in course(env, 60))


def test_the_offset_is_the_one_of_the_numpy_environments_and_moves_the_bounds() -> None:
    env = ObservationOffset(gymnasium.make("MountainCar-v0"), 0.02, seed=7, tasks=4)
    numpy_env = rl.ObservationOffset(rl.VectorCartPole(copies=1), 0.02, seed=7)
    low, high = [], []
    for index in range(4):
        env.task(index)
        numpy_env.task(index)
        if index:  # two of the four numbers, as the draw goes entry by entry
            np.testing.assert_allclose(env.offset, numpy_env.offset[:2], rtol=1e-6)
        low.append(np.array([-1.2, -0.07]) + env.offset)
        high.append(np.array([0.6, 0.07]) + env.offset)
    np.testing.assert_allclose(env.observation_space.low, np.min(low, axis=0), rtol=1e-5)
    np.testing.assert_allclose(env.observation_space.high, np.max(high, axis=0), rtol=1e-5)
    with pytest.raises(InputError, match="was made for 4 tasks"):
        env.task(4)
    endless = ObservationOffset(gymnasium.make("MountainCar-v0")).observation_space
    assert np.isinf(endless.low).all()
    assert np.isinf(endless.high).all()


def test_permutations_move_entries_and_actions() -> None:
    image = spaces.Box(0, 255, (4, 5, 3), np.uint8)
    env = ObservationPermutation(Blank(image, spaces.Discrete(2)), seed=1)
    env.task(2)
    seen = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    moved = env.observation(seen)
    assert moved.shape == seen.shape
    assert sorted(moved.ravel()) == sorted(seen.ravel())
    assert not np.array_equal(moved, seen)
    inner = Blank(image, spaces.Discrete(3, start=5))
    acting = ActionPermutation(inner, seed=2)
    acting.task(1)
    acting.reset()
    for action in (5, 6, 7):
        acting.step(action)
    assert inner.actions == [acting.order[k] + 5 for k in range(3)]
    box = Blank(image, spaces.Box(-1.0, 1.0, (6,)))
    continuous = ActionPermutation(box, seed=2)
    continuous.task(1)
    continuous.reset()
    continuous.step(np.arange(6.0))
    np.testing.assert_array_equal(box.actions[0], np.arange(6.0)[continuous.order])


def test_friction_and_gravity_of_a_mujoco_model() -> None:
    model = Model()
    env = DynamicsShift(
        Blank(spaces.Box(0, 1, (2,)), spaces.Discrete(2), model),
        friction=(0.02, 2.0),
        gravity=lambda k: 1.0 + k,
    )
    doubled = DynamicsShift(gymnasium.make("CartPole-v1"), gravity=lambda k: 2.0 if k < 3 else float("nan"))
    assert doubled.unwrapped.gravity == 19.6  # of the first task too, before anyone names it
    with pytest.raises(InputError, match="needs a factor above 0 for gravity; found: nan"):
        doubled.task(3)
    factors = []
    for index in range(1, 200):
        env.task(index)
        factor = env.factor("friction", index)
        factors.append(factor)
        np.testing.assert_allclose(model.geom_friction, np.tile([factor, 0.5, 0.25], (3, 1)))
        np.testing.assert_allclose(model.opt.gravity, [0.0, 0.0, -9.81 * (1 + index)])
    assert 0.02 <= min(factors) < 0.04  # log-uniform: a tenth of the draws lies below 0.032
    assert 1.2 < max(factors) <= 2.0
    assert abs(float(np.mean(np.log(factors))) - np.log(0.2)) < 0.35  # the middle of log 0.02 and log 2
    env.task(0)
    np.testing.assert_array_equal(model.geom_friction, Model().geom_friction)
    np.testing.assert_array_equal(model.opt.gravity, Model().opt.gravity)


def test_a_told_boundary_cuts_the_episode_and_an_untold_one_shows_nothing() -> None:
    told = TaskSequence(ObservationOffset(CARTPOLE(), seed=1), every=5, tasks=3)
    told.reset(seed=0)
    tasks, cuts = [], []
    for _ in range(14):
        _, _, terminated, truncated, info = told.step(told.action_space.sample())
        tasks.append(info["task"])
        cuts.append(truncated)
        if terminated or truncated:
            told.reset()
    assert tasks == [0] * 5 + [1] * 5 + [2] * 4
    assert [i for i, cut in enumerate(cuts) if cut] == [4, 9]

    hidden = TaskSequence(ObservationOffset(CARTPOLE(), seed=1), every=5, tasks=3, told=False)
    plain = CARTPOLE()
    shown, base = [hidden.reset(seed=0)[0]], [plain.reset(seed=0)[0]]
    for step in range(8):
        observation, _, _, truncated, info = hidden.step(step % 2)
        assert "task" not in info
        assert info["hidden_task"] == (0 if step < 5 else 1)
        assert not truncated
        shown.append(observation)
        base.append(plain.step(step % 2)[0])
    difference = np.array(shown) - np.array(base)
    np.testing.assert_array_equal(difference[:6], 0.0)
    np.testing.assert_allclose(difference[6:], np.tile(hidden.env.offset_of(1), (3, 1)), rtol=1e-5)


def test_a_switch_that_is_asked_for() -> None:
    env = TaskSequence(ObservationOffset(CARTPOLE(), seed=1), tasks=4)
    env.reset(seed=0)
    env.task(3)
    observation, _, terminated, truncated, info = env.step(0)
    assert (terminated, truncated, info["task"], env.index) == (False, True, 0, 0)
    observation, info = env.reset(seed=0)
    assert info["task"] == env.index == 3
    np.testing.assert_allclose(observation - CARTPOLE().reset(seed=0)[0], env.env.offset, rtol=1e-5)
    assert env.step(0)[3] is False


def test_a_chain_of_environments_switches_at_the_end_of_an_episode() -> None:
    space, made = spaces.Box(0, 1, (2,)), []

    def level(k: int) -> Any:
        env = Blank(space, spaces.Discrete(2))
        made.append((k, env))
        return gymnasium.wrappers.TimeLimit(env, 4)

    chain = [partial(level, k) for k in range(3)]
    env = TaskSequence(chain, every=6, told=False, seed=5)
    env.reset(seed=11)
    tasks = []
    for _ in range(20):
        _, _, terminated, truncated, info = env.step(0)
        tasks.append(info["hidden_task"])
        if terminated or truncated:
            env.reset()
    # 8 = the end of the second episode; the next boundary stays at 12 steps
    assert tasks == [0] * 8 + [1] * 4 + [2] * 8
    assert env.observation_space is made[0][1].observation_space

    def draws(seed: int) -> list[float]:
        made.clear()
        again = TaskSequence([partial(level, k) for k in range(3)], seed=5)
        again.reset(seed=seed)
        found = []
        for index in (1, 2):
            again.task(index)
            again.reset()
            found.append(made[-1][1].first_draw)
        return found

    assert draws(11) == draws(11)  # a run repeats itself, in the new environments too
    assert draws(11) != draws(12)  # copies of a vector environment stay different


def test_changes_nest_and_the_outermost_reaches_all() -> None:
    inner = ObservationOffset(CARTPOLE(), seed=1)
    middle = gymnasium.wrappers.TimeLimit(inner, 50)  # somebody else's wrapper between them
    outer = ActionPermutation(middle, seed=1)
    outer.task(2)
    assert (inner.index, outer.index) == (2, 2)
    sequence = TaskSequence(outer)
    assert (inner.index, outer.index) == (0, 0)  # a sequence begins with the first task
    sequence.task(3)
    sequence.reset(seed=0)
    assert (inner.index, outer.index) == (3, 3)
    chain = TaskSequence(
        [partial(ObservationOffset, CARTPOLE(), 2.0, 1), partial(ObservationOffset, CARTPOLE())]
    )
    chain.task(1)
    chain.reset(seed=0)
    assert chain.env.index == 1


def test_an_episode_that_ends_by_itself_at_the_boundary_is_terminated_alone() -> None:
    class Short(Blank):
        closed = 0

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), 0.0, True, False, {}

        def close(self) -> None:
            type(self).closed += 1

    make = lambda: Short(spaces.Box(0, 1, (2,)), spaces.Discrete(2))
    env = TaskSequence([make, lambda: make()], every=1)
    env.reset(seed=0)
    looked_at = Short.closed
    assert looked_at == 1  # the second one was made to see its spaces, and closed again
    assert env.step(0)[2:4] == (True, False)
    assert env.reset()[1]["task"] == 1
    assert Short.closed == 2  # an environment is closed when its task is over


def test_vector_environments_of_gymnasium_and_stable_baselines() -> None:
    make = lambda: TaskSequence(ObservationOffset(CARTPOLE(), seed=1), tasks=4)
    envs = gymnasium.vector.SyncVectorEnv([make, make])
    envs.reset(seed=0)
    envs.call("task", 2)
    envs.step(np.array([0, 0]))
    for _ in range(2):
        _, _, _, _, info = envs.step(np.array([0, 1]))
    assert info["task"].tolist() == [2, 2]
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    vec = vec_env.DummyVecEnv([make, make])
    vec.reset()
    vec.env_method("task", 2)
    _, _, done, infos = vec.step(np.array([0, 1]))
    assert done.all()
    assert all(info["TimeLimit.truncated"] for info in infos)
    _, _, _, infos = vec.step(np.array([0, 1]))
    assert [info["task"] for info in infos] == [2, 2]


def test_bad_input_is_refused_by_name() -> None:
    box, image = spaces.Box(0, 1, (2,)), spaces.Box(0, 255, (2, 2), np.uint8)
    refusals: list[tuple[str, Callable[[], Any]]] = [
        ("wraps a gymnasium environment", lambda: ObservationOffset(3)),
        (
            "needs a Box of observations",
            lambda: ObservationOffset(Blank(spaces.Discrete(3), spaces.Discrete(2))),
        ),
        ("needs floating-point", lambda: ObservationOffset(Blank(image, spaces.Discrete(2)))),
        ("scale >= 0", lambda: ObservationOffset(CARTPOLE(), -1.0)),
        ("scale >= 0", lambda: ObservationOffset(CARTPOLE(), "2.0")),  # type: ignore[arg-type]
        ("0 < lo <= hi", lambda: DynamicsShift(CARTPOLE(), gravity=(2.0,))),  # type: ignore[arg-type]
        ("0 < lo <= hi", lambda: DynamicsShift(CARTPOLE(), gravity="ab")),  # type: ignore[arg-type]
        (
            "same bounds",
            lambda: ActionPermutation(
                Blank(box, spaces.Box(np.zeros(2), np.array([1.0, 2.0]), dtype=np.float64))
            ),
        ),
        ("Discrete or one-dimensional", lambda: ActionPermutation(Blank(box, spaces.MultiBinary(3)))),
        ("needs something to change", lambda: DynamicsShift(CARTPOLE())),
        ("finds no friction", lambda: DynamicsShift(CARTPOLE(), friction=(0.1, 1.0))),
        ("finds no gravity", lambda: DynamicsShift(gymnasium.make("Acrobot-v1"), gravity=(0.1, 1.0))),
        ("0 < lo <= hi", lambda: DynamicsShift(CARTPOLE(), gravity=(2.0, 1.0))),
        ("nothing in this environment changes", lambda: TaskSequence(CARTPOLE())),
        ("every is a whole number", lambda: TaskSequence(ObservationOffset(CARTPOLE()), every=0)),
        ("one per task", lambda: TaskSequence([])),
        ("one task per factory", lambda: TaskSequence([CARTPOLE], tasks=2)),
        (
            "need one observation_space",
            lambda: TaskSequence([CARTPOLE, partial(gymnasium.make, "Acrobot-v1")]),
        ),
        ("from 0 below 2", lambda: TaskSequence(ObservationOffset(CARTPOLE()), tasks=2).task(2)),
        ("whole number from 0", lambda: ActionPermutation(CARTPOLE()).task(-1)),
    ]
    for message, attempt in refusals:
        with pytest.raises(InputError, match=message):
            attempt()
