"""Quantized pipelines for other runtimes: ONNX Runtime and OpenVINO.

pipeline -> graphs -> onnx_graph (with the layers of qdq) -> a folder with a record -> runtimes (lowering) -> load
"""

from mezzotint.export.load import ExportedPipeline, load_exported
from mezzotint.export.save import export_pipeline

__all__ = ["ExportedPipeline", "export_pipeline", "load_exported"]
