"""CLIP and DINOv2 with tiny random weights from a folder: preparation, scores, and where the folder is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from mezzotint.errors import WeightsError
from mezzotint.evaluation.clip import (
    CLIP_MEAN,
    CLIP_STD,
    Prepared,
    clip_captions,
    clip_scores,
    load_clip_images,
    load_dino,
)
from mezzotint.evaluation.images import rounded, tensor_images
from mezzotint.evaluation.references import Reference
from mezzotint.evaluation.scores import score_images
from mezzotint.models.importing.clip_vocabulary import make_tokenizer

CAPTIONS = ["a cat", "two dogs and a bird " * 30, "t"]
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as MEZZOTINT_WEIGHTS names it, with a CLIP and a DINOv2 of a few thousand parameters."""
    folder = tmp_path_factory.mktemp("weights")
    tokenizer = make_tokenizer([])
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**SMALL, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 20},
        vision_config={**SMALL, "image_size": 224, "patch_size": 56},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder / "clip-vit-large-patch14")
        sizes = {key: SMALL[key] for key in SMALL if key != "intermediate_size"}
        dino = Dinov2Config(**sizes, image_size=224, patch_size=56)
        Dinov2Model(dino).save_pretrained(folder / "dinov2-large")
    tokenizer.save_pretrained(folder / "clip-vit-large-patch14")
    return folder


@pytest.fixture(autouse=True)
def _named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_WEIGHTS", str(weights))


def images(count: int = 3) -> Tensor:
    return rounded(torch.rand((count, 3, 224, 224), generator=torch.Generator().manual_seed(0)) * 2 - 1)


class Processor:
    """The part of transformers' processor that torchmetrics calls, with our preparation of pictures."""

    def __init__(self, prepared: Prepared, tokenizer: object) -> None:
        self.prepared, self.tokenizer = prepared, tokenizer

    def __call__(
        self, text: list[str] | None = None, images: list[Tensor] | None = None, **_: object
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if images is not None:
            found["pixel_values"] = self.prepared.prepare(torch.stack(images).float() / 127.5 - 1)
        if text is not None:
            options = {"padding": True, "truncation": True, "max_length": 20, "return_tensors": "pt"}
            found |= self.tokenizer(text, **options)  # type: ignore[operator]
        return found


class PlainOutputs:
    """A CLIPModel whose features are tensors, as torchmetrics 1.9 expects and transformers 5 no longer gives."""

    def __init__(self, model: CLIPModel) -> None:
        self.model, self.config = model, model.config

    def to(self, device: object) -> PlainOutputs:
        return self

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.get_text_features(ids, mask).pooler_output


def test_the_clip_score_is_torchmetrics(weights: Path) -> None:
    model = PlainOutputs(CLIPModel.from_pretrained(weights / "clip-vit-large-patch14").eval())
    processor = Processor(load_clip_images(), CLIPTokenizer.from_pretrained(weights / "clip-vit-large-patch14"))
    x = images()
    with torch.no_grad():
        pixels = ((x + 1) * 127.5).round().byte()
        # One by one: it takes the maximum with 0 after the mean, the paper before.
        pairs = zip(pixels, CAPTIONS, strict=True)
        singles = [clip_score(image, text, model_name_or_path=lambda: (model, processor)) for image, text in pairs]
    found = score_images(x, None, ["clip"], captions=CAPTIONS, resamples=3)[0]
    assert found.value == pytest.approx(float(torch.stack(singles).mean()), rel=1e-3)
    assert found.value > 0
    assert found.name == "CLIP score"
    assert found.low <= found.value <= found.high


def test_vectors_have_length_one_and_a_caption_its_own() -> None:
    x, captions = load_clip_images()(images()), clip_captions(CAPTIONS)
    for vectors in (x, captions):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(clip_captions(CAPTIONS[1:]), captions[1:])  # whatever else is in the batch
    assert bool((clip_scores(x, captions) >= 0).all())
    torch.testing.assert_close(clip_scores(x, x), torch.full((3,), 100.0))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (32, 32), (300, 224), (40, 80)])
def test_preparation_crops_the_centre_and_normalizes(height: int, width: int) -> None:
    prepared = Prepared(torch.nn.Identity(), 224, CLIP_MEAN, CLIP_STD)
    x = torch.full((1, 3, height, width), -1.0)
    middle = slice(width // 2 - height // 8, width // 2 + height // 8)
    x[..., middle] = 1.0  # a white bar in the centre stays there
    y = prepared.prepare(x)
    assert y.shape == (1, 3, 224, 224)
    pixels = y * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    torch.testing.assert_close(pixels[..., 112], torch.ones(1, 3, 224))
    torch.testing.assert_close(pixels, pixels.flip(-1), atol=1e-4, rtol=0)


def test_fd_dino_is_zero_for_the_same_images() -> None:
    x = images(6)
    score = score_images(x, Reference("same", tensor_images(x)), ["fd-dino"], resamples=0)[0]
    assert score.value == pytest.approx(0, abs=1e-5)
    assert load_dino()(x).shape == (6, 16)


def test_missing_weights_name_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"openai/clip-vit-large-patch14: .*put the files of https://huggingface.co/"
    ):
        clip_captions(["a"])
