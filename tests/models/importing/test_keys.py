"""Key maps: every weight of a network has its own entry, and where diffusers has a map too, both agree."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import single_file_utils

from checkpoint_fixtures import SMALL, Fixture
from mezzotint.errors import ModelError
from mezzotint.models.importing.configs import parse, unet_part
from mezzotint.models.importing.filling import fill_
from mezzotint.models.importing.keys import Source, level_source, split_qkv, unet_source
from mezzotint.models.importing.networks import first_stage
from mezzotint.models.importing.schema import CompVisConfig, FirstStageParams
from tiny import tiny_unet


@pytest.mark.parametrize(("heads", "width"), [(1, 4), (2, 3), (8, 1)])
@pytest.mark.parametrize("rest", [(), (5,), (5, 1)])
def test_legacy_order_is_head_then_query_key_value(heads: int, width: int, rest: tuple[int, ...]) -> None:
    rows = torch.tensor([[h, which, w] for h in range(heads) for which in range(3) for w in range(width)]).float()
    shape = (len(rows), *([1] * len(rows.new_empty(rest).shape)))
    number = (rows @ torch.tensor([100.0, 10.0, 1.0])).reshape(shape).expand(-1, *rest).contiguous()
    parts = split_qkv(number, heads)
    assert parts.shape == (3, heads * width, *rest)
    for which in range(3):
        expected = torch.tensor([100 * h + 10 * which + w for h in range(heads) for w in range(width)]).float()
        assert torch.equal(parts[which].reshape(heads * width, -1)[:, 0], expected)


def test_no_two_weights_come_from_one_place() -> None:
    for name in ("ddim-cifar10", "ldm4-bedroom", "ldm8-church", "sd-v1"):
        fixture = Fixture.read(SMALL / f"{name}.json")
        kind = CompVisConfig if fixture.data["format"] == "compvis" else None
        if kind is None:
            network = tiny_unet()
            sources = [level_source(key, 2) for key in network.state_dict()]
        else:
            part = unet_part(parse(kind, fixture.data["config"], name))
            sources = [part.source(key) for key in part.network.state_dict()]
        assert len(set(sources)) == len(sources)


def test_our_maps_agree_with_those_of_diffusers_on_stable_diffusion() -> None:
    fixture = Fixture.read(SMALL / "sd-v1.json")
    entries = fixture.entries()
    part = unet_part(parse(CompVisConfig, fixture.data["config"], "sd-v1"))
    assert fill_(part, entries)
    theirs = single_file_utils.convert_ldm_unet_checkpoint(dict(entries), dict(part.network.config))
    ours = part.network.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], value.reshape(ours[name].shape)) for name, value in theirs.items())

    params = parse(FirstStageParams, fixture.data["config"]["model"]["params"]["first_stage_config"]["params"], "")
    vae = first_stage("AutoencoderKL", params, 1.0)
    theirs = single_file_utils.convert_ldm_vae_checkpoint(dict(entries), dict(vae.config))
    assert theirs.keys() == vae.state_dict().keys()
    for name, value in theirs.items():
        entry = entries["first_stage_model." + level_source(name, len(params.ddconfig.ch_mult)).key]
        assert torch.equal(entry.flatten(), value.flatten()), name


def test_a_weight_that_compvis_does_not_know_is_refused() -> None:
    network = tiny_unet(num_class_embeds=4)
    with pytest.raises(
        ModelError, match=r"class_embedding.weight: UNet2DModel has a weight that no CompVis network has"
    ):
        unet_source("class_embedding.weight", network)


def test_a_source_takes_its_third() -> None:
    qkv = torch.arange(12.0).reshape(12, 1, 1)
    key = Source("qkv.weight", third=1, heads=2)
    assert key.shape_of((4, 1)) == (12, 1)
    assert torch.equal(key.take(qkv, (4, 1)), torch.tensor([[2.0], [3.0], [8.0], [9.0]]))
    assert torch.equal(Source("w").take(qkv, (12, 1)), torch.arange(12.0)[:, None])
