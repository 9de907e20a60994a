"""What the doctest collector leaves out: modules that import an extra at the top, or whose examples need one."""

from __future__ import annotations

from importlib.util import find_spec

_EXTRAS = {
    "integrations/lightning": "lightning",
    "integrations/stable_baselines3": "stable_baselines3",
    "integrations/transformers": "transformers",
    "streams/rl/minatar": "minatar",
}
collect_ignore = [f"src/supple/{module}.py" for module, needs in _EXTRAS.items() if find_spec(needs) is None]
