"""Whole exported pipelines: the same seeds give the same images as the integer model, within what rounding does.

Networks agree to over 100 dB until a rounding tips a value over the edge between two codes; then the next layer sees a
whole grid step. So end to end the promise is that of `test_integer_model.py`: an export lies nearer to the integer
model than that lies to the float one.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from exports import SAMPLERS, Exported
from measures import decibels
from mezzotint.cli.app import run
from mezzotint.errors import ArtifactError, ConfigError, MissingExtraError, OutputError
from mezzotint.export import export_pipeline, load_exported
from mezzotint.export.extra import need
from mezzotint.export.latency import latency_calls
from mezzotint.export.record import RECORD_NAME, read_record, write_record
from mezzotint.export.runtimes import RUNTIMES
from mezzotint.layers.int_base import IntWeightedLayer
from mezzotint.layers.integer import IntConv2d, IntMatMul
from mezzotint.models.conditioning import STATES, condition_inputs, encode_conditions
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import predict_eps
from mezzotint.sampling.trajectory import sample, sample_latents
from tiny import tiny_pipeline, tiny_unet

SEEDS = [0, 1, 2]
LAYER_DB = 100
MARGIN_DB = 6
BYTES_A_NODE = 500  # names, shapes of intermediate results, small constants
SMALL: dict[str, Any] = {
    "block_out_channels": (8,),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "add_attention": False,
}


def conditions(pipeline: Any, count: int = len(SEEDS)) -> Conditions | None:
    return encode_conditions(pipeline, condition_inputs(pipeline, "evaluation", count))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_same_seeds_give_the_same_images(exported: Exported, runtime: str) -> None:
    made = load_exported(exported.folder, runtime)
    settings: dict[str, Any] = {"sampler": SAMPLERS[exported.family]}
    told = conditions(exported.quantized)
    expected = sample_latents(exported.quantized, SEEDS, conditions=told, **settings)
    floating = sample_latents(exported.floating, SEEDS, conditions=conditions(exported.floating), **settings)
    found = sample_latents(made, SEEDS, conditions=conditions(made), **settings)
    assert decibels(expected, found) > decibels(floating, expected) + MARGIN_DB
    images = sample(made, SEEDS, conditions=conditions(made), **settings)
    assert images.shape == sample(exported.quantized, SEEDS, conditions=told, **settings).shape
    assert float(images.abs().max()) <= 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_sample_does_not_depend_on_its_batch(exported: Exported, runtime: str) -> None:
    made, settings = load_exported(exported.folder, runtime), {"sampler": SAMPLERS[exported.family]}
    told = conditions(made)
    together = sample_latents(made, SEEDS, conditions=told, **settings)
    alone = sample_latents(made, SEEDS[2:], conditions=None if told is None else told.rows([2]), **settings)
    assert decibels(together[2:], alone) > decibels(together[:1], together[2:]) + 20


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_conditions_come_from_the_exported_encoder(exported: Exported, runtime: str) -> None:
    ours, theirs = conditions(exported.quantized), conditions(load_exported(exported.folder, runtime))
    if ours is None or theirs is None:
        assert ours is theirs
        return
    assert ours.labels == theirs.labels
    assert decibels(ours.cond[STATES], theirs.cond[STATES]) > LAYER_DB


def test_every_integer_layer_is_in_the_graph(exported: Exported) -> None:
    """As many quantized products of each kind as the artifact has, and no other convolution or product of weights."""
    for name, graph in exported.record.graphs.items():
        model = onnx.load(exported.folder / graph.file)
        onnx.checker.check_model(model, full_check=True)
        produced = {node.output[0]: node for node in model.graph.node}
        weights = {tensor.name for tensor in model.graph.initializer}
        found: Counter[str] = Counter()
        for node in model.graph.node:
            if node.op_type not in ("Conv", "MatMul", "Gemm"):
                continue
            sources = [produced.get(value) for value in node.input[:2]]
            quantized = all(source is not None and source.op_type == "DequantizeLinear" for source in sources)
            assert quantized or node.op_type == "MatMul", f"{name}: {node.name} is in float"
            assert quantized or not weights & set(node.input), f"{name}: {node.name} has float weights"
            weighted = quantized and sources[1].input[0] in weights
            found[node.op_type if weighted else "product" if quantized else "float product"] += 1
        layers = [layer for layer in modules_run(exported.quantized, name) if isinstance(layer, IntWeightedLayer)]
        convs = [layer for layer in layers if isinstance(layer, IntConv2d)]
        assert found["Conv"] == sum(layer.weight_grid.n_groups for layer in convs)
        assert found["MatMul"] == len(layers) - len(convs)
        assert found["product"] == sum(isinstance(m, IntMatMul) for m in modules_run(exported.quantized, name))


def modules_run(pipeline: Any, part: str) -> list[Any]:
    """The modules that the graph of a part holds: of a first stage those that decode."""
    unused = ("encoder.", "quant_conv") if part == "vae" else ()
    return [module for name, module in pipeline.components[part].named_modules() if not name.startswith(unused)]


def test_files_are_about_as_large_as_the_codes(exported: Exported) -> None:
    network = exported.quantized.components["unet"]
    packed = sum(buffer.numel() * buffer.element_size() for buffer in network.state_dict().values())
    nodes = len(onnx.load(exported.folder / "unet.onnx").graph.node)
    assert packed < exported.record.files["unet.onnx"].bytes < packed + BYTES_A_NODE * nodes


def test_graphs_say_nothing_of_this_machine(exported: Exported) -> None:
    for file in exported.folder.rglob("*.*"):
        assert b"site-packages" not in file.read_bytes(), file
        assert str(Path(__file__).parents[2]).encode() not in file.read_bytes(), file


def test_latency_calls_give_eps() -> None:
    network = tiny_unet(**SMALL)
    calls = latency_calls(network, batch=3)
    found = {runtime: call() for runtime, call in calls.items()}
    assert found.keys() == set(RUNTIMES)
    for eps in found.values():
        assert eps.shape == (3, 3, 16, 16)
        torch.testing.assert_close(eps, found["ort"], rtol=1e-3, atol=1e-4)
    assert predict_eps(network, torch.zeros(1, 3, 16, 16), 5).shape == (1, 3, 16, 16)


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    """A copy of an exported folder, to be damaged."""
    return Path(shutil.copytree(exported.folder, tmp_path / "copy"))


def test_damage_is_named(copied: Path) -> None:
    graph = copied / "unet.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"unet.onnx: altered after it was written"):
        load_exported(copied)
    graph.unlink()
    with pytest.raises(ArtifactError, match=r"unet.onnx: the file is missing"):
        load_exported(copied)


def test_records_that_do_not_fit_are_refused(copied: Path, tmp_path: Path) -> None:
    record, path = read_record(copied), copied / RECORD_NAME
    text = path.read_text()
    cases = {
        text.replace('"family": "', '"family": "x'): "family",
        text.replace('"opset": 21', '"opset": 20'): "digest: the file was altered",
        text.replace('"format_version": 1', '"format_version": 2'): "format version 2 was written by",
        text.replace('"mezzotint-export"', '"other"'): "a file of something else",
        text[:-20]: "truncated or altered, it stops being JSON at line",
    }
    for changed, complaint in cases.items():
        path.write_text(changed)
        with pytest.raises(ArtifactError, match=complaint):
            load_exported(copied)
    scheduler = record.scheduler.model_copy(update={"kind": "DiffusionPipeline"})
    write_record(record.model_copy(update={"scheduler": scheduler}), copied)
    with pytest.raises(ArtifactError, match="diffusers has no scheduler 'DiffusionPipeline'"):
        load_exported(copied)
    outside = {"../outside": next(iter(record.files.values()))}
    write_record(record.model_copy(update={"files": outside}), copied)
    with pytest.raises(ArtifactError, match=r"'../outside' lies outside the folder"):
        load_exported(copied)
    with pytest.raises(ArtifactError, match=r"no export.json there, so it is no export"):
        load_exported(tmp_path)


def test_a_graph_that_is_not_listed_is_not_opened(copied: Path) -> None:
    record = read_record(copied)
    (copied / "other.onnx").write_bytes((copied / "unet.onnx").read_bytes())
    graphs = {**record.graphs, "unet": record.graphs["unet"].model_copy(update={"file": "other.onnx"})}
    write_record(record.model_copy(update={"graphs": graphs}), copied)
    with pytest.raises(ArtifactError, match=r"other.onnx is not listed, so it cannot be trusted"):
        load_exported(copied)


def test_choices_are_checked_before_the_work(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no format 'tflite'; choose one of onnx, openvino"):
        export_pipeline(exported.quantized, tmp_path / "new", "tflite")
    with pytest.raises(ConfigError, match="there is no 'tvm'; choose one of ort, openvino"):
        load_exported(exported.folder, "tvm")
    with pytest.raises(OutputError, match="exists already"):
        export_pipeline(exported.quantized, exported.folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else than an export; it will not be replaced"):
        export_pipeline(exported.quantized, tmp_path / "mine", overwrite=True)
    with pytest.raises(MissingExtraError, match=r"pip install 'mezzotint\[export\]'"):
        need("a_package_that_nobody_has")


def test_the_command_line_draws_with_an_export(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(exported.folder), str(tmp_path / "images")
    assert run(["sample", folder, "--runtime", "ort", "--seeds", "0,1", "-o", out, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sampler"] == SAMPLERS[exported.family].model_dump(mode="json")
    assert len(result["images"]) == 2
    assert all(Path(path).is_file() for path in result["images"])
    for words, complaint in {
        (): "is an exported model; say what runs it: --runtime ort or --runtime openvino",
        ("--runtime", "tvm"): "there is no 'tvm'",
        ("--runtime", "ort", "--device", "cuda"): "--runtime ort runs on the CPU",
    }.items():
        assert run(["sample", folder, *words, "-o", str(tmp_path / "others")]) == 2
        assert complaint in capsys.readouterr().err


def test_the_command_line_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A float model, to OpenVINO."""
    tiny_pipeline(**SMALL).save_pretrained(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--to", "openvino", "-o", str(tmp_path / "out"), "--json"]
    assert run(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["graphs"] == {"unet": {"file": "unet.xml", "bits": None}}
    assert sorted(result["files"]) == ["unet.bin", "unet.xml"]
    drawn = sample(load_exported(tmp_path / "out", "openvino"), [5], sampler=SAMPLERS["ddim"])
    expected = sample(tiny_pipeline(**SMALL), [5], sampler=SAMPLERS["ddim"])
    assert decibels(expected, drawn) > 80
    with pytest.raises(ConfigError, match=r"unet.xml: runtime ort reads .onnx; export it again for that"):
        load_exported(tmp_path / "out", "ort")
    assert run(words) == 2
    assert "exists already" in capsys.readouterr().err
