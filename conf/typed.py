"""Types of the objects that a configuration describes: each field of a `_target_` is held against its annotation.

Hydra checks names; this checks values, so that `batch_size: 4.5` fails here, by name, and not in a training process.
"""

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_object

_NEEDED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def coerce(node: Any, key: str) -> Any:
    """`node` with the fields of every object in it as their class declares them (4.0 becomes 4 where an int belongs).

    ValueError naming the key, the value and what belongs there. Fields that the class does not know are Hydra's matter.
    """
    if isinstance(node, Mapping):
        declared = _hints(node["_target_"], key) if "_target_" in node else {}
        path = f"{key}." if key else ""
        return {
            name: _leaf(coerce(value, f"{path}{name}"), declared.get(name), f"{path}{name}")
            for name, value in node.items()
        }
    if isinstance(node, list):
        return [coerce(value, f"{key}[{i}]") for i, value in enumerate(node)]
    if isinstance(node, float) and not math.isfinite(node):
        raise ValueError(f"{key}={node}: a finite number is needed.")
    return node


def _hints(target: Any, key: str) -> dict[str, Any]:
    try:
        described = get_object(target)
    except Exception as error:  # Hydra and Python have many words for it
        raise ValueError(f"{key}._target_={target}: there is no such class ({error}).") from None
    try:
        return typing.get_type_hints(getattr(described, "__init__"))  # noqa: B009  (mypy knows no class here)
    except NameError:  # annotations that exist for a type checker only
        return {}


def _leaf(value: Any, declared: Any, key: str) -> Any:
    kinds = typing.get_args(declared) if typing.get_origin(declared) in (typing.Union, types.UnionType) else (declared,)
    simple = [kind for kind in kinds if kind in _NEEDED]
    if not simple or len(simple) + (type(None) in kinds) < len(kinds):  # lists, mappings: their class checks them
        return value
    if isinstance(value, float) and value.is_integer() and int in simple and float not in simple:
        value = int(value)
    accepted = tuple(simple) + ((int,) if float in simple else ()) + ((type(None),) if type(None) in kinds else ())
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in simple):
        raise ValueError(f"{key}={value}: {' or '.join(_NEEDED[kind] for kind in simple)} is needed.")
    return value
