"""Triton's interpreter on CPU tensors: import this before anything that imports Triton."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated

import pytest

pytest.importorskip("triton", reason="the extra 'gpu' is not installed")

from triton.runtime import interpreter

_patch = interpreter._patch_lang_tensor


def _patch_with_numpy_24(tensor: Any, scope: Any) -> None:
    """Triton 3.6 turns arrays of one element into numbers by int(), which numpy refuses from 2.4 on."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_with_numpy_24
