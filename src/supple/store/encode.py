"""State as JSON plus tensors: nested containers of tensors and plain types, and nothing else.

Tensors leave the tree into a flat table (for safetensors); everything that JSON would change on the
way (tuples, integer keys, NaN, bytes) is wrapped in a one-key object whose key starts with ``$``.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from supple.errors import StoreError

PLAIN = (bool, int, str, type(None))


def encode(value: Any, tensors: dict[str, Tensor], path: str = "state") -> Any:
    """Turn ``value`` into JSON types, moving tensors into ``tensors``; anything else is refused by path.

    >>> table = {}
    >>> encode({"step": 3, "betas": (0.9, 0.999)}, table)
    {'step': 3, 'betas': {'$tuple': [0.9, 0.999]}}
    """
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        # a clone, since safetensors refuses tensors that share memory
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, PLAIN):
        # a subclass (an enum, a NumPy scalar) would come back as another type
        if type(value) in PLAIN:
            return value
    elif isinstance(value, float) and type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    elif isinstance(value, bytes):
        return {"$bytes": value.hex()}
    elif isinstance(value, list | tuple):
        items = [encode(v, tensors, f"{path}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    elif isinstance(value, dict):
        return _encode_dict(value, tensors, path)
    raise StoreError(
        "a checkpoint holds tensors and plain types only",
        found=type(value).__name__,
        where=path,
        do="turn it into numbers, strings, lists, dicts or tensors before storing",
    )


def encode_plain(value: Any, path: str) -> Any:
    """`encode` for what goes into JSON alone; a tensor is refused."""
    tensors: dict[str, Tensor] = {}
    tree = encode(value, tensors, path)
    if tensors:
        raise StoreError("only plain types can be stored here", found="a tensor", where=path)
    return tree


def _encode_dict(value: dict[Any, Any], tensors: dict[str, Tensor], path: str) -> Any:
    # a key that starts with $ would be read back as a wrapper, so such a dict takes the long form too
    if all(type(k) is str and not k.startswith("$") for k in value):
        return {k: encode(v, tensors, f"{path}.{k}") for k, v in value.items()}
    pairs = [
        [encode(k, tensors, f"{path} key"), encode(v, tensors, f"{path}[{k!r}]")] for k, v in value.items()
    ]
    return {"$dict": pairs}


def decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of `encode`; an unknown wrapper or a missing tensor is an error that names it."""
    if isinstance(value, list):
        return [decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if not any(k.startswith("$") for k in value):
        return {k: decode(v, tensors) for k, v in value.items()}
    (mark, inner), *rest = value.items()
    if not rest:
        if mark == "$tensor" and inner in tensors:
            return tensors[inner]
        if mark == "$tuple":
            return tuple(decode(v, tensors) for v in inner)
        if mark == "$dict":
            return {decode(k, tensors): decode(v, tensors) for k, v in inner}
        if mark == "$float":
            return float(inner)
        if mark == "$bytes":
            return bytes.fromhex(inner)
    raise StoreError("a checkpoint has content that this version cannot read", found={mark: inner})
