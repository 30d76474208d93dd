"""The checker of annotations in the tests: every call in the package, its arguments and what it returns.

`--jaxtyping-packages=mezzotint,typecheck.checked` puts `jaxtyped(typechecker=checked)` on every function and class of
the package. That decorator writes and compiles the checks of a function when it is made, so those of a closure again
and again, and binds the arguments of every call anew: three quarters of the suite's time. `install` leaves of it what
it says, the typechecker, and `checked` does the rest: dimensions of one name are one number within a call, the hints
of a function are read at its first call and shared by all closures made of the same code.

What Python's typing says is allowed: an int where a float is wanted. What beartype cannot judge of a value alone
(ParamSpec, Self and TypeGuard) and names that a module imports for the type checker only are let through.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpecArgs, ParamSpecKwargs, Self, TypeGuard, get_args, get_origin, get_type_hints

import jaxtyping
from beartype import BeartypeConf
from beartype.door import is_bearable

CONF = BeartypeConf(is_pep484_tower=True)
in_one_call = functools.partial(jaxtyping.jaxtyped, "context")


class Signature:
    """The hints of a function's parameters and of its result; those that allow everything are left out."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = {
            name: hint
            for name, annotation in function.__annotations__.items()
            if _judged(hint := _resolved(annotation, function.__globals__))
        }
        code = function.__code__
        count = code.co_argcount + code.co_kwonlyargcount
        names, rest = code.co_varnames[:count], list(code.co_varnames[count:])
        extra = rest.pop(0) if code.co_flags & inspect.CO_VARARGS else ""
        others = rest.pop(0) if code.co_flags & inspect.CO_VARKEYWORDS else ""
        self.code, self.name = code, f"{function.__module__}.{function.__qualname__}"
        self.positions = [(name, hints[name]) if name in hints else None for name in names[: code.co_argcount]]
        self.extra = (f"*{extra}", hints[extra]) if extra in hints else None
        self.others = (f"**{others}", hints[others]) if others in hints else None
        self.keywords = {name: (name, hints[name]) for name in names if name in hints}
        self.unhinted = frozenset(names) - hints.keys()
        self.result = hints.get("return")
        self.shaped = any(_has_shape(hint) for hint in hints.values())

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """TypeError for the first argument that does not fit its hint."""
        for value, hinted in zip(args, self.positions, strict=False):
            if hinted is not None and not is_bearable(value, hinted[1], conf=CONF):
                self.refuse(value, *hinted)
        if self.extra is not None:
            for value in args[len(self.positions) :]:
                if not is_bearable(value, self.extra[1], conf=CONF):
                    self.refuse(value, *self.extra)
        for name, value in kwargs.items():
            hinted = self.keywords.get(name) or (None if name in self.unhinted else self.others)
            if hinted is not None and not is_bearable(value, hinted[1], conf=CONF):
                self.refuse(value, *hinted)

    def check_result(self, value: Any) -> None:
        """TypeError for a result that does not fit its hint."""
        if self.result is not None and not is_bearable(value, self.result, conf=CONF):
            self.refuse(value, "return", self.result)

    def refuse(self, value: Any, name: str, hint: Any) -> None:
        raise TypeError(f"{self.name}: {name}: expected {hint}, got {_described(value)}")


def checked(made: Any) -> Any:
    """`made`, a function or a class, raising TypeError where an argument or a result does not fit its annotation.

    Of a class only a dataclass's constructor is left to check: its methods are functions of the package themselves.
    """
    if isinstance(made, type):
        constructor = vars(made).get("__init__")
        if (
            dataclasses.is_dataclass(made)
            and inspect.isfunction(constructor)
            and not hasattr(constructor, "__wrapped__")
        ):
            made.__init__ = checked(constructor)
        return made
    if all(str(annotation).endswith("constexpr") for annotation in made.__annotations__.values()):
        return made  # nothing to check; of a wrapped device function Triton would not find the globals

    @functools.wraps(made)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return made(*args, **kwargs)
        signature = _signature_of(made)
        if not signature.shaped:
            return _call(made, signature, args, kwargs)
        with in_one_call():
            return _call(made, signature, args, kwargs)

    return wrapped


def _call(made: Callable[..., Any], signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    signature.check_arguments(args, kwargs)
    result = made(*args, **kwargs)
    signature.check_result(result)
    return result


_signatures: dict[int, Signature] = {}  # by id of the code, which the signature keeps alive


def _signature_of(function: Callable[..., Any]) -> Signature:
    """Closures of one code share their signature: annotations are text, so nothing of the closure is in them."""
    code = function.__code__
    found = _signatures.get(id(code))
    if found is None:
        found = _signatures[id(code)] = Signature(function)
    return found


@contextmanager
def switched_off() -> Iterator[None]:
    """Nothing is checked inside the block, so that a compiler can trace it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def install() -> None:
    """Makes the decorator of the import hook the typechecker alone. To be called before the package is imported."""
    jaxtyping.jaxtyped = lambda *, typechecker: typechecker  # type: ignore[assignment]


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """The hint that an annotation says; Any where a name in it is there for the type checker only."""
    holder = types.SimpleNamespace(__annotations__={"value": annotation})
    try:
        return get_type_hints(holder, names, include_extras=True)["value"]
    except (NameError, AttributeError):
        return Any


def _judged(hint: Any) -> bool:
    """Whether a value can be told not to fit the hint."""
    return hint not in (Any, Self) and not (
        isinstance(hint, ParamSpecArgs | ParamSpecKwargs) or get_origin(hint) is TypeGuard
    )


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_has_shape(part) for part in get_args(hint))


def _described(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r:.200}"
