"""First stage and text encoder in integers: fitted ranges, rounding to nearest.

The paper's chart of model sizes counts these parts as if they were quantized; its code leaves them float. Here they are
float unless asked for (`vae_bits`, `text_encoder_bits`), and then they are quantized in earnest: every convolution and
linear layer, and the products of diffusers' attention layers. What stays float: norms, embedding tables, the codebook,
and the attention products inside a text encoder.

    part           calibrates on                                              runs
    vqvae, vae     x_0 latents of float trajectories of the denoiser          decode, then encode of what came out
    text_encoder   the calibration prompts and the empty one                  forward

Nothing is learned: at 8 bits rounding to nearest loses little, which `results` of the record says in dB. The first and
last convolutions of encoder and decoder keep 8 bits whatever the setting, as in the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from mezzotint.calibration.plan import float_parts, plan_layers
from mezzotint.calibration.ranges import fit_ranges
from mezzotint.calibration.rows import calibration_conditions
from mezzotint.calibration.selection import calibration_seeds
from mezzotint.config import QuantizeConfig
from mezzotint.errors import ConfigError
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.swap import prepare, to_integer
from mezzotint.models.conditioning import condition_inputs, token_ids
from mezzotint.models.decoding import first_stage, first_stage_scale
from mezzotint.models.denoiser import device_of
from mezzotint.models.families import first_stage_name
from mezzotint.progress import Progress, as_callback
from mezzotint.sampling.trajectory import sample_latents

PART_ROWS = 64  # latents, or prompts
PART_BATCH = 8  # images decoded at once
STAGE_EDGES = ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")


@dataclass(frozen=True)
class PartRows:
    """Rows that one part runs on: `inputs` [R, ...] on the CPU, and how to run it."""

    inputs: Tensor
    run: Callable[[Any, Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.inputs)

    def calls(self, size: int, device: torch.device) -> Iterator[Callable[[nn.Module], Tensor]]:
        """One call of the part for consecutive runs of up to `size` rows."""
        for rows in self.inputs.split(size):
            yield lambda network, rows=rows: self.run(network, rows.to(device))  # type: ignore[misc]


@dataclass(frozen=True)
class QuantizedPart:
    """A part on integers, its plan, what stays float, and what quantization cost it on its calibration rows."""

    network: nn.Module
    bits: str
    plan: dict[str, LayerSpec]
    float_modules: list[str]
    results: dict[str, Any]


RowsOf = Callable[[DiffusionPipeline, QuantizeConfig, torch.device, Progress], "PartRows"]


def quantize_parts(
    pipeline: DiffusionPipeline, config: QuantizeConfig, device: torch.device, progress: Progress
) -> dict[str, QuantizedPart]:
    """The parts that `config` asks for, by their names in the pipeline; on the CPU. ConfigError as `wanted_parts`."""
    return {
        name: _quantize(pipeline.components[name], bits, rows_of(pipeline, config, device, progress), device, progress)
        for name, (bits, rows_of) in wanted_parts(pipeline, config).items()
    }


def wanted_parts(pipeline: DiffusionPipeline, config: QuantizeConfig) -> dict[str, tuple[str, RowsOf]]:
    """{name: (bits, what it calibrates on)} of the parts that `config` asks for.

    Raises:
        ConfigError: a part is asked for that the pipeline does not have.
    """
    wanted: dict[str, tuple[str, RowsOf]] = {}
    kind = type(pipeline).__name__
    if config.vae_bits is not None:
        name = first_stage_name(pipeline)
        if name is None or pipeline.components[name] is None:
            raise ConfigError(f"vae_bits: {kind} has no first stage to quantize; leave the option out")
        wanted[name] = (config.vae_bits, _latent_rows)
    if config.text_encoder_bits is not None:
        if pipeline.components.get("text_encoder") is None:
            raise ConfigError(f"text_encoder_bits: {kind} has no text encoder; leave the option out")
        wanted["text_encoder"] = (config.text_encoder_bits, _prompt_rows)
    return wanted


@torch.no_grad()
def _quantize(
    floating: nn.Module, bits: str, rows: PartRows, device: torch.device, progress: Progress
) -> QuantizedPart:
    settings = QuantizeConfig(recipe="nearest", bits=bits, forward_batch=PART_BATCH, reconstruction=None)
    home = device_of(floating)
    floating.to(device)
    try:
        held = dict(floating.named_modules())
        edges = {name: name for name in STAGE_EDGES if name in held}
        plan = plan_layers(floating, settings, splits={}, edges=edges)
        simulated = prepare(floating, plan)
        fit_ranges(simulated, rows, settings, device, progress)
        results = {"rows": len(rows), "sqnr_db": _sqnr_db(floating, simulated, rows, device)}
    finally:
        floating.to(home)
    return QuantizedPart(to_integer(simulated.cpu()), settings.bits, plan, float_parts(floating, plan), results)


def _sqnr_db(floating: nn.Module, simulated: nn.Module, rows: PartRows, device: torch.device) -> float:
    """Power of the float output over that of the error, all rows together, in dB."""
    signal, noise = 0.0, 0.0
    for call in rows.calls(PART_BATCH, device):
        expected = call(floating).double()
        signal += float(expected.square().sum())
        noise += float((call(simulated).double() - expected).square().sum())
    return float(10 * torch.log10(torch.tensor(signal / noise)))


def _latent_rows(
    pipeline: DiffusionPipeline, config: QuantizeConfig, device: torch.device, progress: Progress
) -> PartRows:
    """What a first stage decodes: x_0 of float trajectories, from the seeds of the calibration run."""
    stage: Any = first_stage(pipeline)
    conditions = calibration_conditions(pipeline, config, PART_ROWS)
    latents = sample_latents(
        pipeline,
        calibration_seeds(config.seed, PART_ROWS),
        sampler=config.sampler,
        batch_size=config.forward_batch,
        conditions=conditions,
        device=device,
        progress=as_callback(progress, "record: latents"),
    )
    return PartRows(latents / first_stage_scale(stage), _decode_encode)


def _decode_encode(stage: Any, z: Tensor) -> Tensor:
    """The image of `z`; encodes it as well, so that the encoder's layers see something to calibrate on."""
    image = stage.decode(z, return_dict=False)[0]
    stage.encode(image.clamp(-1, 1), return_dict=False)
    return image


def _prompt_rows(
    pipeline: DiffusionPipeline, config: QuantizeConfig, device: torch.device, progress: Progress
) -> PartRows:
    prompts = condition_inputs(pipeline, "calibration", PART_ROWS - 1, config.seed)
    given: Any = config.conditions or prompts
    return PartRows(token_ids(pipeline, ["", *given[: PART_ROWS - 1]]), lambda encoder, ids: encoder(ids)[0])
