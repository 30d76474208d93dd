"""A JSON file that says what it is, and guards itself: what manifest.json and export.json have in common.

    format          that the file is ours, and which kind
    format_version  of its layout; both are looked at before anything else is read
    digest          SHA-256 of the file itself with the digest's 64 digits set to 0; its last line

The digest guards against accidents, not against an attacker, who could compute it anew. Nothing in the file is ever
executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mezzotint.errors import ArtifactError
from mezzotint.version import __version__

NO_DIGEST = "0" * 64
_DIGEST_AT_END = re.compile(r'\n "digest": "[0-9a-f]{64}"\n}\n\Z')


class Record(BaseModel):
    """Frozen data without unknown fields; infinities and NaN are written as the strings "Infinity", "NaN"."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class SignedRecord(Record):
    """A whole file. A kind of file is a subclass that gives its format and version as defaults.

    Attributes:
        format, format_version: the kind of file; a subclass narrows them to a `Literal` each.
        mezzotint_version: what wrote the file.
        digest: filled in by `write_record`.
    """

    format: str
    format_version: int
    mezzotint_version: str = __version__
    digest: str = NO_DIGEST


Kind = TypeVar("Kind", bound=SignedRecord)


def write_record(record: SignedRecord, path: Path) -> None:
    """Writes `record` to `path` with its digest."""
    fields = json.loads(record.model_dump_json(exclude={"digest"}))  # pydantic says infinity in a word
    text = json.dumps({**fields, "digest": NO_DIGEST}, indent=1, ensure_ascii=False) + "\n"
    path.write_text(_with_digest(text, _sha256(text)), encoding="utf-8", newline="\n")


def read_record(path: Path, kind: type[Kind], *, name: str, absent: str, again: str) -> Kind:
    """The record in the file `path`.

    Args:
        name: what the file is called in messages, such as "a manifest".
        absent: what a missing file means, and what to do.
        again: how to get a whole file in place of a damaged one, such as "export it again".

    Raises:
        ArtifactError: there is none, it is not ours, it comes from a later version, or it was altered.
    """
    try:
        text = path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path.parent}: no {path.name} there, so {absent}") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: byte {error.start} is not text; the file was altered, {again}") from None
    return parse_record(text, path, kind, name=name, again=again)


def parse_record(text: str, path: Path, kind: type[Kind], *, name: str, again: str) -> Kind:
    """The record that `text` holds; `path` is only for the error messages. Raises as `read_record`."""
    _check_header(text, path, kind, name=name, again=again)
    try:
        record = kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {field}: {first['msg']}; the file was altered, {again}") from None
    if record.digest != _sha256(_with_digest(text, NO_DIGEST)):
        raise ArtifactError(f"{path}: digest: the file was altered after it was written; {again}")
    return record


def _check_header(text: str, path: Path, kind: type[SignedRecord], *, name: str, again: str) -> None:
    """ArtifactError unless `text` is JSON, of the format of `kind`, and no later version of it."""
    try:
        fields: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArtifactError(
            f"{path}: truncated or altered, it stops being JSON at line {error.lineno} ({error.msg}); {again}"
        ) from None
    expected, latest = (kind.model_fields[field].default for field in ("format", "format_version"))
    if not isinstance(fields, dict) or fields.get("format") != expected:
        raise ArtifactError(f'{path}: {name} of something else (no "format": "{expected}" in it)')
    version = fields.get("format_version")
    if isinstance(version, int) and version > latest:
        raise ArtifactError(
            f"{path}: format version {version} was written by mezzotint {fields.get('mezzotint_version', '?')}, "
            f"this is {__version__} and reads up to version {latest}; run: pip install --upgrade mezzotint"
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _with_digest(text: str, digest: str) -> str:
    """`text` with the digest on its last line exchanged."""
    return _DIGEST_AT_END.sub(f'\n "digest": "{digest}"\n}}\n', text)
