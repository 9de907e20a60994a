"""What the doctest collector leaves out: modules that import an extra at the top."""

from __future__ import annotations

from importlib.util import find_spec

_EXTRAS = {"lightning": "lightning", "stable_baselines3": "stable_baselines3", "transformers": "transformers"}
collect_ignore = [
    f"src/supple/integrations/{module}.py" for module, needs in _EXTRAS.items() if find_spec(needs) is None
]
if find_spec("gymnasium") is None:
    collect_ignore.append("src/supple/streams/rl/gym")
if find_spec("minatar") is None:
    collect_ignore.append("src/supple/streams/rl/gym/games.py")
