"""From one task to the next with Stable-Baselines3: the environment, and the statistics of its normaliser."""

from __future__ import annotations

import copy
from typing import Any, Literal

from supple.errors import InputError

Statistics = Literal["keep", "fresh", "frozen"]


def check_statistics(statistics: Any) -> None:
    """Refuse anything but the three choices."""
    if statistics not in ("keep", "fresh", "frozen"):
        raise InputError(
            "unknown choice for the statistics", found=repr(statistics), do='"keep", "fresh" or "frozen"'
        )


def set_statistics(normalizer: Any, statistics: Statistics) -> None:
    """What becomes of the running statistics of a ``VecNormalize`` at a task switch, in place.

    "keep": they go on, so the agent's own past scales what it sees; "fresh": mean 0, variance 1, count as at the
    start, so that the first steps of a task are scaled otherwise than the last ones of the task before; "frozen":
    as they are and never updated again. An agent without a normaliser (None) has nothing to choose.
    """
    check_statistics(statistics)
    if normalizer is None or statistics == "keep":
        return
    if statistics == "frozen":
        normalizer.training = False
        return
    from stable_baselines3.common.running_mean_std import RunningMeanStd

    if normalizer.norm_obs:
        if isinstance(normalizer.obs_rms, dict):
            normalizer.obs_rms = {
                k: RunningMeanStd(shape=v.mean.shape) for k, v in normalizer.obs_rms.items()
            }
        else:
            normalizer.obs_rms = RunningMeanStd(shape=normalizer.obs_rms.mean.shape)
    normalizer.ret_rms = RunningMeanStd(shape=())


def switch_env(agent: Any, env: Any, statistics: Statistics | None = None) -> Any:
    """Give the agent the environment of the next task, with its normaliser around it; returns the new one.

    ``agent.set_env`` alone would drop a ``VecNormalize``, silently. Here the new one has the settings of the old one
    and, by the choice that has to be made, its statistics: see `set_statistics`. The episode restarts.

    Args:
        agent: an SB3 agent.
        env: the next task: an environment or a vector environment without a normaliser.
        statistics: "keep", "fresh" or "frozen"; needed when the agent's environment is normalised, refused otherwise.

    Raises:
        InputError: no choice where one is needed, a choice where there is nothing to choose, an environment with a
            normaliser of its own.
    """
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

    if not hasattr(agent, "get_vec_normalize_env"):
        raise InputError("not an agent of Stable-Baselines3", found=type(agent).__name__)
    old = agent.get_vec_normalize_env()
    if old is None and statistics is not None:
        raise InputError("the agent's environment is not normalised", found=f"statistics={statistics!r}")
    if isinstance(env, VecEnv) and unwrap_vec_normalize(env) is not None:
        raise InputError(
            "give the environment without its normaliser", do="agent.set_env(env) to use your own"
        )
    if old is not None:
        if statistics is None:
            raise InputError(
                "what becomes of the statistics of VecNormalize has to be said",
                do='statistics="keep", "fresh" or "frozen"',
            )
        check_statistics(statistics)
        bare = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
        env = VecNormalize(
            bare, training=old.training, norm_obs=old.norm_obs, norm_reward=old.norm_reward, clip_obs=old.clip_obs,
            clip_reward=old.clip_reward, gamma=old.gamma, epsilon=old.epsilon, norm_obs_keys=old.norm_obs_keys,
        )  # fmt: skip
        if old.norm_obs:
            env.obs_rms = copy.deepcopy(old.obs_rms)
        env.ret_rms = copy.deepcopy(old.ret_rms)
        set_statistics(env, statistics)
    agent.set_env(env)
    return agent.get_env()
