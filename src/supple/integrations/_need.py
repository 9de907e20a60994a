"""Importing an extra, or saying which one to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from supple.errors import MissingExtraError


def need(module: str, extra: str) -> ModuleType:
    """The imported module, or an error that names the extra.

    >>> need("math", "none").pi > 3
    True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed here", found=error, do=f"pip install 'supple[{extra}]'"
        ) from error
