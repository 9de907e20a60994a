"""The published suites: every family runs where its package is installed, and names its extra where not."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

gymnasium = pytest.importorskip("gymnasium")
pytestmark = pytest.mark.rl

from supple.errors import InputError, MissingExtraError  # noqa: E402
from supple.streams.rl import suite, suites  # noqa: E402

STEPS = 2000


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", sorted(suites()))
def test_every_family_runs_2000_steps(name: str) -> None:
    chosen = suites()[name]
    if chosen.missing:
        with pytest.raises(MissingExtraError, match=rf"supple\[{chosen.extra}\]"):
            suite(name)
        pytest.skip(f"needs the extra {chosen.extra}")
    env = suite(name).make(steps=STEPS // chosen.tasks, seed=1)
    observation, info = env.reset(seed=0)
    env.action_space.seed(0)
    tasks = {info["task"]}
    for _ in range(STEPS):
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert isinstance(float(reward), float)
        tasks.add(info["task"])
        if terminated or truncated:
            observation, info = env.reset()
    assert tasks == set(range(chosen.tasks))
    env.close()


def test_published_settings() -> None:
    known = suites()
    facts = {name: (s.tasks, s.steps["paper"]) for name, s in known.items()}
    assert facts["gym-cartpole"] == facts["gym-acrobot"] == facts["gym-lunarlander"] == (10, 160_000)
    assert facts["gym-mountaincar"] == (5, 320_000)
    assert facts["minatar"] == (3, 2_000_000)
    assert [facts[f"dmc-{d}"] for d in ("walker", "quadruped", "dog")] == [(k, 1_000_000) for k in (3, 3, 4)]
    assert sum(name.startswith("procgen-") for name in known) == 16
    assert facts["procgen-starpilot"] == (10, 2_000_000)
    assert facts["ant-friction"][1] == 2_000_000
    assert {s.extra for s in known.values()} == {
        "rl", "rl-box2d", "rl-dmc", "rl-procgen", "rl-atari", "rl-mujoco",
    }  # fmt: skip
    assert all(set(s.steps) == {"paper", "day", "small"} for s in known.values())


def test_a_missing_package_is_one_message_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(suites()["gym-cartpole"], packages=("no_such_package",), extra="rl-none")
    monkeypatch.setattr("supple.streams.rl.catalogue.suites", lambda: {"absent": absent})
    with pytest.raises(MissingExtraError, match=r"needs no_such_package.*pip install 'supple\[rl-none\]'"):
        suite("absent")
    with pytest.raises(MissingExtraError, match="rl-none"):
        absent.make()


def test_a_mujoco_that_dm_control_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = dataclasses.replace(suites()["dmc-walker"])
    monkeypatch.setattr("supple.streams.rl.catalogue.find_spec", lambda package: object())
    monkeypatch.setattr("supple.streams.rl.catalogue.metadata.version", lambda package: "4.0.0")
    with pytest.raises(MissingExtraError, match=r"does not run with MuJoCo 4.*found: mujoco 4\.0\.0.*rl-dmc"):
        chosen.make()


def test_bad_names_and_numbers() -> None:
    with pytest.raises(InputError, match=r"unknown suite 'nonsense'.*gym-cartpole"):
        suite("nonsense")
    chosen: Any = suite("gym-cartpole")
    with pytest.raises(InputError, match="unknown preset"):
        chosen.make("tiny")
    with pytest.raises(InputError, match="has 1 to 10 tasks"):
        chosen.make(tasks=11)
    with pytest.raises(InputError, match="every is a whole number of at least 1; found: 0"):
        chosen.make(steps=0)


def test_factories_travel_to_other_processes() -> None:
    pytest.importorskip("minatar")
    made = suites()["minatar"].build(0, 2)
    assert len(pickle.loads(pickle.dumps(made))) == 2
    env = suite("minatar").make(tasks=2, steps=3)
    env.reset(seed=0)
    assert env.every == 3
    assert suite("minatar").make("small").every == 20_000


@pytest.mark.parametrize("name", ["ant-friction", "dmc-walker"])
def test_friction_changes_the_course_of_a_real_mujoco_model(name: str) -> None:
    from supple.streams.rl.gym import DynamicsShift

    chosen = suites()[name]
    if chosen.missing:
        pytest.skip(f"needs the extra {chosen.extra}")
    made = chosen.build(0, 1)
    env = made if not isinstance(made, list) else DynamicsShift(made[0](), friction=(0.02, 2.0))

    def end() -> list[float]:
        env.action_space.seed(0)
        env.reset(seed=0)
        return [float(x) for _ in range(40) for x in env.step(env.action_space.sample())[0]]

    base = end()
    assert end() == base
    env.task(1)
    assert end() != base
    env.task(0)
    assert end() == base


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["dmc-walker", "procgen-coinrun"])
def test_gymnasium_s_checker_accepts_the_adapters(name: str) -> None:
    from gymnasium.utils.env_checker import check_env

    chosen = suites()[name]
    if chosen.missing:
        pytest.skip(f"needs the extra {chosen.extra}")
    check_env(chosen.build(0, 1)[0](), skip_render_check=True)
