"""Latent models: what training draws, that all four train and load, and that shipping keeps what was trained."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ship
import torch
import train_first_stage
import train_latent
from labels import CLASSES
from latents import Drawings, Latents, draw, encode_drawings, read_source
from recipes import RECIPES
from run_all import Job, pack, wait
from safetensors.torch import load_file, save_file
from train_stats import weighted_statistics
from training import GROUPS

import mezzotint
from mezzotint.models import zoo

WIDTHS = {"ldm4-uncond": (16, 32, 32), "ldm8-uncond": (16, 16, 16), "ldm4-class": (16, 16, 16), "sd-text": (16,) * 3}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained narrow first stages."""
    root = tmp_path_factory.mktemp("stages")
    for kind, config in train_first_stage.CONFIGS.items():
        widths = (8,) * len(config["block_out_channels"])
        small = {**config, "block_out_channels": widths, "norm_num_groups": 4, "scaling_factor": 2.0}
        train_first_stage.CLASSES[kind](**small).half().save_pretrained(root / kind)
    return root


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four recipes with narrow networks, on small images, with few samples."""
    for name, recipe in RECIPES.items():
        size = recipe.size // 2
        unet = {**recipe.unet, "block_out_channels": WIDTHS[name], "sample_size": 8, "layers_per_block": 1}
        sampling = {**recipe.sampling, "num_inference_steps": 2}
        monkeypatch.setitem(RECIPES, name, replace(recipe, size=size, unet=unet, sampling=sampling, grid=(2, 2)))
    monkeypatch.setattr(train_latent, "measure_loss", lambda *args: 1.0)  # 32 batches of 256


def drawings(count: int) -> Drawings:
    weights = torch.arange(1, count + 1, dtype=torch.float64)
    conditions = torch.arange(count)[:, None].expand(count, 2)
    flippable = torch.arange(count) % 2 == 0
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 16, 16).clone()
    images[..., 0] = 255  # the left edge
    return Drawings(images, flippable, weights / weights.sum(), conditions)


def test_draws_follow_the_weights_and_some_are_empty() -> None:
    weights = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    z = torch.arange(3.0).view(3, 1, 1, 1)
    latents = Latents(z, torch.tensor([[0], [1], [2]]), weights.cumsum(0), torch.tensor(9))
    drawn, rows = draw(latents, 4000, 0.25, torch.Generator().manual_seed(0))
    shares = drawn.flatten().long().bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, weights.float(), atol=0.03, rtol=0)
    assert ((rows == 9) | (rows == drawn.flatten())).all()
    assert 0.2 < (rows == 9).float().mean() < 0.3


def test_mirrored_drawings_share_a_weight(stages: Path) -> None:
    stage = train_first_stage.VQModel.from_pretrained(stages / "vq-f4", torch_dtype=torch.float32)
    given = drawings(5)
    latents = encode_drawings(stage, given, torch.tensor(0), torch.device("cpu"))
    shares = latents.cumulative.diff(prepend=torch.zeros(1, dtype=torch.float64))
    assert len(latents.z) == 5 + 3
    torch.testing.assert_close(shares[:5] + torch.zeros(5).index_copy(0, torch.tensor([0, 2, 4]), shares[5:].float()),
                               given.weights)  # fmt: skip
    assert latents.conditions[5:, 0].tolist() == [0, 2, 4]
    plain = train_first_stage.encode(stage, given.images)
    torch.testing.assert_close(latents.z[:5], plain * 2.0)
    torch.testing.assert_close(latents.z[5:], train_first_stage.encode(stage, given.images[::2].flip(-1)) * 2.0)


def test_weighted_statistics_are_those_of_repeated_rows() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.tensor([1, 2, 3, 1, 2, 3])
    mean, cov = weighted_statistics(x, times)
    repeated = x.repeat_interleave(times, dim=0)
    torch.testing.assert_close(mean, repeated.mean(0))
    torch.testing.assert_close(cov, repeated.T.cov(correction=0))


def test_the_splits_of_a_source_share_no_name(data: Path, small: None) -> None:
    recipe = replace(RECIPES["ldm4-class"], size=32)
    source = read_source(recipe, data / "emoji-32.npz", groups=GROUPS, recoloured=0.0)
    assert source.counts == {"train": 48, "held_out": 4}
    assert source.empty == len(CLASSES)
    labels = source.drawings["train"].conditions[:, 0]
    share = {int(label): source.drawings["train"].weights[labels == label].sum().item() for label in labels.unique()}
    counts = labels.bincount()
    two = sorted(share, key=lambda label: counts[label])
    assert share[two[-1]] / share[two[0]] == pytest.approx((counts[two[-1]] / counts[two[0]]) ** 0.5)
    with pytest.raises(ValueError, match="expected images of 32 px, got 64"):
        read_source(recipe, data / "emoji-64.npz", groups=GROUPS, recoloured=0.0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_model_trains_loads_and_ships(
    name: str, data: Path, stages: Path, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run, models = RECIPES[name], tmp_path / "runs" / name, tmp_path / "models"
    images = data / f"emoji-{recipe.size}.npz"
    train_latent.main(name, data=images, first_stage=stages / recipe.first_stage, out=run, steps=2, batch=4, lr=1e-3,
                      seed=0, minutes=1.0, checkpoint=None, graph=True, sampling_steps=None)  # fmt: skip
    pipeline = mezzotint.load(run)
    assert type(pipeline.unet) is recipe.network
    assert type(pipeline.scheduler) is recipe.scheduler
    weights = [load_file(path) for path in run.glob("*/*.safetensors")]
    assert {value.dtype for part in weights for value in part.values()} == {torch.float16}

    shutil.copytree(stages / recipe.first_stage, models / recipe.first_stage)
    ship.ship_latent(name, run, models / name, data, ship.EMBEDDED)
    monkeypatch.setenv(zoo.ZOO_VARIABLE, str(models))
    shipped = mezzotint.load(name)
    for part in ("unet", "vqvae", "vae", "text_encoder", "class_embedder"):
        if part in pipeline.components and pipeline.components[part] is not None:
            for key, value in pipeline.components[part].state_dict().items():
                assert torch.equal(shipped.components[part].state_dict()[key], value), (part, key)
    links = {path.name: path.readlink() for path in (models / name).iterdir() if path.is_symlink()}
    assert set(links) == {
        "LICENSE-ARTWORK.md",
        "features.safetensors",
        "vqvae" if recipe.first_stage == "vq-f4" else "vae",
    }
    assert not any(target.is_absolute() for target in links.values())
    statistics = load_file(models / name / "train_stats.safetensors")
    assert (statistics["mean"].shape, statistics["cov"].shape) == ((256,), (256, 256))
    (listed,) = [model for model in zoo.list_models() if model.name == name and model.folder.parent == models]
    assert listed.licence == "apache-2.0"
    assert listed.parameters == sum(p.numel() for p in shipped.unet.parameters())
    assert f"{listed.parameters:,}" in (models / name / "README.md").read_text()
    extra = {"ldm4-class": "classes.json", "sd-text": "prompts.json"}.get(name)
    assert extra is None or (models / name / extra).is_file()


def test_text_parts_are_readable_by_older_versions(data: Path, stages: Path, small: None, tmp_path: Path) -> None:
    train_latent.main("sd-text", data=data / "emoji-64.npz", first_stage=stages / "kl-f8", out=tmp_path / "m", steps=1,
                      batch=2, lr=1e-3, seed=0, minutes=1.0, checkpoint=None, graph=True, sampling_steps=1)  # fmt: skip
    keys = load_file(tmp_path / "m" / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in keys)
    vocabulary = json.loads((tmp_path / "m" / "tokenizer" / "vocab.json").read_text())
    tokenizer = mezzotint.load(tmp_path / "m").tokenizer
    assert vocabulary == tokenizer.get_vocab()
    merges = (tmp_path / "m" / "tokenizer" / "merges.txt").read_text().splitlines()[1:]
    assert len(vocabulary) == 512 + len(merges) + 2


def test_a_model_of_another_first_stage_is_not_shipped(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor([value])}, tmp_path / name / "diffusion_pytorch_model.safetensors")
    ship.check_first_stage(tmp_path / "one", tmp_path / "one")
    with pytest.raises(ValueError, match="trained with another first stage than .*other"):
        ship.check_first_stage(tmp_path / "one", tmp_path / "other")
    with pytest.raises(ValueError, match="absent: ship this first stage first"):
        ship.check_first_stage(tmp_path / "one", tmp_path / "absent")


def test_sizes_are_counted_once_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stage", "model/unet"):
        (tmp_path / name).mkdir(parents=True)
        save_file({"w": torch.zeros(250_000)}, tmp_path / name / "diffusion_pytorch_model.safetensors")
    (tmp_path / "model/vae").symlink_to("../stage")
    assert sum(ship.check_sizes(tmp_path).values()) == pytest.approx(2, abs=0.01)
    monkeypatch.setattr(ship, "FILE_MEGABYTES", 0.9)
    with pytest.raises(ValueError, match=r"the largest .* 1\.0 MB; at most 45 and 0\.9"):
        ship.check_sizes(tmp_path)
    monkeypatch.setattr(ship, "FILE_MEGABYTES", 16)
    monkeypatch.setattr(ship, "ALL_MEGABYTES", 1.5)
    with pytest.raises(ValueError, match=r"2\.0 MB of weights"):
        ship.check_sizes(tmp_path)


def test_shipped_weights_are_within_the_limits() -> None:
    assert ship.check_sizes(ship.EMBEDDED, ship.MODELS)


def test_a_failed_training_is_tried_once_more_without_graphs(tmp_path: Path) -> None:
    program = "import sys; print('with', sys.argv[1:]); sys.exit('--no-graph' not in sys.argv)"
    job = Job("one", tmp_path / "one", tmp_path / "one.log", [sys.executable, "-c", program])
    job.start()
    wait([job], 30)
    assert job.process.returncode == 0
    assert job.log.read_text() == "with []\nwith ['--no-graph']\n"


def test_what_runs_too_long_is_stopped_and_packed_as_it_is(tmp_path: Path) -> None:
    import tarfile

    folder = tmp_path / "one"
    (folder / "unet").mkdir(parents=True)
    for name in ("unet/config.json", "unet/model.safetensors", "one.pt", "samples.png"):
        (folder / name).touch()
    job = Job("one", folder, tmp_path / "one.log", [sys.executable, "-c", "import time; time.sleep(60)"])
    job.start()
    wait([job], 0.1)
    assert job.process.returncode < 0
    with tarfile.open(pack(job, tmp_path)) as archive:
        names = set(archive.getnames())
    assert names == {"one.log", "one/unet/config.json", "one/unet/model.safetensors", "one/samples.png"}
