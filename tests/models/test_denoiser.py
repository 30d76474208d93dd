"""Calling the network: mixed times, conditions, the feature map that scores time steps, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, UNet1DModel

from mezzotint.errors import ModelError
from mezzotint.models.denoiser import example_inputs, mid_feature_module, network_of, predict_eps, sample_shape
from tiny import tiny_pipeline, tiny_text_unet, tiny_unet


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_rows_may_lie_at_different_times() -> None:
    network, x_t, t = tiny_unet().double(), noise(4, 3, 16, 16), torch.tensor([999, 0, 500, 0])
    eps = predict_eps(network, x_t, t)
    assert eps.dtype == torch.float32
    for row, time in enumerate(t.tolist()):
        torch.testing.assert_close(eps[row], predict_eps(network, x_t[row : row + 1], time)[0])
    assert (eps - predict_eps(network, x_t, 999))[1:].abs().amax((1, 2, 3)).gt(1e-3).all()  # times do matter


def test_an_integer_time_is_the_time_of_all_rows() -> None:
    network, x_t = tiny_unet(), noise(3, 3, 16, 16)
    expected = network(x_t, torch.tensor(7)).sample
    for t in (7, torch.tensor(7), torch.tensor([7, 7, 7]), torch.tensor([7, 7, 7], dtype=torch.int32)):
        assert torch.equal(predict_eps(network, x_t, t), expected)


def test_conditions_are_arguments_of_the_network() -> None:
    network, states = tiny_text_unet(), noise(2, 5, 12)
    x_t = noise(2, 4, 8, 8)
    eps = predict_eps(network, x_t, 3, {"encoder_hidden_states": states})
    assert torch.equal(eps, network(x_t, 3, encoder_hidden_states=states).sample)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_class_embeds": 5},
        {"class_embed_type": "timestep"},
        {"class_embed_type": "identity"},
        {"sample_size": (8, 16)},
    ],
)
def test_example_inputs_run(changes: dict[str, Any]) -> None:
    network = tiny_unet(**changes)
    inputs = example_inputs(network, batch=2)
    assert network(*inputs).sample.shape == inputs[0].shape
    for first, again in zip(inputs, example_inputs(network, batch=2), strict=True):
        assert torch.equal(first, again)


def test_example_inputs_of_a_text_network_run_in_its_dtype() -> None:
    network = tiny_text_unet().to(torch.bfloat16)
    assert network(*example_inputs(network)).sample.shape == (1, 4, 8, 8)


@pytest.mark.parametrize("attention", [True, False])
def test_the_scored_features_leave_the_first_middle_resnet(attention: bool) -> None:
    network = tiny_unet(add_attention=attention)
    seen: dict[str, torch.Tensor] = {}
    network.mid_block.resnets[0].register_forward_hook(lambda _, args, out: seen.update(out=out))
    mid_feature_module(network).register_forward_pre_hook(lambda _, args: seen.update(feature=args[0]))
    network(*example_inputs(network))
    assert torch.equal(seen["feature"], seen["out"])
    assert seen["feature"].shape == (1, 32, 8, 8)


def test_a_text_network_is_scored_by_its_middle_transformer() -> None:
    network = tiny_text_unet()
    assert mid_feature_module(network) is network.mid_block.attentions[0]


def test_no_middle_block_no_features() -> None:
    with pytest.raises(ModelError, match="UNet2DModel has no mid_block"):
        mid_feature_module(tiny_unet(mid_block_type=None))


def test_shape_and_network_of_a_pipeline() -> None:
    pipeline = tiny_pipeline(sample_size=(8, 16))
    assert network_of(pipeline) is pipeline.unet
    assert sample_shape(pipeline) == (3, 8, 16)
    with pytest.raises(ModelError, match="does not say the sample_size"):
        sample_shape(tiny_pipeline(sample_size=None))


def test_pipelines_without_a_usable_denoiser_are_refused() -> None:
    pipeline = tiny_pipeline()
    with pytest.raises(ModelError, match="maps 3 channels to 6: .* predict a variance"):
        network_of(DDIMPipeline(tiny_unet(out_channels=6), pipeline.scheduler))
    pipeline.unet = UNet1DModel(block_out_channels=(32, 32, 64), layers_per_block=1)
    with pytest.raises(ModelError, match="expected UNet2DModel or UNet2DConditionModel, got UNet1DModel"):
        network_of(pipeline)
    pipeline.unet = None
    with pytest.raises(ModelError, match="DDIMPipeline has no denoiser"):
        network_of(pipeline)
