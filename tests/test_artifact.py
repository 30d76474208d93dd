"""A saved model gives the same numbers, or one error that names the file and the leaf. Never other numbers."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, SchedulerMixin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from mezzotint.artifact import Manifest, atomic, check_output, load_quantized, read_manifest, save_quantized
from mezzotint.artifact.leaves import read_header
from mezzotint.artifact.skeleton import empty_float_network
from mezzotint.config import RangeConfig
from mezzotint.errors import ArtifactError, ModelError, OutputError
from mezzotint.layers.float_attention import OutputShift, output_shift_of
from mezzotint.loading import load
from mezzotint.manifest import BaseInfo, parse_manifest, weights_sha256, write_manifest
from mezzotint.models.denoiser import example_inputs, predict_eps
from mezzotint.pipeline import quantize as run_quantize
from mezzotint.recipes.registry import make_config
from tiny import tiny_pipeline

WEIGHTS = "unet/quantized.safetensors"
BITS = ("w4a8", "w8a8", "w3a6", "w4a32")
SMALL = {"steps": 2, "calib_size": 2, "forward_batch": 2}


def quantize(pipeline: DiffusionPipeline, bits: str) -> DiffusionPipeline:
    """A quantized pipeline in a second: two clip thresholds are tried, not a hundred."""
    config = make_config("nearest", bits, **SMALL).model_copy(update={"ranges": RangeConfig(candidates=2)})
    return run_quantize(pipeline, config=config, device="cpu")


@pytest.fixture(scope="module")
def quantized() -> Callable[[str], DiffusionPipeline]:
    """Quantized tiny pipelines by bits, each made once."""
    made: dict[str, DiffusionPipeline] = {}

    def get(bits: str) -> DiffusionPipeline:
        if bits not in made:
            made[bits] = quantize(tiny_pipeline(), bits)
        return made[bits]

    return get


@pytest.fixture(scope="module")
def saved(quantized: Callable[[str], DiffusionPipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A W4A8 artifact that tests only read."""
    return save_quantized(quantized("w4a8"), tmp_path_factory.mktemp("saved") / "tiny-w4a8")


@pytest.fixture
def artifact(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-w4a8"))


def eps(pipeline: DiffusionPipeline) -> Tensor:
    x_t, t, *_ = example_inputs(pipeline.unet, batch=2)
    with torch.no_grad():
        return predict_eps(pipeline.unet, x_t, t)


def settings_of(scheduler: SchedulerMixin) -> dict[str, object]:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What comes back


@pytest.mark.parametrize("bits", BITS)
def test_save_then_load_gives_equal_outputs_bit_for_bit(
    bits: str, quantized: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    pipeline = quantized(bits)
    loaded = load_quantized(save_quantized(pipeline, tmp_path / bits))
    assert_close(eps(loaded), eps(pipeline), rtol=0, atol=0)
    state = loaded.unet.state_dict()
    for name, leaf in pipeline.unet.state_dict().items():
        assert_close(state[name], leaf, rtol=0, atol=0)
    assert list(state) == list(pipeline.unet.state_dict())


def test_loaded_pipeline_is_the_diffusers_pipeline_it_was(saved: Path) -> None:
    loaded, original = load_quantized(saved), tiny_pipeline()
    assert type(loaded) is type(original)
    assert settings_of(loaded.scheduler) == settings_of(original.scheduler)
    assert not loaded.unet.training
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())
    images = loaded(batch_size=1, num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0))
    assert images.images.shape == (1, 16, 16, 3)


def test_save_load_save_changes_no_byte_but_the_card(saved: Path, tmp_path: Path) -> None:
    again = save_quantized(load_quantized(saved), tmp_path / saved.name)
    assert contents(again) == contents(saved)


def test_manifest_says_what_was_done(saved: Path, quantized: Callable[[str], DiffusionPipeline]) -> None:
    manifest = load_quantized(saved).unet.quantization
    assert manifest.bits == "w4a8"
    assert manifest.config["recipe"] == "nearest"
    assert manifest.config["selection"]["calib_size"] == SMALL["calib_size"]
    assert manifest.base.sha256 == weights_sha256(tiny_pipeline().unet)
    assert "mid_block.attentions.0.processor.qk" in manifest.layers
    assert set(manifest.leaves) == set(quantized("w4a8").unet.state_dict())
    assert (
        manifest.model_copy(update={"files": {}, "leaves": {}, "digest": "0" * 64})
        == quantized("w4a8").unet.quantization
    )


