"""Whole checkpoints: which weights, which scale, what may be absent; and the folder that comes of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel, VQModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

import mezzotint
from checkpoint_fixtures import SMALL, Fixture
from families import tiny_clip, tiny_tokenizer
from mezzotint.errors import MissingExtraError, ModelError
from mezzotint.models.importing import checkpoint as importer
from mezzotint.models.importing import import_checkpoint
from mezzotint.models.pipelines import ClassEmbedder

FIXTURES = {path.stem: Fixture.read(path) for path in sorted(SMALL.glob("*.json"))}
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def entries() -> dict[str, dict[str, Tensor]]:
    """The entries of every small checkpoint but the largest."""
    return {name: fixture.entries() for name, fixture in FIXTURES.items() if name != "ldm4-bedroom"}


@pytest.fixture
def write(tmp_path: Path, entries: dict[str, dict[str, Tensor]]) -> Any:
    """Writes a small checkpoint, some entries changed (None: removed), and its YAML; returns its path."""

    def write(name: str, *, drop: str = "nothing", **changes: Any) -> Path:
        state = {key: value for key, value in entries[name].items() if not key.startswith(drop)}
        state |= changes.pop("add", {})
        for key in changes.pop("remove", []):
            del state[key]
        assert not changes
        path = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        path.with_suffix(".yaml").write_text(yaml.safe_dump(FIXTURES[name].data["config"]))
        return path

    return write


def test_ema_weights_are_the_default(write: Any) -> None:
    path = write("ldm8-church")
    ema, plain = import_checkpoint(path), import_checkpoint(path, use_ema=False)
    assert (ema.weights, plain.weights) == ("ema", "plain")
    state = FIXTURES["ldm8-church"].entries()
    for imported, key in ((ema, "model_ema.diffusion_modelout2weight"), (plain, f"{UNET}out.2.weight")):
        assert torch.equal(imported.pipeline.unet.conv_out.weight, state[key])
    assert import_checkpoint(write("ldm4-imagenet")).weights == "plain"  # a file without


def test_bookkeeping_alone_is_no_ema(write: Any) -> None:
    path = write("ldm4-imagenet", add={"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.ones(1)})
    assert import_checkpoint(path).weights == "plain"


def test_half_an_ema_is_an_error_and_the_plain_weights_still_load(write: Any) -> None:
    path = write("ldm8-church", remove=["model_ema.diffusion_modelout2weight"])
    with pytest.raises(ModelError, match=r"church.yaml: unet: 1 entry is missing: model_ema.diffusion_modelout2weig"):
        import_checkpoint(path)
    assert import_checkpoint(path, use_ema=False).weights == "plain"


def test_pipelines_are_float32_in_eval_mode(write: Any) -> None:
    for name in ("ldm4-imagenet", "sd-v1", "ddim-cifar10"):
        for part in import_checkpoint(write(name)).pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                assert {weight.dtype for weight in part.parameters()} == {torch.float32}
                assert not any(module.training for module in part.modules())


PARTLY: dict[str, tuple[str, str, str]] = {
    "unet": ("ldm4-imagenet", f"{UNET}out.0.weight", "unet: 1 entry is missing: model.diffusion_model.out.0.weight"),
    "vqvae": (
        "ldm4-imagenet",
        "first_stage_model.quantize.embedding.weight",
        "vqvae: 1 entry is missing: first_sta",
    ),
    "vae": (
        "sd-v1",
        "first_stage_model.quant_conv.bias",
        "vae: 1 entry is missing: first_stage_model.quant_conv.bi",
    ),
    "ddim": ("ddim-cifar10", "mid.attn_1.q.bias", "unet: 1 entry is missing: mid.attn_1.q.bias"),
}


@pytest.mark.parametrize("part", list(PARTLY))
def test_a_part_that_is_not_whole_is_an_error(part: str, write: Any) -> None:
    name, key, message = PARTLY[part]
    with pytest.raises(ModelError, match=message):
        import_checkpoint(write(name, remove=[key]))


def test_a_part_that_is_wholly_absent_is_left_out_with_a_warning(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = write("ldm4-imagenet", drop="first_stage_model.")
    with caplog.at_level(logging.WARNING):
        imported = import_checkpoint(path)
    assert imported.absent == ("vqvae",)
    assert imported.pipeline.vqvae is None
    assert caplog.messages == ["vqvae: the checkpoint holds nothing of it; the pipeline comes without"]
    caplog.clear()
    imported = import_checkpoint(write("ldm4-imagenet", drop="cond_stage_model."))
    assert imported.absent == ("class_embedder",)


def test_a_file_without_a_denoiser_is_an_error(write: Any) -> None:
    with pytest.raises(ModelError, match="none of the published models|describes a CompVis model, but the entries"):
        import_checkpoint(write("ldm4-imagenet", drop="model."))


def test_entries_of_no_known_part_are_named(write: Any) -> None:
    path = write(
        "sd-v1", add={"control_model.in.weight": torch.ones(1), "betas": torch.zeros(0), "logvar": torch.ones(1)}
    )
    with pytest.raises(ModelError, match="1 entry is of no part that is known: control_model.in.weight$"):
        import_checkpoint(path)


def test_the_scale_is_that_of_the_file_then_of_the_yaml_then_one(write: Any) -> None:
    assert import_checkpoint(write("ldm8-church")).pipeline.vae.config.scaling_factor == 1
    assert import_checkpoint(write("ldm4-imagenet")).pipeline.vqvae.config.scaling_factor == 1
    assert import_checkpoint(write("sd-v1")).pipeline.vae.config.scaling_factor == 0.18215
    path = write("sd-v1", add={"scale_factor": torch.tensor(0.25)})
    assert import_checkpoint(path).pipeline.vae.config.scaling_factor == 0.25


def test_the_noise_schedule_is_that_of_the_yaml_and_compared_with_the_file(write: Any) -> None:
    expected = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    scheduler = import_checkpoint(write("ldm4-imagenet", add={"betas": expected.float()})).pipeline.scheduler
    assert torch.allclose(scheduler.betas.double(), expected, rtol=1e-5)
    config = scheduler.config
    assert (config.steps_offset, config.set_alpha_to_one, config.clip_sample) == (1, False, False)
    assert config.prediction_type == "epsilon"
    with pytest.raises(
        ModelError, match=r"betas: 500 from 0.0015 to \S+, but the YAML says 1000 from 0.0015 to 0.0195"
    ):
        import_checkpoint(write("ldm4-imagenet", add={"betas": expected[:500].float()}))
    with pytest.raises(ModelError, match="linear_start, linear_end and timesteps are of another model"):
        import_checkpoint(write("ldm4-imagenet", add={"betas": 1.1 * expected.float()}))


def test_the_ddim_schedule_ends_at_alpha_one(write: Any) -> None:
    scheduler = import_checkpoint(write("ddim-cifar10")).pipeline.scheduler
    assert torch.allclose(scheduler.betas, torch.linspace(1e-4, 0.02, 1000))
    config = scheduler.config
    assert (config.steps_offset, config.set_alpha_to_one, config.clip_sample) == (0, True, False)


def test_the_yaml_of_another_model_is_refused_by_its_shapes(write: Any, tmp_path: Path) -> None:
    path = write("ldm4-imagenet")
    config = tmp_path / "other.yaml"
    config.write_text(yaml.safe_dump(FIXTURES["sd-v1"].data["config"]))
    with pytest.raises(ModelError, match=r"of another shape: .*; is this the YAML of this checkpoint\?") as raised:
        import_checkpoint(path, config=config)
    assert "\n" not in str(raised.value)
    assert str(config) in str(raised.value)


@pytest.mark.parametrize(("place", "message"), [("", "a folder; name the checkpoint file"), ("x.ckpt", "no such file")])
def test_places_without_a_checkpoint(place: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        import_checkpoint(tmp_path / place)


def test_conditions_that_are_not_supported(write: Any) -> None:
    path = write("sd-v1")
    config = yaml.safe_load(path.with_suffix(".yaml").read_text())
    config["model"]["params"]["cond_stage_config"] = {"target": "ldm.modules.encoders.modules.BERTEmbedder"}
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ModelError, match="cond_stage_config: BERTEmbedder beside AutoencoderKL is not supported"):
        import_checkpoint(path)


@pytest.mark.parametrize(
    ("target", "changes"), [("AutoencoderKL", {"embed_dim": 3}), ("VQModelInterface", {}), ("IdentityFirstStage", {})]
)
def test_first_stages_that_are_not_supported(target: str, changes: dict[str, Any], write: Any) -> None:
    path = write("ldm8-church")
    config = yaml.safe_load(path.with_suffix(".yaml").read_text())
    stage = config["model"]["params"]["first_stage_config"]
    stage["target"] = f"ldm.models.autoencoder.{target}"
    stage["params"].update(changes)
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ModelError, match=rf"first_stage_config: {target} with double_z True, .* is not supported"):
        import_checkpoint(path)


@pytest.fixture
def clip_entries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The entries of a small text encoder, as CompVis names them; such an encoder is what the importer expects."""
    encoder = tiny_clip()
    monkeypatch.setattr(importer, "CLIP_TEXT_CONFIG", encoder.config.to_dict())
    monkeypatch.setattr(importer, "clip_tokenizer", tiny_tokenizer)
    prefix = "cond_stage_model.transformer.text_model."
    entries = {prefix + name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    return {**entries, f"{prefix}embeddings.position_ids": torch.arange(16)}


def test_the_text_encoder(write: Any, clip_entries: dict[str, Tensor], tmp_path: Path) -> None:
    pipeline = import_checkpoint(write("sd-v1", add=clip_entries)).pipeline
    ids = pipeline.tokenizer("red cat", return_tensors="pt").input_ids
    assert torch.equal(pipeline.text_encoder(ids)[0], tiny_clip()(ids)[0])
    pipeline.save_pretrained(tmp_path / "sd")
    again = mezzotint.load(tmp_path / "sd")
    assert torch.equal(again.text_encoder(ids)[0], tiny_clip()(ids)[0])
    assert again.tokenizer("red cat").input_ids == ids[0].tolist()
    gone = next(key for key in clip_entries if key.endswith("final_layer_norm.bias"))
    with pytest.raises(ModelError, match=f"text_encoder: 1 entry is missing: {gone}"):
        import_checkpoint(write("sd-v1", add=clip_entries, remove=[gone]))


def test_a_text_encoder_needs_its_vocabulary(
    write: Any, clip_entries: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingExtraError("metrics", "open_clip")

    monkeypatch.setattr(importer, "clip_tokenizer", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'mezzotint\[metrics\]'"):
        import_checkpoint(write("sd-v1", add=clip_entries))


def written_config(network: Any) -> dict[str, Any]:
    """The config as a file has it, without where it was read from."""
    return {key: value for key, value in json.loads(network.to_json_string()).items() if key != "_name_or_path"}


STOCK: dict[str, dict[str, Any]] = {
    "ddim-cifar10": {"unet": UNet2DModel, "scheduler": DDIMScheduler},
    "ldm8-church": {"vae": AutoencoderKL, "scheduler": DDIMScheduler},
    "ldm4-imagenet": {"unet": UNet2DConditionModel, "vqvae": VQModel, "scheduler": DDIMScheduler},
    "sd-v1": {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "scheduler": DDIMScheduler},
}


@pytest.mark.parametrize("name", list(STOCK))
def test_the_folder_gives_the_same_networks(name: str, write: Any, tmp_path: Path) -> None:
    """To `mezzotint.load`, and where diffusers has the class, to diffusers alone."""
    path = write(name)
    imported = import_checkpoint(path).pipeline
    imported.save_pretrained(tmp_path / "out")
    again, direct = mezzotint.load(tmp_path / "out"), mezzotint.load(path)
    assert type(again) is type(direct) is type(imported)
    assert direct.name_or_path == path.name
    for part, network in imported.components.items():
        if not isinstance(network, torch.nn.Module):
            continue
        others = [again.components[part], direct.components[part]]
        if part in STOCK[name]:
            others.append(STOCK[name][part].from_pretrained(tmp_path / "out", subfolder=part))
        for other in others:
            assert type(other) is type(network)
            assert written_config(other) == written_config(network)
            theirs = other.state_dict()
            for key, value in network.state_dict().items():
                assert torch.equal(theirs[key], value), (part, key)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    assert written_config(scheduler) == written_config(imported.scheduler)


def test_class_embedder_and_text_encoder_are_of_known_classes(write: Any) -> None:
    pipeline = import_checkpoint(write("ldm4-imagenet")).pipeline
    assert isinstance(pipeline.class_embedder, ClassEmbedder)
    assert pipeline.class_embedder.config.num_embeddings == 1001
    assert isinstance(tiny_clip(), CLIPTextModel)
