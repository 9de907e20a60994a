"""Supple keeps neural networks able to learn: measure, explain, repair and prove loss of plasticity.

The whole public surface is here; every name is loaded on first use, so that ``import supple`` costs
nothing beyond torch. See `supple.diagnose`, `supple.Monitor`, `supple.plan`, `supple.trial`,
`supple.interventions`, `supple.nn`, `supple.convert_`, `supple.scan`, `supple.ntk`, `supple.coverage`
and `supple.functional`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: public name -> (module, attribute); an attribute of None is the module itself
_LAZY: dict[str, tuple[str, str | None]] = {
    "diagnose": ("supple.api", "diagnose"),
    "plan": ("supple.api", "plan"),
    "trial": ("supple.api", "trial"),
    "trainability": ("supple.api", "trainability"),
    "scan": ("supple.api", "scan"),
    "ntk": ("supple.api", "ntk"),
    "coverage": ("supple.api", "coverage"),
    "Monitor": ("supple.api", "Monitor"),
    "convert_": ("supple.nn", "convert_"),
    "Status": ("supple.status", "Status"),
    "Mechanism": ("supple.status", "Mechanism"),
    "Record": ("supple.records", "Record"),
    "Records": ("supple.records", "Records"),
    "SuppleError": ("supple.errors", "SuppleError"),
    "functional": ("supple.functional", None),
    "interventions": ("supple.interventions", None),
    "nn": ("supple.nn", None),
    "topology": ("supple.topology", None),
    "models": ("supple.models", None),
    "streams": ("supple.streams", None),
    "integrations": ("supple.integrations", None),
}

__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:
    from supple import functional, integrations, interventions, models, nn, streams, topology
    from supple.api import Monitor, coverage, diagnose, ntk, plan, scan, trainability, trial
    from supple.errors import SuppleError
    from supple.nn import convert_
    from supple.records import Record, Records
    from supple.status import Mechanism, Status


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'supple' has no attribute {name!r}")
    module_name, attribute = _LAZY[name]
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `supple.diagnose` and `supple.scan` the functions, although rooms have those names.

    Importing a submodule binds it as an attribute of its package; here that would hide the function.
    ``from supple.scan import …`` finds the room all the same, in ``sys.modules``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        hidden = isinstance(value, ModuleType) and _LAZY.get(name, ("", None))[1] is not None
        if not hidden:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