def test_loading_draws_no_random_numbers_and_reads_no_pickles(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (artifact / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    before = torch.get_rng_state()
    load_quantized(artifact)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_path_of_this_machine_is_in_an_artifact(saved: Path, tmp_path: Path) -> None:
    """diffusers notes in every part where it was loaded from."""
    tiny_pipeline().save_pretrained(tmp_path / "float")
    floating = load(tmp_path / "float")
    assert str(tmp_path) in str(floating.unet.config)
    first = save_quantized(quantize(floating, "w8a8"), tmp_path / "first")
    again = save_quantized(load_quantized(saved), tmp_path / "again")
    for folder, home in ((first, tmp_path), (again, saved.parent)):
        assert not [name for name, data in contents(folder).items() if str(home).encode() in data]


def test_card_has_front_matter_and_loads_as_it_says(saved: Path) -> None:
    text = (saved / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "diffusers"
    assert {"mezzotint", "w4a8", "nearest"} <= set(front["tags"])
    assert f'mezzotint.load("{saved.name}")' in text
    (saved / "README.md").write_text(text)  # editing it is allowed
    load_quantized(saved)


def test_card_carries_licence_and_credits(quantized: Callable[[str], DiffusionPipeline], tmp_path: Path) -> None:
    pipeline = quantized("w8a8")
    told = pipeline.unet.quantization
    base = BaseInfo(name="somebody/model", sha256="0" * 64, licence="MIT", credits="Drawings by Somebody.")
    pipeline.unet.quantization = told.model_copy(update={"base": base})
    try:
        text = (save_quantized(pipeline, tmp_path / "credited") / "README.md").read_text()
    finally:
        pipeline.unet.quantization = told
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["base_model"]) == ("mit", "somebody/model")
    assert "Drawings by Somebody." in text


def test_w4_file_is_at_most_a_tenth_above_its_ideal_size(tmp_path: Path) -> None:
    wide = {"block_out_channels": (64, 128), "layers_per_block": 2}
    pipeline = quantize(tiny_pipeline(**wide), "w4a8")
    folder = save_quantized(pipeline, tmp_path / "wide")
    layers = [name for name, spec in pipeline.unet.quantization.layers.items() if spec.weight is not None]
    weights = {f"{name}.weight": True for name in layers}
    parameters = empty_float_network("UNet2DModel", pipeline.unet.config).state_dict()
    ideal = sum(leaf.numel() / 2 if name in weights else leaf.numel() * 4 for name, leaf in parameters.items())
    assert (folder / WEIGHTS).stat().st_size <= 1.10 * ideal


def test_hash_of_weights_sees_every_change() -> None:
    unet = tiny_pipeline().unet
    before = weights_sha256(unet)
    assert weights_sha256(tiny_pipeline().unet) == before
    with torch.no_grad():
        unet.conv_in.weight.view(-1)[5].add_(1e-3)
    assert weights_sha256(unet) != before


SHIFT = {"layer": "conv_out", "values": [0.25, -0.5, 0.125]}


def set_shift(artifact: Path, correction: object) -> None:
    manifest = read_manifest(artifact)
    results = {**manifest.results, "output_correction": correction}
    write_manifest(manifest.model_copy(update={"results": results}), artifact)


def test_the_output_shift_is_kept_and_changes_no_output(artifact: Path, tmp_path: Path) -> None:
    before = load_quantized(artifact)
    assert output_shift_of(before.unet) is None
    set_shift(artifact, {"share": 1.0})  # as written before there were shifts
    assert output_shift_of(load_quantized(artifact).unet) is None
    set_shift(artifact, {"share": 1.0, "output_shift": SHIFT})
    loaded = load_quantized(artifact)
    again = load_quantized(save_quantized(loaded, tmp_path / "again"))
    assert output_shift_of(loaded.unet) == output_shift_of(again.unet) == OutputShift(**SHIFT)
    assert torch.equal(eps(loaded), eps(before))


# What is refused


@pytest.mark.parametrize(
    ("correction", "message"),
    [
        ({"output_shift": {**SHIFT, "values": [0.5]}}, "layer 'conv_out' has 3 channels, not 1"),
        ({"output_shift": {**SHIFT, "layer": "nowhere"}}, "layer 'nowhere' has no bias"),
        ({"output_shift": {**SHIFT, "values": [0.5, "NaN", 0.5]}}, r"output_shift\.values\.1: .* finite number"),
        ({"output_shift": {**SHIFT, "values": [0.5, None, 0.5]}}, r"output_shift\.values\.1: .* valid number"),
        ({"output_shift": {"values": SHIFT["values"]}}, r"output_shift\.layer: Field required"),
        ({"output_shift": [0.5, 0.5, 0.5]}, r"output_shift: .* dictionary"),
        ([0.5], ": expected a table"),
    ],
)
def test_a_bad_output_shift_is_one_error_that_says_where(artifact: Path, correction: object, message: str) -> None:
    set_shift(artifact, correction)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: results\.output_correction.*{message}") as caught:
        load_quantized(artifact)
    assert "\n" not in str(caught.value)


def test_truncation_names_the_file_and_the_leaf(artifact: Path) -> None:
    path = artifact / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=r"quantized.safetensors: truncated: leaf \S+ ends at byte"):
        load_quantized(artifact)
    path.write_bytes(data[:100])
    with pytest.raises(ArtifactError, match=r"quantized.safetensors: truncated within its header, 100 bytes"):
        load_quantized(artifact)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"quantized.safetensors: truncated within its header, 0 bytes"):
        load_quantized(artifact)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_in_any_file_is_an_error_that_names_it(artifact: Path, data: st.DataObject) -> None:
    files = sorted(path for path in artifact.rglob("*") if path.is_file() and path.name != "README.md")
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << bit)]) + whole[position + 1 :])
    try:
        with pytest.raises(ArtifactError) as caught:
            load_quantized(artifact)
    finally:
        path.write_bytes(whole)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_in_a_tensor_names_the_leaf(artifact: Path, data: st.DataObject) -> None:
    path = artifact / WEIGHTS
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    header.pop("__metadata__", None)
    leaf = data.draw(st.sampled_from(sorted(header)))
    begin, end = header[leaf]["data_offsets"]
    position = len(whole) - max(entry["data_offsets"][1] for entry in header.values()) + begin
    position += data.draw(st.integers(0, end - begin - 1))
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    try:
        with pytest.raises(ArtifactError, match=rf"quantized.safetensors: leaf {leaf}: its bytes were altered"):
            load_quantized(artifact)
    finally:
        path.write_bytes(whole)


