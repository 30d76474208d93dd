"""The optional packages of this part, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mezzotint.errors import MissingExtraError


def need(package: str) -> Any:
    """The module called `package`. MissingExtraError, with the line that installs it, if it is not there."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == package.split(".")[0]:
            raise MissingExtraError("export", package.split(".")[0]) from error
        raise
