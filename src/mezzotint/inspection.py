"""What is in a model: which kernel runs every layer of a quantized one and why, what would become of a float one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from mezzotint.artifact.skeleton import empty_float_network
from mezzotint.calibration.plan import float_parts, plan_layers
from mezzotint.gpu.network import LoweringConfig, lowered_report
from mezzotint.gpu.report import layer_report
from mezzotint.kernels.choose import choose
from mezzotint.kernels.contract import KernelReport
from mezzotint.layers.spec import LayerSpec
from mezzotint.manifest import Manifest
from mezzotint.models.denoiser import example_inputs, network_of
from mezzotint.models.units import layers_by_role, list_units, split_shortcuts
from mezzotint.recipes.registry import make_config


def inspect(pipeline: DiffusionPipeline, *, bits: str = "w4a8", gpu: bool = False) -> dict[str, Any]:
    """Every layer of `pipeline` and totals, as plain data.

    For a quantized pipeline: kind, shape, bits, the kernel that runs where it is and the reason; with `gpu` the kernel
    that runs on a CUDA device once `optimize` has lowered the network there, which need not be at hand. For a float
    one: what quantizing it to `bits` would do, its units and split shortcuts.
    """
    if hasattr(network_of(pipeline), "quantization"):
        return describe_artifact(pipeline, gpu)
    return describe_float(pipeline, bits)


def describe_artifact(pipeline: DiffusionPipeline, gpu: bool = False) -> dict[str, Any]:
    """Layers, kernels and totals of a quantized pipeline."""
    network = pipeline.unet
    manifest = network.quantization
    floating = empty_float_network(type(network).__name__, network.config)
    shapes = _shapes(floating)
    layers = []
    for name, spec in manifest.layers.items():
        report = _on_gpu(network, name) if gpu else _here(network, name)
        layers.append(
            {"name": name, **_grids(spec), "shape": shapes.get(name), "kernel": report.name, "reason": report.reason}
        )
    weights = [name for name in manifest.files if name.endswith(".safetensors")]
    return {
        "model": manifest.base.name,
        "bits": manifest.bits,
        "recipe": manifest.config.get("recipe"),
        "layers": layers,
        "float_modules": manifest.float_modules,
        "correction": manifest.config.get("correction", "none"),
        "totals": {
            "layers": dict(Counter(layer["kind"] for layer in layers)),
            "kernels": dict(Counter(layer["kernel"] for layer in layers)),
            "bytes": manifest.files["unet/quantized.safetensors"].bytes,
            "tensor_bytes": sum(leaf.nbytes for leaf in network.state_dict().values()),
            "float_bytes": 4 * sum(leaf.numel() for leaf in floating.parameters()),
            "pipeline_bytes": sum(manifest.files[name].bytes for name in weights),
        },
        "parts": {name: _describe_part(pipeline, name, manifest, gpu) for name in manifest.parts},
    }


def _here(network: Any, name: str) -> KernelReport:
    """What runs the layer called `name` where it is, lowered or not."""
    found: KernelReport = lowered_report(network, name) or network.get_submodule(name).kernel_report()
    return found


def _on_gpu(network: Any, name: str) -> KernelReport:
    """What would run that layer on a CUDA device after `optimize`, as far as that goes without the shapes of a call."""
    usual = LoweringConfig()
    lowered = layer_report(network, name, usual.dtype, usual.attention == "int8", [])
    return lowered or _plain_on_gpu(network, name)


def _plain_on_gpu(network: Any, name: str) -> KernelReport:
    """What would run that layer on a CUDA device if nothing lowered it."""
    layer = network.get_submodule(name)
    return choose(layer.spec.kind, "cuda", kernel=layer.kernel)


def _describe_part(pipeline: Any, name: str, manifest: Manifest, gpu: bool) -> dict[str, Any]:
    """A quantized part beside the denoiser, in short; `optimize` lowers the denoiser alone."""
    record, network = manifest.parts[name], pipeline.components[name]
    reports = [_plain_on_gpu(network, n) if gpu else network.get_submodule(n).kernel_report() for n in record.layers]
    return {
        "bits": record.bits,
        "layers": len(record.layers),
        "kernels": dict(Counter(report.name for report in reports)),
        "float_modules": record.float_modules,
        "bytes": manifest.files[f"{name}/quantized.safetensors"].bytes,
        **record.results,
    }


def describe_float(pipeline: DiffusionPipeline, bits: str) -> dict[str, Any]:
    """What quantizing a float pipeline to `bits` would do."""
    network = pipeline.unet
    example = example_inputs(network)
    units, splits = list_units(network, *example), split_shortcuts(network, *example)
    config = make_config(bits=bits)
    plan = plan_layers(network, config, splits=splits, edges=layers_by_role(network))
    shapes = _shapes(network)
    layers = [{"name": name, **_grids(spec), "shape": shapes.get(name)} for name, spec in plan.items()]
    return {
        "model": str(pipeline.config.get("_name_or_path") or type(pipeline).__name__),
        "bits": config.bits,
        "units": [{"name": unit.name, "kind": unit.kind, "inner": unit.inner, "output": unit.output} for unit in units],
        "split_shortcuts": {name: list(groups) for name, groups in splits.items()},
        "layers": layers,
        "float_modules": float_parts(network, plan),
        "totals": {
            "layers": dict(Counter(layer["kind"] for layer in layers)),
            "units": len(units),
            "float_bytes": sum(leaf.numel() * leaf.element_size() for leaf in network.parameters()),
        },
    }


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    """Shape of the weight of every leaf that has one, by module name."""
    return {
        name: list(module.weight.shape)
        for name, module in network.named_modules()
        if getattr(module, "weight", None) is not None
    }


def _grids(spec: LayerSpec) -> dict[str, Any]:
    grids = {"weight": spec.weight, "input": spec.input, "other": spec.other}
    bits = {f"{name}_bits": None if grid is None else grid.bits for name, grid in grids.items()}
    groups = [] if spec.weight is None else list(spec.weight.groups)
    return {"kind": spec.kind, **bits, "groups": groups, "times": spec.times}
