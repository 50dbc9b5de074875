"""What a study is made of, as hashes and in words: `value -> digest`, `value -> short text`."""

import hashlib
from collections.abc import Mapping
from types import CodeType
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist


def digest(value: Any) -> str:
    """The SHA-256 of a value: class names, fields, array bytes, and the code of functions.

    The code of a class counts too where it is the user's, so that an edited equation is another
    study; bytecode differs between versions of Python. Addresses and the order of sets do not
    count, names of objects neither.
    """
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()


def words(value: Any) -> str:
    """A value in a few words for a message, such as `LogNormal(loc=0, scale=0.5)`."""
    text = _words(value)
    return text if len(text) <= 90 else text[:87] + "..."


def without(value: Any, *names: str) -> "Rest":
    """What is left of an object when some of its fields are looked at apart."""
    return Rest(type(value), {k: v for k, v in _fields(value).items() if k not in names})


class Rest:
    """A class and some of the fields of one of its objects."""

    def __init__(self, kind: type, fields: dict[str, Any]):
        self.kind, self.fields = kind, fields


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, jax.Array | np.ndarray):
        array = np.asarray(value)
        found.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    elif isinstance(value, Mapping):
        for name in sorted(value):
            found.update(str(name).encode())
            _feed(found, value[name])
    elif isinstance(value, tuple | list):
        for item in value:
            _feed(found, item)
    elif isinstance(value, Rest):
        found.update(value.kind.__qualname__.encode())
        _feed_methods(found, value.kind)
        _feed(found, value.fields)
    elif isinstance(value, eqx.Module) or hasattr(value, "tree_flatten"):
        _feed(found, without(value))
    elif hasattr(value, "__code__"):
        _feed_code(found, value.__code__)
    else:
        found.update(repr(value).encode())


def _feed_methods(found: Any, kind: type) -> None:
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _PACKAGES:
            continue
        for name, value in sorted(vars(base).items()):
            function = getattr(value, "fget", None) or getattr(value, "__wrapped__", value)
            if hasattr(function, "__code__"):
                found.update(name.encode())
                _feed_code(found, function.__code__)


_PACKAGES = ("sgjax", "equinox", "numpyro", "jax", "abc", "builtins", "typing", "enum", "diffrax")


def _feed_code(found: Any, code: CodeType) -> None:
    found.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _feed_code(found, constant)
        elif isinstance(constant, int | float | str):
            found.update(repr(constant).encode())


def _fields(value: Any) -> dict[str, Any]:
    return {
        name: field
        for name, field in vars(value).items()
        if not name.startswith("_") and name != "name"
    }


def _words(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return _array(np.asarray(value))
    if isinstance(value, dist.Distribution):
        constants = {name: getattr(value, name) for name in value.arg_constraints}
        if not isinstance(value, dist.TransformedDistribution):
            constants |= {name: v for name, v in vars(value).items() if name == "base_dist"}
        return _call(type(value), constants)
    if isinstance(value, Rest):
        return _call(value.kind, value.fields)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_words(field)}" for name, field in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_words, value)) + ")"
    if isinstance(value, eqx.Module):
        return _call(type(value), _fields(value))
    if hasattr(value, "__code__"):
        return "a function"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _call(kind: type, fields: Mapping[str, Any]) -> str:
    return f"{kind.__name__}({', '.join(f'{name}={_words(v)}' for name, v in fields.items())})"


def _array(array: np.ndarray) -> str:
    if array.size == 1:
        return f"{array.item():g}" if array.dtype.kind == "f" else str(array.item())
    if array.ndim == 1 and array.size and array.dtype.kind in "fiu":
        return f"{array.size} numbers, {array[0]:g} to {array[-1]:g}"
    return f"{array.dtype}{list(array.shape)}"
