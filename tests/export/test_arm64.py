"""What runs on ARM64: the operators of every exported graph, before and after `lowering`, against a literal list.

The list is the part of ONNX Runtime's table of CPU kernels (docs/OperatorKernels.md, CPUExecutionProvider, which makes
no difference between x86 and ARM64) that our graphs need. Products of integers are MatMulIntegerToFloat alone: its
kernel is MLAS' integer GEMM (onnxruntime/core/mlas/lib/qgemm_kernel_neon.cpp, _udot.cpp, _ummla.cpp: plain NEON, dot
product, i8mm), which sums in int32.
"""

from __future__ import annotations

import onnx
import onnx_ir
import pytest

from exports import Exported
from mezzotint.export.lowering import CONTRIB, lower

INTEGER = {"MatMulIntegerToFloat", "QuantizeLinear", "DequantizeLinear"}
MOVES = {"Concat", "Expand", "Gather", "Pad", "Reshape", "Resize", "Shape", "Slice", "Split", "Transpose", "Unsqueeze"}
FLOAT = {
    *("Add", "AveragePool", "Cast", "Clip", "Conv", "Cos", "Gelu", "Gemm", "GroupNormalization", "IsNaN"),
    *("LayerNormalization", "MatMul", "Mul", "Pow", "ReduceSum", "Sigmoid", "Sin", "Softmax", "Sqrt", "Sub", "Where"),
}


@pytest.mark.slow  # an export of its own
def test_graphs_have_only_operators_that_arm64_has(exported: Exported) -> None:
    for graph in exported.record.graphs.values():
        path = exported.folder / graph.file
        plain, lowered = onnx.load(path), onnx.load_from_string(lower(onnx_ir.load(path)))
        for model in (plain, lowered):
            assert {node.op_type for node in model.graph.node} <= INTEGER | MOVES | FLOAT
        domains = {node.op_type for node in lowered.graph.node if node.domain == CONTRIB}
        assert domains <= {"MatMulIntegerToFloat"}
        assert all(node.domain in ("", CONTRIB) for node in lowered.graph.node)
