"""First ranges of every grid: L_p searches over the weights, and over what the layers saw of the calibration rows.

Weights: per output channel (and input group), symmetric. Activations: per tensor (and channel group), one scale for all
time steps, from a bounded weighted sample of each tensor (`value_sample`).

Differs from the released code, which searches batch by batch and averages (0.1 new + 0.9 old), so that the result
depends on the order of the batches and remembers about ten of them; `ranges.method = "ema"` does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mezzotint.calibration.probabilities import ProductSample, collect_, fit_probabilities
from mezzotint.calibration.rows import Rows
from mezzotint.calibration.time_ranges import fit_time_ranges_, timed_quantizers
from mezzotint.calibration.value_sample import ValueSample, Weighted
from mezzotint.config import QuantizeConfig, RangeConfig
from mezzotint.grid.search import affine_from_range, search_affine, search_symmetric
from mezzotint.grid.spec import GridSpec
from mezzotint.layers.activation import ActivationQuantizer
from mezzotint.layers.simulated import SimulatedLayer
from mezzotint.layers.timed import TimedQuantizer
from mezzotint.progress import Progress

SAMPLED_VALUES = 1 << 15  # values of one tensor that a search looks at
EMA_KEEP = 0.9


def fit_ranges(
    simulated: nn.Module, rows: Rows, config: QuantizeConfig, device: torch.device, progress: Progress
) -> None:
    """Sets the scales and zero points of every grid of `simulated`, and its codes to the nearest ones, in place."""
    fit_weights_(simulated, config.ranges, progress)
    fit_time_ranges_(simulated)
    if config.ranges.method == "ema":
        _fit_activations_running_(simulated, rows, config, device, progress)
    else:
        _fit_activations_pooled_(simulated, rows, config, device, progress)


@torch.no_grad()
def fit_weights_(simulated: nn.Module, options: RangeConfig, progress: Progress) -> None:
    """Per-channel weight scales by search; codes to nearest."""
    layers = [m for m in simulated.modules() if isinstance(m, SimulatedLayer)]
    progress.start("fit: weights", len(layers))
    for layer in layers:
        parts = layer.weight_spec.group_slices(layer.weight.shape[1])
        for group, part in enumerate(parts):
            rows = layer.weight[:, part].flatten(1)
            scale = search_symmetric(rows, layer.weight_spec, norm=options.norm, candidates=options.candidates)
            layer.weight_scale[group].copy_(scale)
        layer.round_to_nearest_()
        progress.advance()
    progress.finish()


def quantizers(network: nn.Module) -> dict[str, ActivationQuantizer]:
    """The activation quantizers of `network` by name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, ActivationQuantizer)}


@contextmanager
def float_arithmetic(simulated: nn.Module) -> Iterator[None]:
    """Inside the block `simulated` computes what the float model does."""
    layers = [m for m in simulated.modules() if isinstance(m, SimulatedLayer)]
    grids: list[ActivationQuantizer | TimedQuantizer] = [*quantizers(simulated).values(), *timed_quantizers(simulated)]
    for layer in layers:
        layer.float_weights = True
    for grid in grids:
        grid.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.float_weights = False
        for grid in grids:
            grid.enabled = True


def fit_activation(
    sample: Weighted, spec: GridSpec, options: RangeConfig, side: int | None = None
) -> tuple[Tensor, Tensor]:
    """(scale float32 [], zero_point int32 []) of one activation grid for a sample of its values.

    Symmetric: [-c, c], or the one-sided [0, c] / [-c, 0] where all values have one sign. A zero point given as `side`
    says which of the three, whatever the values are.
    """
    values, weights = sample
    search: dict[str, Any] = {
        "norm": options.norm,
        "candidates": options.candidates if options.clip_activations else 1,
        "weights": weights,
    }
    if not options.symmetric_activations:
        return search_affine(values, spec, **search)
    zero_point = symmetric_zero_point(values, spec) if side is None else side
    one_sided = zero_point != 1 << (spec.bits - 1)
    mirrored = -values if zero_point == spec.quant_max else values
    scale = search_symmetric(mirrored[None], spec, zero_point=0 if one_sided else zero_point, **search)
    return scale[0], torch.tensor(zero_point, dtype=torch.int32, device=values.device)