def rewrite(artifact: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Changes the tensors and makes every checksum of the manifest fit again."""
    path = artifact / WEIGHTS
    state = load_file(path)
    change(state)
    save_file(state, path)
    manifest = read_manifest(artifact)
    from mezzotint.artifact.leaves import leaf_records
    from mezzotint.artifact.load import file_record

    files = {**manifest.files, WEIGHTS: file_record(path)}
    write_manifest(manifest.model_copy(update={"files": files, "leaves": leaf_records(state)}), artifact)


LEAF = "conv_in.weight_packed"
SCALE = "conv_in.weight_scale"


def test_a_changed_shape_names_the_leaf_and_both_shapes(artifact: Path) -> None:
    shape = list(load_file(artifact / WEIGHTS)[SCALE].shape)
    rewrite(artifact, lambda state: state.update({SCALE: state[SCALE][..., :-1].contiguous()}))
    found = [*shape[:-1], shape[-1] - 1]
    expected = rf"leaf conv_in\.weight_scale: expected shape \{shape}, found \{found}"
    with pytest.raises(ArtifactError, match=expected.replace("]", r"\]")):
        load_quantized(artifact)


def test_a_changed_dtype_names_the_leaf_and_both_dtypes(artifact: Path) -> None:
    rewrite(artifact, lambda state: state.update({SCALE: state[SCALE].half()}))
    with pytest.raises(ArtifactError, match=r"leaf conv_in\.weight_scale: expected dtype F32, found F16"):
        load_quantized(artifact)


def test_a_missing_leaf_is_named(artifact: Path) -> None:
    rewrite(artifact, lambda state: state.__delitem__(LEAF))
    with pytest.raises(ArtifactError, match=r"quantized.safetensors: leaf conv_in\.weight_packed is missing"):
        load_quantized(artifact)


def test_an_extra_leaf_is_named(artifact: Path) -> None:
    rewrite(artifact, lambda state: state.update({"conv_in.weight": torch.zeros(1)}))
    with pytest.raises(ArtifactError, match=r"leaf conv_in\.weight belongs to no layer"):
        load_quantized(artifact)


def change_manifest(artifact: Path, **fields: object) -> None:
    path = artifact / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_future_version_says_what_to_do(artifact: Path) -> None:
    change_manifest(artifact, format_version=2, mezzotint_version="9.1.0", something_new=1)
    with pytest.raises(ArtifactError, match=r"format version 2 was written by mezzotint 9\.1\.0.*upgrade"):
        load_quantized(artifact)


@pytest.mark.parametrize("text", ['{"name": "a web app", "icons": []}', "[1, 2]", '"hello"', "null"])
def test_a_manifest_of_something_else_is_foreign(artifact: Path, text: str) -> None:
    (artifact / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest.json: a manifest of something else"):
        load_quantized(artifact)


def test_a_truncated_manifest_says_where(artifact: Path) -> None:
    path = artifact / "manifest.json"
    path.write_text(path.read_text()[:-50])
    with pytest.raises(ArtifactError, match=r"manifest.json: truncated or altered, it stops being JSON at line \d+"):
        load_quantized(artifact)


def test_a_changed_word_in_the_manifest_is_seen(artifact: Path) -> None:
    """Valid JSON, valid fields, other content: only the digest can tell."""
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace('"recipe": "nearest"', '"recipe": "eda-dm"'))
    with pytest.raises(ArtifactError, match=r"manifest.json: digest: the file was altered"):
        load_quantized(artifact)


def test_an_unknown_field_is_named(artifact: Path) -> None:
    change_manifest(artifact, colour="blue")
    with pytest.raises(ArtifactError, match=r"manifest.json: colour: "):
        load_quantized(artifact)


@pytest.mark.parametrize("name", ["unet/config.json", "model_index.json", "scheduler/scheduler_config.json", WEIGHTS])
def test_a_missing_file_is_named(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: the file is missing"):
        load_quantized(artifact)


def test_a_folder_that_is_no_artifact_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no manifest.json there"):
        load_quantized(tmp_path)
    with pytest.raises(ArtifactError, match="no manifest.json there"):
        load_quantized(tmp_path / "nowhere")


def test_a_manifest_cannot_point_outside_its_folder(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    record = manifest.files["model_index.json"]
    write_manifest(manifest.model_copy(update={"files": {**manifest.files, "../secret": record}}), artifact)
    with pytest.raises(ArtifactError, match=r"'\.\./secret' lies outside the artifact"):
        load_quantized(artifact)


def test_code_in_an_artifact_is_refused(artifact: Path) -> None:
    from mezzotint.artifact.load import file_record

    path = artifact / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scheduler": ["own_code", "Scheduler"]}))
    manifest = read_manifest(artifact)
    files = {**manifest.files, "model_index.json": file_record(path)}
    write_manifest(manifest.model_copy(update={"files": files}), artifact)
    with pytest.raises(ArtifactError, match=r"model_index.json: scheduler is of 'own_code', only diffusers"):
        load_quantized(artifact)


def test_a_float_pipeline_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not quantized; run mezzotint.quantize first"):
        save_quantized(tiny_pipeline(), tmp_path / "float")
    assert not list(tmp_path.iterdir())


# What is left behind


def test_existing_folder_needs_overwrite(artifact: Path, quantized: Callable[[str], DiffusionPipeline]) -> None:
    before = contents(artifact)
    with pytest.raises(OutputError, match="exists already; choose another folder, or replace it with --overwrite"):
        save_quantized(quantized("w8a8"), artifact)
    assert contents(artifact) == before
    save_quantized(quantized("w8a8"), artifact, overwrite=True)
    assert read_manifest(artifact).bits == "w8a8"
    assert [path.name for path in artifact.parent.iterdir()] == [artifact.name]


def test_overwrite_never_replaces_what_is_no_artifact(
    tmp_path: Path, quantized: Callable[[str], DiffusionPipeline]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds something else than a quantized model"):
        save_quantized(quantized("w8a8"), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_unwritable_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: is a file; choose a folder"):
        check_output(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write in .*file; choose another folder"):
        check_output(tmp_path / "file" / "below" / "it")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot write in"):
        check_output(tmp_path / "new")


def test_a_full_disk_is_one_error_and_leaves_nothing(
    artifact: Path, quantized: Callable[[str], DiffusionPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(artifact)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "flush", full)
    with pytest.raises(OutputError, match="No space left on device; nothing there was changed"):
        save_quantized(quantized("w8a8"), artifact, overwrite=True)
    assert contents(artifact) == before
    assert [path.name for path in artifact.parent.iterdir()] == [artifact.name]


@pytest.mark.parametrize("moment", ["flush", "replace"])
def test_an_interrupted_save_leaves_the_old_artifact(
    moment: str, artifact: Path, quantized: Callable[[str], DiffusionPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(artifact)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_quantized(quantized("w8a8"), artifact, overwrite=True)
    assert contents(artifact) == before
    assert [path.name for path in artifact.parent.iterdir()] == [artifact.name]


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_a_killed_save_leaves_a_whole_artifact(moment: str, tmp_path: Path) -> None:
    """SIGKILL runs no cleanup; what is in place must be whole all the same."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "content").write_text("old")
    kill = "os.kill(os.getpid(), 9)"
    code = (
        "import os; from importlib import util; from pathlib import Path\n"
        f"spec = util.spec_from_file_location('atomic', {atomic.__file__!r})\n"  # spares importing torch
        "atomic = util.module_from_spec(spec); spec.loader.exec_module(atomic)\n"
        "real = atomic.exchange\n"
        f"def exchange(new, old):\n    {kill if moment.startswith('before') else 'real(new, old)'}\n    {kill}\n"
        "atomic.exchange = exchange\n"
        f"with atomic.atomic_folder(Path({str(target)!r})) as new: (new / 'content').write_text('new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert (target / "content").read_text() == ("old" if moment.startswith("before") else "new")


def test_without_the_exchange_call_a_failed_rename_is_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "content").write_text("old")
    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    with atomic.atomic_folder(target) as new:
        (new / "content").write_text("new")
    assert (target / "content").read_text() == "new"
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if "partial" in self.name:
            raise OSError(5, "Input/output error")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputError, match="Input/output error"), atomic.atomic_folder(target) as new:
        (new / "content").write_text("newer")
    assert (target / "content").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


