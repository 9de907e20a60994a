"""How does it sit in my framework? Thin callbacks for trackers and training frameworks, each imported
only when asked for, each using the public API alone.

>>> from supple.integrations import trackers  # no tracker is imported before one is built
"""

from __future__ import annotations

import importlib
from types import ModuleType

_MODULES = ("lightning", "stable_baselines3", "torchrl", "trackers", "transformers")

__all__ = ["lightning", "stable_baselines3", "torchrl", "trackers", "transformers"]


def __getattr__(name: str) -> ModuleType:
    if name not in _MODULES:
        raise AttributeError(f"module 'supple.integrations' has no attribute {name!r}")
    return importlib.import_module(f"supple.integrations.{name}")
