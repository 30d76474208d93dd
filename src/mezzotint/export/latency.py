"""One call of a network in each runtime, ready to be timed, without a pipeline around it.

    calls = latency_calls(integer_unet, batch=4)     {"ort": ..., "openvino": ...}
    calls["ort"]()                                   eps [4, C, H, W]

The graphs are those that `export_pipeline` writes and `load_exported` runs: dynamic batch, as many threads as torch has
when the calls are made, float32 around the integers. OpenVINO reads the ONNX file.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mezzotint.export.graphs import denoiser_graph
from mezzotint.export.onnx_graph import write_onnx
from mezzotint.export.runtimes import RUNTIMES, check_runtime, open_graph
from mezzotint.models.denoiser import EXAMPLE_TOKENS

Call = Callable[[], Tensor]


def latency_calls(
    network: nn.Module, batch: int, *, runtimes: Sequence[str] = RUNTIMES, tokens: int = EXAMPLE_TOKENS
) -> dict[str, Call]:
    """{runtime: one call of `network`, float or integer, on fixed inputs of `batch` rows}; exported once for all.

    Args:
        tokens: length of the context of a conditional network.

    Raises:
        ConfigError: there is no such runtime.
        MissingExtraError: a runtime or an exporter is not installed.
    """
    graph = denoiser_graph(network, tokens=tokens)
    inputs = [value[:1].expand(batch, *value.shape[1:]).contiguous() for value in graph.inputs.values()]
    quantized = any(buffer.dtype == torch.uint8 for buffer in network.buffers())
    calls: dict[str, Call] = {}
    with tempfile.TemporaryDirectory() as folder:  # a runtime has read the file once its call is made
        path = Path(folder) / "network.onnx"
        write_onnx(graph, path)
        for runtime in runtimes:
            run = open_graph(path, check_runtime(runtime), quantized=quantized)
            calls[runtime] = functools.partial(run, *inputs)
    return calls
