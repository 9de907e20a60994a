"""Module hooks that belong to one network and stay behind when it is copied or pickled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class OwnHook:
    """A module hook that calls ``act``; in a copy of the module, deep, averaged or pickled, it does nothing.

    A plain function as a hook would be carried along by ``copy.deepcopy(model)`` and let the passes of a target
    network count as passes of the model; and it would keep the model from being pickled.

    >>> import copy
    >>> from torch import nn
    >>> seen = []
    >>> layer = nn.Identity()
    >>> _ = layer.register_forward_pre_hook(OwnHook(lambda module, args: seen.append(args)))
    >>> copy.deepcopy(layer)(1), layer(2), seen
    (1, 2, [(2,)])
    """

    def __init__(self, act: Callable[..., Any] | None) -> None:
        self.act = act

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if self.act is None else self.act(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnHook, (None,)
