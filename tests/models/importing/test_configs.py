"""The YAML of a checkpoint: found, read strictly, or recognised from the entries."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from checkpoint_fixtures import SMALL, Fixture
from mezzotint.errors import ModelError
from mezzotint.models.importing.configs import PUBLISHED, find_config, parse, read_config, unet_part
from mezzotint.models.importing.schema import CompVisConfig, UNetParams

NAMES = sorted(path.stem for path in PUBLISHED.glob("*.yaml"))
CHURCH = Fixture.read(SMALL / "ldm8-church.json").data["config"]


def entries_of(name: str, *, ema: bool = False) -> dict[str, Tensor]:
    """The entries of a published denoiser, by shape only."""
    wanted = unet_part(read_config(PUBLISHED / f"{name}.yaml"), ema=ema).wanted()
    return {key: torch.empty(shape, device="meta") for key, shape in wanted.items()}


def test_the_five_models_of_the_paper_are_published() -> None:
    assert sorted(path.stem for path in SMALL.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_published_models_are_recognised(name: str, tmp_path: Path) -> None:
    found = find_config(tmp_path / "x.ckpt", entries_of(name), None)
    assert found.origin == f"published {name}"
    assert found.config == read_config(PUBLISHED / f"{name}.yaml")


def test_a_file_with_ema_weights_only_is_recognised(tmp_path: Path) -> None:
    assert find_config(tmp_path / "x.ckpt", entries_of("ldm8-church", ema=True), None).origin == "published ldm8-church"


def test_a_damaged_copy_is_recognised_so_that_the_damage_can_be_named(tmp_path: Path) -> None:
    entries = entries_of("ldm4-imagenet")
    del entries["model.diffusion_model.out.2.weight"]
    assert find_config(tmp_path / "x.ckpt", entries, None).origin == "published ldm4-imagenet"


def test_unknown_models_need_a_yaml(tmp_path: Path) -> None:
    known = "ddim-cifar10, ldm4-bedroom, ldm4-imagenet, ldm8-church, sd-v1"
    message = (
        rf"x.ckpt: none of the published models \({known}\) has these entries \(one, two, three, ...\); "
        r"give the YAML that came with it: --config, or a file x.yaml beside it"
    )
    with pytest.raises(ModelError, match=message):
        find_config(tmp_path / "x.ckpt", dict.fromkeys(("one", "two", "three", "four"), torch.ones(1)), None)


def test_order_of_places(tmp_path: Path) -> None:
    entries = entries_of("ldm8-church")
    places = [tmp_path / name for name in ("given.yml", "x.yaml", "x.yml", "config.yaml")]
    for place in places:
        place.write_text(yaml.safe_dump(CHURCH))
    assert find_config(tmp_path / "x.ckpt", entries, places[0]).origin == str(places[0])
    for place in places[1:]:
        assert find_config(tmp_path / "x.ckpt", entries, None).origin == str(place)
        place.unlink()
    assert find_config(tmp_path / "x.ckpt", entries, None).origin == "published ldm8-church"


def test_a_yaml_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="describes an ermongroup/ddim model, but the entries of .* a CompVis model"):
        find_config(tmp_path / "x.ckpt", entries_of("sd-v1"), PUBLISHED / "ddim-cifar10.yaml")
    with pytest.raises(ModelError, match="describes a CompVis model, but the entries of .* an ermongroup/ddim model"):
        find_config(tmp_path / "x.ckpt", entries_of("ddim-cifar10"), PUBLISHED / "sd-v1.yaml")


def changed(path: str, value: Any) -> dict[str, Any]:
    """The church YAML with one option set; None removes it."""
    config = deepcopy(CHURCH)
    *parts, last = path.split(".")
    place = config
    for part in parts:
        place = place[part]
    place[last] = value
    if value is None:
        del place[last]
    return config


WRONG: dict[str, tuple[Any, str]] = {
    "list": ([1], "expected the YAML of a CompVis or ermongroup/ddim model"),
    "no model": ({"data": {}}, "expected the YAML of a CompVis or ermongroup/ddim model"),
    "no unet": (changed("model.params.unet_config", None), "model.params.unet_config: Field required$"),
    "text": (changed("model.params.timesteps", "many"), "model.params.timesteps: .* valid integer.*, got 'many'"),
    "betas": (changed("model.params.beta_schedule", "cosine"), "model.params.beta_schedule: .*'linear', got 'cosine'"),
    "condition": (changed("model.params.cond_stage_config", "__is_first_stage__"), "model.params.cond_stage_config"),
    "concat": (changed("model.params.conditioning_key", "concat"), "conditioning_key: Input .*, got 'concat'"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_yaml_is_one_line_that_names_the_option(what: str, tmp_path: Path) -> None:
    content, message = WRONG[what]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ModelError, match=message) as raised:
        read_config(tmp_path / "x.yaml")
    assert str(raised.value).startswith(f"{tmp_path / 'x.yaml'}: ")
    assert "\n" not in str(raised.value)


def test_files_that_are_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(ModelError, match="x.yaml: no YAML"):
        read_config(tmp_path / "x.yaml")
    with pytest.raises(ModelError, match="y.yaml: cannot be read: No such file"):
        read_config(tmp_path / "y.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_new_attention_order": True}, "unet_config.params: use_new_attention_order: .*, got True"),
        ({"dims": 3}, "unet_config.params: dims: Input should be 2, got 3"),
        ({"num_classes": 10}, "unet_config.params: num_classes: .*, got 10"),
        ({"made_up": 1}, "unet_config.params: made_up: Extra inputs are not permitted, got 1"),
        ({"num_heads": -1}, "give either num_heads or num_head_channels"),
        ({"num_head_channels": 32}, "give either num_heads or num_head_channels"),
        ({"use_spatial_transformer": True}, "use_spatial_transformer and context_dim belong together"),
        ({"use_spatial_transformer": True, "context_dim": 8}, "are supported without use_spatial_transformer"),
    ],
)
def test_networks_that_are_not_supported(options: dict[str, Any], message: str) -> None:
    arguments = CHURCH["model"]["params"]["unet_config"]["params"]
    assert parse(UNetParams, arguments, "unet_config.params").num_heads == 8
    with pytest.raises(ModelError, match=message):
        parse(UNetParams, {**arguments, **options}, "unet_config.params")


def test_the_published_yaml_is_what_the_full_checkpoints_have() -> None:
    """Widths are those of the papers; everything else is what the small fixtures were made with."""
    for name in NAMES:
        ours, small = read_config(PUBLISHED / f"{name}.yaml"), Fixture.read(SMALL / f"{name}.json").data["config"]
        if not isinstance(ours, CompVisConfig):
            assert ours.model_dump()["diffusion"].items() <= small["diffusion"].items()
            continue
        theirs = parse(CompVisConfig, small, name).model.params
        for option in ("linear_start", "linear_end", "timesteps", "scale_factor", "image_size", "parameterization"):
            assert getattr(ours.model.params, option) == getattr(theirs, option), (name, option)
        widths = {"model_channels", "context_dim", "use_checkpoint", "num_head_channels"}
        mine, other = ours.model.params.unet_config.params, theirs.unet_config.params
        assert {k: v for k, v in mine.items() if k not in widths} == {k: v for k, v in other.items() if k not in widths}
