"""First stages: codes do not die, reconstructions are fitted, what is exported is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import train_first_stage as program
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file
from torch import Tensor
from train_first_stage import (
    CLASSES,
    FirstStageSettings,
    VQStage,
    codes_in_use,
    encode,
    fit_loss,
    main,
    permute_colours,
    psnr,
)
from training import Run, load_images, to_float

SMALL: dict[str, dict[str, Any]] = {
    "vq-f4": {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "sample_size": 32, "num_vq_embeddings": 32},
    "kl-f8": {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "sample_size": 64},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The two first stages, much narrower and for smaller images."""
    configs = {kind: {**program.CONFIGS[kind], **changes} for kind, changes in SMALL.items()}
    monkeypatch.setattr(program, "CONFIGS", configs)
    return configs


def stage_run(config: dict[str, Any], **changes: object) -> Run:
    torch.manual_seed(0)
    settings = FirstStageSettings(**{"minutes": 1.0, "batch": 4, "steps": 4, "warmup": 1, **changes})
    return Run(VQStage(config), settings, torch.device("cpu"))


def latents() -> Tensor:
    return torch.randn(512, 3, generator=torch.Generator().manual_seed(1))


def test_the_loss_of_equal_images_is_zero_and_edges_cost() -> None:
    x = torch.zeros(1, 3, 16, 16)
    assert fit_loss(x, x, 1.0) == 0
    flat, stripes = x + 0.1, x.clone()
    stripes[:, :, :, ::2] = 0.2  # the same mean error at every scale
    torch.testing.assert_close(fit_loss(x, stripes, 0.0), fit_loss(x, flat, 0.0))
    torch.testing.assert_close(fit_loss(x, flat, 1.0), fit_loss(x, flat, 0.0))
    torch.testing.assert_close(fit_loss(x, stripes, 1.0) - fit_loss(x, stripes, 0.0), torch.tensor(0.2))


def test_psnr_is_that_of_the_definition() -> None:
    image = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    assert psnr(image, to_float(image) - 0.2) == pytest.approx(20, abs=1e-4)  # 10 log10(4 / 0.04)


def test_dead_codes_are_moved_onto_latents(small: dict[str, dict[str, Any]]) -> None:
    run, z = stage_run(small["vq-f4"]), latents()
    stage = run.module
    codes = stage.model.quantize.embedding.weight
    codes.data.fill_(100.0)
    stage.update_codes(z, stage.nearest(z), run)
    distances = (codes[:, None] - z).square().sum(-1).min(1).values
    assert distances[1:].max() < 1e-8  # each lies on one, but for the first, which all latents had chosen
    for _ in range(50):
        stage.update_codes(z, stage.nearest(z), run)
    assert len(stage.nearest(z).unique()) == len(codes)


def test_codes_no_longer_move_at_the_end(small: dict[str, dict[str, Any]]) -> None:
    run, z = stage_run(small["vq-f4"]), latents()
    stage = run.module
    for _ in range(20):
        stage.update_codes(z, stage.nearest(z), run)
    run.progress.fill_(0.9)
    code = stage.model.quantize.embedding.weight[0]
    code.fill_(100.0)
    stage.chosen[0], stage.sums[0] = 1e-3, 1e-3 * code  # dead
    stage.update_codes(z, stage.nearest(z), run)
    torch.testing.assert_close(code, torch.full((3,), 100.0))


def test_the_nearest_code_is_that_of_diffusers(small: dict[str, dict[str, Any]]) -> None:
    model = stage_run(small["vq-f4"]).module
    z = torch.randn(2, 3, 8, 8)
    quantized = model.model.quantize(z)[0]
    index = model.nearest(z.permute(0, 2, 3, 1).reshape(-1, 3))
    ours = model.model.quantize.embedding.weight[index].view(2, 8, 8, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(quantized, ours)
    assert codes_in_use(model.model, z) == len(index.unique())


def test_permuted_images_have_the_same_channels() -> None:
    x = torch.rand(400, 3, 2, 2)
    orders = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 1, 0]])
    y = permute_colours(x, orders, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(y.sort(1).values, x.sort(1).values)
    changed = (y != x).flatten(1).any(1).float().mean()
    assert 0.15 < changed < 0.35


@pytest.mark.parametrize("kind", ["vq-f4", "kl-f8"])
def test_a_trained_stage_loads_and_says_what_it_can(
    kind: str, small: dict[str, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    size, out = small[kind]["sample_size"], tmp_path / kind
    main(kind, data=data / f"emoji-{size}.npz", out=out, steps=3, batch=4)
    report = json.loads((out / "training.json").read_text())
    model = CLASSES[kind].from_pretrained(out)
    assert isinstance(model, VQModel if kind == "vq-f4" else AutoencoderKL)
    assert {value.dtype for value in load_file(out / "diffusion_pytorch_model.safetensors").values()} == {torch.float16}
    splits, _ = load_images(data / f"emoji-{size}.npz", torch.device("cpu"), report["settings"]["groups"])
    z = encode(model.float(), splits["train"][::2])
    assert model.config.scaling_factor == pytest.approx(1 / z.std().item(), rel=1e-2)
    assert z.shape[1:] == (small[kind]["latent_channels"], 8, 8)
    assert report["steps"] == 3
    assert set(report["psnr_db"]) == {"held_out", "train"}
    assert (out / "samples.png").is_file()
    assert ("codes_in_use" in report) == (kind == "vq-f4")
