"""Exports made once for all tests: tracing a network takes seconds."""

from __future__ import annotations

from typing import Any

import pytest

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason="needs the extra `export`")


@pytest.fixture(scope="session", params=["ddim", pytest.param("sd", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pixel family at W8A8; the text family at W4A8 with first stage and text encoder at W8A8."""
    from exports import export_tiny

    return export_tiny(request.param, tmp_path_factory.mktemp("export") / request.param)
