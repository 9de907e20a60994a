"""LunarLander as a protocol: gymnasium's own course, runs that resume, one message where Box2D is missing."""

from __future__ import annotations

import dataclasses
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from supple.bench import agent_probe
from supple.bench.protocols import create
from supple.errors import InputError, MissingExtraError
from supple.streams.rl import ObservationOffset, VectorLunarLander

from .test_control import spec
from .tiny import twice

pytestmark = pytest.mark.rl
boxed = pytest.mark.skipif(
    find_spec("Box2D") is None or find_spec("gymnasium") is None, reason="needs the extra rl-box2d"
)


def actions(env: VectorLunarLander, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(env.actions, size=env.copies)


@boxed
def test_every_copy_is_gymnasium_s_own_course() -> None:
    import gymnasium

    env, rng = VectorLunarLander(copies=2, limit=60, seed=3), np.random.default_rng(0)
    starts = np.random.Generator(np.random.PCG64(3))
    theirs = [gymnasium.make("LunarLander-v3").unwrapped for _ in range(2)]
    seeds = lambda: int(starts.integers(2**31))
    for other in theirs:
        other.reset(seed=seeds())  # those of the constructor, which reset() replaces
    first = env.reset()
    np.testing.assert_array_equal(first, [other.reset(seed=seeds())[0] for other in theirs])
    totals, ends, clock = np.zeros(2), 0, np.zeros(2)
    for _ in range(150):
        chosen = actions(env, rng)
        step = env.step(chosen)
        clock += 1
        returns = []
        for k, other in enumerate(theirs):
            x, reward, terminated, _, _ = other.step(int(chosen[k]))
            totals[k] += reward
            np.testing.assert_array_equal(step.final[k], x)
            assert step.reward[k] == reward
            assert step.terminated[k] == terminated
            assert step.truncated[k] == (clock[k] == 60 and not terminated)
            if step.terminated[k] or step.truncated[k]:
                returns.append(totals[k])
                x, totals[k], clock[k] = other.reset(seed=seeds())[0], 0.0, 0
                ends += 1
            np.testing.assert_array_equal(step.observation[k], x)
        assert step.returns == tuple(returns)
    assert ends >= 2


@boxed
def test_a_restored_one_goes_on_from_the_next_reset_and_says_so() -> None:
    one, two = VectorLunarLander(3, 40, seed=1), VectorLunarLander(3, 40, seed=9)
    rng = np.random.default_rng(0)
    for _ in range(50):
        one.step(actions(one, rng))
    two.load_state_dict(one.state_dict())
    with pytest.raises(InputError, match=r"mid-episode.*call reset"):
        two.step(actions(two, rng))
    np.testing.assert_array_equal(one.reset(), two.reset())
    for _ in range(60):
        chosen = actions(one, rng)
        np.testing.assert_array_equal(one.step(chosen).observation, two.step(chosen).observation)


@boxed
@pytest.mark.parametrize("method", ["plain", "fresh", "shrink_perturb_boundary"])
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(agent_probe, "TASKS", 1)
    monkeypatch.setattr(agent_probe, "STEPS", 4)
    run = dataclasses.replace(spec("lunarlander-offsets", method, tasks=4), measure_every=1)
    a, b = twice(run, tmp_path)
    pairs = zip(*(x.state()["learner"]["model"].values() for x in (a, b)), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)
    assert a.records.select(instrument="online_return").values()


@boxed
def test_its_tasks_are_offsets_of_the_eight_numbers() -> None:
    protocol = create("lunarlander-offsets", "small")
    env = protocol.environment(0)
    assert isinstance(env, ObservationOffset)
    assert (env.observation_size, env.actions) == (protocol.inputs, protocol.outputs) == (8, 4)
    env.task(2)
    assert np.abs(env.offset).min() > 0
    assert create("lunarlander-offsets", "paper").samples == 160_000


def test_without_box2d_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from supple.cli import main

    monkeypatch.setitem(sys.modules, "Box2D", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"Box2D is needed here.*supple\[rl-box2d\]"):
        VectorLunarLander()
    protocol = create("lunarlander-offsets", "demo")
    with pytest.raises(MissingExtraError, match=r"supple\[rl-box2d\]"):
        protocol.check()
    code = main(["bench", "run", "lunarlander-offsets", "--out", str(tmp_path)])
    told = capsys.readouterr()
    assert code != 0
    assert "supple[rl-box2d]" in told.err + told.out
    assert "Traceback" not in told.err
    assert not list(tmp_path.iterdir())
