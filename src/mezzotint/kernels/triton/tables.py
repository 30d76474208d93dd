"""Tables of tuned configurations: the one that ships with the package, and what was tuned on this machine.

    shipped    {family of GPUs: {`Problem.key`: `Config`}}, JSON, made by benchmarks/products.py
    cached     {`Problem.key`: `Config`}, JSON, one file a GPU; `remember` adds to it

A cache is the user's file, perhaps of another version or half of one: what is no configuration is left out, and tuned
anew.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mezzotint.kernels.triton.tuning import Config

_CONFIG = TypeAdapter(Config)
_LOG = logging.getLogger(__name__)


@cache
def shipped(family: str) -> dict[str, Config]:
    """The table that is installed with the package for GPUs of this family ("sm_90 132": of 132 multiprocessors)."""
    source = resources.files("mezzotint.kernels.triton").joinpath("configurations.json")
    tables: dict[str, dict[str, dict[str, Any]]] = json.loads(source.read_text()) if source.is_file() else {}
    return {key: Config(**fields) for key, fields in tables.get(family, {}).items()}


@cache
def cached(device: str) -> dict[str, Config]:
    """What was tuned on this machine before; see `remember`."""
    return _read(cache_path(device))


def cache_path(device: str) -> Path:
    """The file of tuned configurations: $MEZZOTINT_CACHE, or ~/.cache/mezzotint."""
    root = os.environ.get("MEZZOTINT_CACHE") or Path.home() / ".cache" / "mezzotint"
    return Path(root) / f"products-{''.join(c if c.isalnum() else '-' for c in device)}.json"


def remember(device: str, key: str, config: Config) -> None:
    """Adds a tuned configuration to the cache, in memory and in its file."""
    table, path = cached(device), cache_path(device)
    table |= _read(path)  # another process may have added to it
    table[key] = config
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({k: asdict(v) for k, v in sorted(table.items())}, indent=1))
    draft.replace(path)


def _read(path: Path) -> dict[str, Config]:
    """What of a cache's file this version can run."""
    try:
        rows = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        rows = None
    if not isinstance(rows, dict):
        _LOG.warning("%s holds no table of configurations; products are tuned anew", path)
        return {}
    found = {}
    for key, fields in rows.items():
        try:
            found[key] = _CONFIG.validate_python(fields)
        except ValidationError:
            _LOG.info("%s: %s is no configuration of this version", path, key)
    return found
