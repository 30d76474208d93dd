"""Loading: what comes back, that a model is data and never code, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDPMScheduler, DiffusionPipeline
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from mezzotint.errors import ConfigError, ModelError
from mezzotint.models import load as loading
from mezzotint.models import zoo
from mezzotint.models.load import load
from tiny import tiny_pipeline, tiny_unet

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline with float16 weights on disk, as the shipped model has."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    pipeline = tiny_pipeline()
    DDIMPipeline(tiny_unet().to(torch.float16), pipeline.scheduler).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    copy = tmp_path / "model"
    for path in saved.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return copy


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(HfApi, "model_info", refuse)


def change_index(folder: Path, **changes: Any) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))


def test_a_folder_comes_back_frozen_in_float32(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = load(saved)
    network = pipeline.unet
    assert isinstance(pipeline, DDIMPipeline)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())
    for name, value in tiny_unet().state_dict().items():
        assert torch.equal(network.state_dict()[name], value.to(torch.float16).to(torch.float32)), name
    assert "".join(capfd.readouterr()) == ""  # no bars, no chatter


def test_strings_paths_and_dtypes(saved: Path) -> None:
    assert load(str(saved), dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    assert load(saved, dtype=torch.float16).unet.dtype == torch.float16


def test_names_of_the_zoo_come_before_folders(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "model_folders", lambda: {"tiny": saved, zoo.DEFAULT_MODEL: saved})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert loading.local_folder("tiny") == saved
    assert loading.local_folder(None) == saved
    assert loading.local_folder(Path("tiny")) == Path("tiny")
    with pytest.raises(
        ModelError, match=r"no model called 'tinny': did you mean tiny\? the zoo has ddim-emoji, tiny; "
    ):
        load("tinny")


def test_attention_names_of_older_files_are_understood(folder: Path, saved: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folder / WEIGHTS)
    for name in list(weights):
        for new_part, old_part in old.items():
            if f".{new_part}." in name:
                weights[name.replace(new_part, old_part)] = weights.pop(name)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert any(".proj_attn." in name for name in weights)
    loaded = load(folder).unet.state_dict()
    for name, value in load(saved).unet.state_dict().items():
        assert torch.equal(loaded[name], value), name


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["conv_out.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def reshape_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["conv_out.weight"] = weights["conv_out.weight"][:2].contiguous()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "no diffusers pipeline, there is no model_index.json"),
    "index is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json: no JSON"),
    "unknown class": (lambda f: change_index(f, _class_name="NoSuchPipeline"), "has no attribute NoSuchPipeline"),
    "no denoiser": (
        lambda f: change_index(f, unet=[None, None]),
        "DDIMPipeline without a supported denoiser: expected a unet .UNet2DModel or UNet2DConditionModel., it lists "
        "scheduler .DDIMScheduler.$",
    ),
    "another network": (
        lambda f: change_index(f, unet=["diffusers", "AutoencoderKL"]),
        "it lists scheduler .DDIMScheduler., unet .AutoencoderKL.$",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no file named diffusion_pytorch_model.safetensors"),
    "truncated weights": (truncate, "Unable to load weights"),
    "missing weight": (drop_weight, "unet: weights are missing: 1, the first is conv_out.weight"),
    "wrong shape": (reshape_weight, "conv_out.weight expected shape"),
}


@pytest.mark.parametrize("what", list(SPOILED))
def test_what_is_wrong_with_a_folder_is_one_line(folder: Path, what: str) -> None:
    spoil, message = SPOILED[what]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as raised:
        load(folder)
    assert str(raised.value).count("\n") == 0
    assert str(folder) in str(raised.value)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickles_are_never_opened(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"conv_in.weight": Bomb(tmp_path / "boom")}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="no file named diffusion_pytorch_model.safetensors"):
        load(folder)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"scheduler": ["mezzotint.models.pipelines", "DDIMScheduler"]},  # a name that is there, but not for folders
        {"scheduler": ["mezzotint.models.unets", "ModelMixin"]},
        {"scheduler": ["mezzotint.models.load", "load"]},
        {"scheduler": ["mezzotint.models.pipelines", ["ClassEmbedder"]]},
    ],
)
def test_a_folder_may_name_only_the_classes_in_our_tables(folder: Path, change: dict[str, Any]) -> None:
    change_index(folder, **change)
    with pytest.raises(ModelError, match=r"scheduler asks for code of its own \(mezzotint\.models\.\w+\)"):
        load(folder)


def test_parts_that_are_absent_come_back_as_none(folder: Path) -> None:
    change_index(folder, _class_name="LDMPipeline", vqvae=[None, None])
    assert load(folder).vqvae is None


@pytest.mark.parametrize("place", ["pipeline", "part", "library"])
def test_code_of_a_model_is_never_run(
    folder: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'boom')!r}).touch()\nclass Own: pass\n"
    importable = tmp_path / "importable"
    importable.mkdir()
    monkeypatch.syspath_prepend(importable)
    for path in (folder / "own_code.py", folder / "scheduler/own_code.py", importable / "other_code.py"):
        path.write_text(code)
    change = {
        "pipeline": {"_class_name": ["own_code", "Own"]},
        "part": {"scheduler": ["own_code", "Own"]},
        "library": {"scheduler": ["other_code", "Own"]},
    }
    change_index(folder, **change[place])
    with pytest.raises(ModelError, match="own code is refused|scheduler asks for code of its own"):
        load(folder)
    assert not (tmp_path / "boom").exists()


def test_a_quantized_folder_is_sent_to_the_other_loader(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match=r"a quantized model, not a float one; load it with mezzotint\.load"):
        load(folder)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "./nowhere: no such folder"),
        ("a/b/c", "a/b/c: no such folder"),
        (Path("nowhere"), "nowhere: no such folder"),
        (Path("owner/name"), "owner/name: no such folder"),
        (Path(__file__), "test_load.py: no torch checkpoint, or a truncated one"),
    ],
)
def test_places_that_do_not_exist(model: str | Path, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(model)


def test_a_network_folder_is_told_from_a_pipeline(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"a bare network\? give the folder of its pipeline"):
        load(saved / "unet")


def test_devices_that_do_not_exist(saved: Path) -> None:
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here"):
            load(saved, device=device)


def test_offline_without_a_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = r"someone/something: no such folder or copy on this disk, and the hub cannot be reached \(timed out\)"
    with pytest.raises(ModelError, match=message):
        load("someone/something")


def test_offline_with_a_copy(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(model: str, **options: Any) -> str:
        asked.update(options, model=model)
        return str(saved)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    assert isinstance(load("someone/something"), DDIMPipeline)
    assert asked == {"model": "someone/something", "use_safetensors": True, "local_files_only": True}


def test_the_scheduler_stays_that_of_the_model(folder: Path) -> None:
    DDPMScheduler(beta_end=0.01).save_pretrained(folder / "scheduler")
    change_index(folder, _class_name="DDPMPipeline", scheduler=["diffusers", "DDPMScheduler"])
    scheduler = load(folder).scheduler
    assert (type(scheduler), scheduler.config.beta_end) == (DDPMScheduler, 0.01)
