"""The list of suites: what changes, how long, with which agent, and whose choice it was."""

from __future__ import annotations

from typing import Any

from supple.streams.rl.catalogue import Suite, factories

CCHAIN = "Tang et al. 2025, C-CHAIN, arXiv 2506.00592"
MUJOCO = ("gymnasium", "mujoco", "imageio")

PPO_GYM = {
    "algorithm": "PPO", "network": "separate policy and value MLP 3 x 256, LeakyReLU 0.1", "learning_rate": 1e-3,
    "steps_per_iteration": 800, "batch": 32, "epochs": 5, "clip": 0.2, "entropy": 0.01, "value": 0.5, "gamma": 0.99,
    "trace": 0.95, "reward_scale": 1 / 20, "environments": 1, "seeds": 6,
}  # fmt: skip
PPO_PROCGEN = {
    "algorithm": "PPO", "network": "IMPALA 16-32-32, dense 256, shared", "learning_rate": 1e-3, "eps": 1e-5,
    "steps_per_iteration": 1000, "minibatches": 8, "epochs": 3, "clip": 0.2, "entropy": 0.01, "gamma": 0.999,
    "environments": 1, "reset_at_rollout": True, "seeds": 6,
}  # fmt: skip
PPO_DMC = {
    "algorithm": "PPO", "network": "separate MLP 2 x 256, ReLU, orthogonal", "learning_rate": 3e-4,
    "steps_per_iteration": 2048, "minibatches": 32, "epochs": 10, "normalizer": "fresh per task", "seeds": 12,
}  # fmt: skip
DDQN_MINATAR = {
    "algorithm": "double DQN", "network": "conv 16 (3 x 3), dense 128", "learning_rate": 3e-4, "batch": 32,
    "target_update": 1000, "buffer": 100_000, "buffer_flushed": False, "gamma": 0.99, "loss": "mse",
    "epsilon": (1.0, 0.1), "epsilon_steps": 100_000, "random_steps_per_task": 10_000, "environments": 1,
    "idle_cut": {"seaquest": 1000}, "seeds": 12,
}  # fmt: skip
ANT = {"algorithm": "PPO", "episode": 1000}

# Atari: the paper cycles through games; this list and its length are a choice of ours.
ATARI = (
    "Alien",
    "Atlantis",
    "Boxing",
    "Breakout",
    "Bowling",
    "Centipede",
    "Freeway",
    "Kangaroo",
    "Pong",
    "Qbert",
)
# not imported from the environments' module, which needs their packages
PROCGEN = (
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot",
    "heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
)  # fmt: skip
FIRST_LEVEL = 20
SLIPPERY = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5")


def _steps(paper: int, day: int, small: int) -> dict[str, int]:
    return {"paper": paper, "day": day, "small": small}


def _offset(env_id: str, scale: float) -> Any:
    def build(seed: int, tasks: int) -> Any:
        import gymnasium

        from supple.streams.rl.gym import ObservationOffset

        # cap of 400 steps per episode, as published
        return ObservationOffset(gymnasium.make(env_id, max_episode_steps=400), scale, seed, tasks)

    return build


def _friction(env_id: str) -> Any:
    def build(seed: int, tasks: int) -> Any:
        import gymnasium

        from supple.streams.rl.gym import DynamicsShift

        return DynamicsShift(gymnasium.make(env_id), friction=(0.02, 2.0), seed=seed)

    return build


def _minatar(seed: int, tasks: int) -> Any:
    from supple.streams.rl.gym.games import minatar

    return factories(minatar, [("SpaceInvaders",), ("Asterix",), ("Seaquest",)][:tasks])


def _atari(seed: int, tasks: int) -> Any:
    from supple.streams.rl.gym.games import atari

    return factories(atari, [(game,) for game in ATARI[:tasks]])


def _control(domain: str, *chain: str) -> Any:
    def build(seed: int, tasks: int) -> Any:
        from supple.streams.rl.gym.dmcontrol import DMControl

        return factories(DMControl, [(domain, task) for task in chain[:tasks]])

    return build


def _procgen(game: str) -> Any:
    def build(seed: int, tasks: int) -> Any:
        from supple.streams.rl.gym.procgen import ProcgenLevel

        return factories(ProcgenLevel, [(game, FIRST_LEVEL + k) for k in range(tasks)])

    return build


def _gym(
    name: str, env_id: str, scale: float = 2.0, tasks: int = 10, paper: int = 160_000, **more: Any
) -> Suite:
    packages, extra = more.get("packages", ("gymnasium",)), more.get("extra", "rl")
    steps = _steps(paper, paper // 2, 24_000)
    return Suite(f"gym-{name}", CCHAIN, extra, packages, tasks, steps, _offset(env_id, scale), PPO_GYM)


def _dmc(domain: str, *chain: str) -> Suite:
    steps, packages = _steps(1_000_000, 100_000, 10_000), ("gymnasium", "dm_control", "mujoco")
    build = _control(domain, *chain)
    return Suite(f"dmc-{domain}", CCHAIN, "rl-dmc", packages, len(chain), steps, build, PPO_DMC)


def _slippery(env_id: str) -> Suite:
    name, source = (
        env_id[: env_id.index("-")].lower(),
        "light variants of Slippery Ant; choice and steps are ours",
    )
    steps = _steps(1_000_000, 100_000, 10_000)
    return Suite(f"slippery-{name}", source, "rl-mujoco", MUJOCO, 10, steps, _friction(env_id), ANT)


ALL: tuple[Suite, ...] = (
    _gym("cartpole", "CartPole-v1"),
    _gym("acrobot", "Acrobot-v1"),
    # v2 in the paper; v3 is the one that gymnasium 1.x has
    _gym("lunarlander", "LunarLander-v3", packages=("gymnasium", "Box2D", "pygame"), extra="rl-box2d"),
    _gym("mountaincar", "MountainCar-v0", scale=0.02, tasks=5, paper=320_000),
    Suite(
        "minatar", CCHAIN, "rl", ("gymnasium", "minatar"), 3, _steps(2_000_000, 200_000, 20_000), _minatar,
        DDQN_MINATAR,
    ),
    _dmc("walker", "stand", "walk", "run"),
    _dmc("quadruped", "walk", "run", "walk"),
    _dmc("dog", "stand", "walk", "run", "trot"),
    *(
        Suite(
            f"procgen-{game}", CCHAIN, "rl-procgen", ("gymnasium", "procgen"), 10,
            _steps(2_000_000, 200_000, 20_000), _procgen(game), PPO_PROCGEN,
        )
        for game in PROCGEN
    ),
    Suite(
        "atari", "after Abbas et al. 2023, arXiv 2303.07507; games and steps are ours", "rl-atari",
        ("gymnasium", "ale_py", "cv2"), len(ATARI), _steps(5_000_000, 500_000, 50_000), _atari,
    ),
    Suite(
        "ant-friction", "Dohare et al. 2024, Nature 632, Slippery Ant (Ant-v3 there)", "rl-mujoco", MUJOCO, 25,
        _steps(2_000_000, 200_000, 20_000), _friction("Ant-v5"), ANT,
    ),
    *(_slippery(env_id) for env_id in SLIPPERY),
)  # fmt: skip