# The manifest by itself


@settings(max_examples=30)
@given(
    results=st.dictionaries(
        st.text(max_size=5),
        st.recursive(st.floats() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)),
        max_size=4,
    ),
    credits=st.text(max_size=20),
)
def test_a_manifest_comes_back_from_its_text(
    results: dict[str, object], credits: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    base = BaseInfo(name="x", sha256="0" * 64, credits=credits)
    write_manifest(Manifest(base=base, bits="w4a8", layers={}, results=results), folder)
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    found = read_manifest(folder)
    assert found.base == base
    assert parse_manifest(text, folder) == found
    assert "NaN," not in text.replace('"NaN"', "")


def test_a_digest_inside_the_config_does_not_confuse_the_manifests_own(tmp_path: Path) -> None:
    base = BaseInfo(name="x", sha256="0" * 64)
    config = {"digest": "a" * 64}
    write_manifest(Manifest(base=base, bits="w4a8", layers={}, config=config), tmp_path)
    assert read_manifest(tmp_path).config == config


def test_header_is_read_as_safetensors_wrote_it(saved: Path) -> None:
    state = load_file(saved / WEIGHTS)
    header = read_header(saved / WEIGHTS)
    assert header.keys() == state.keys()
    assert all(header[name][1] == tuple(leaf.shape) for name, leaf in state.items())
    records = read_manifest(saved).leaves
    assert all(records[name].crc32 == zlib.crc32(leaf.numpy().tobytes()) for name, leaf in state.items())
