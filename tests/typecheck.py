"""The checker of annotations in the tests: beartype, told two things that Python's typing says.

- An int will do where a float is wanted.
- `Self` is what a method of any class may return. jaxtyping hands over methods one by one, and beartype cannot tell
  there which class is meant, so that one annotation is left out; the others of the method are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, raising where an argument or the result does not fit its annotation."""
    annotations = getattr(function, "__annotations__", {})
    if annotations.get("return") in ("Self", Self):
        del annotations["return"]
    return _beartype(function)