def symmetric_zero_point(values: Tensor, spec: GridSpec) -> int:
    """Code of 0.0 in a symmetric unsigned grid: an end where all values have one sign, else the middle."""
    if float(values.min()) >= 0:
        return spec.quant_min
    if float(values.max()) <= 0:
        return spec.quant_max
    return 1 << (spec.bits - 1)


@torch.no_grad()
def _fit_activations_pooled_(
    simulated: nn.Module, rows: Rows, config: QuantizeConfig, device: torch.device, progress: Progress
) -> None:
    grids = quantizers(simulated)
    if not grids:
        return
    batches = -(-len(rows) // config.forward_batch)
    per_batch = max(64, SAMPLED_VALUES // batches)
    products, handles = _products(simulated, batches, config)
    samples = {name: ValueSample(g.spec, per_batch, config.seed + i) for i, (name, g) in enumerate(grids.items())}
    handles += [g.register_forward_pre_hook(_collect(samples[n])) for n, g in grids.items() if n not in products]
    progress.start("fit: activations", batches + len(grids))
    try:
        with float_arithmetic(simulated):
            for call in rows.calls(config.forward_batch, device):
                call(simulated)
                progress.advance()
    finally:
        for handle in handles:
            handle.remove()
    for name, grid in grids.items():
        if name in products:
            grid.scale[0], grid.zero_point[0] = fit_probabilities(products[name], grid.spec)
            progress.advance()
            continue
        for group in range(grid.spec.n_groups):
            scale, zero_point = fit_activation(samples[name].weighted(group), grid.spec, config.ranges)
            grid.scale[group], grid.zero_point[group] = scale, zero_point
        progress.advance()
    progress.finish()


def _products(
    simulated: nn.Module, batches: int, config: QuantizeConfig
) -> tuple[dict[str, ProductSample], list[RemovableHandle]]:
    """What `collect_` gives; nothing where probabilities are searched by their values, or ranges are min-max."""
    ranges = config.ranges
    clips = ranges.clip_activations and ranges.candidates > 1
    return collect_(simulated, batches, config.seed) if clips and ranges.probabilities == "product" else ({}, [])


def _collect(sample: ValueSample) -> Any:
    return lambda _, args: sample.add(args[0].detach())


@torch.no_grad()
def _fit_activations_running_(
    simulated: nn.Module, rows: Rows, config: QuantizeConfig, device: torch.device, progress: Progress
) -> None:
    """The released code's rule: a search on every batch, in order, with everything before already quantized.

    Which side of a symmetric range is open is fixed by the first batch.
    """
    running: dict[tuple[str, int], tuple[float, float]] = {}
    grids = quantizers(simulated)

    def update(name: str, grid: ActivationQuantizer) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            sample = ValueSample(grid.spec, SAMPLED_VALUES, config.seed)
            sample.add(args[0].detach())
            for group in range(grid.spec.n_groups):
                old = running.get((name, group))
                side = None if old is None else int(grid.zero_point[group])
                fitted = fit_activation(sample.weighted(group), grid.spec, config.ranges, side)
                scale, zero = fitted[0].item(), int(fitted[1])
                low, high = (grid.spec.quant_min - zero) * scale, (grid.spec.quant_max - zero) * scale
                if old is not None:
                    low = EMA_KEEP * old[0] + (1 - EMA_KEEP) * low
                    high = EMA_KEEP * old[1] + (1 - EMA_KEEP) * high
                running[name, group] = (low, high)
                grid.scale[group], averaged_zero = affine_from_range(low, high, grid.spec)
                grid.zero_point[group] = zero if config.ranges.symmetric_activations else averaged_zero

        return hook

    handles = [grid.register_forward_pre_hook(update(name, grid)) for name, grid in grids.items()]
    size = config.ranges.ema_batch
    progress.start("fit: activations", -(-len(rows) // size))
    try:
        for call in rows.calls(size, device):
            call(simulated)
            progress.advance()
    finally:
        for handle in handles:
            handle.remove()
    progress.finish()
