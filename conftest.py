"""What the doctest collector leaves out: modules that import an extra at the top, or whose examples need one."""

from __future__ import annotations

from importlib.util import find_spec

_EXTRAS = {
    "integrations/lightning.py": "lightning",
    "integrations/stable_baselines3.py": "stable_baselines3",
    "integrations/transformers.py": "transformers",
    "streams/rl/minatar.py": "minatar",
    "streams/rl/gym/games.py": "minatar",
    "streams/rl/catalogue.py": "gymnasium",
    "streams/rl/gym": "gymnasium",
}
collect_ignore = [f"src/supple/{path}" for path, needs in _EXTRAS.items() if find_spec(needs) is None]
