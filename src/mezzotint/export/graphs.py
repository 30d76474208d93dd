"""What of a pipeline becomes a graph: modules of tensors in, one tensor out, with inputs to trace them on.

    graph            inputs                                  output
    unet             x_t [B, C, H, W], t int64 [B],          eps [B, C, H, W]
                     context [B, L, D] where conditional
    vae, vqvae       z [B, c, h, w]                          image [B, 3, H, W], not clipped; VQ looks its codes up
    text_encoder     ids int64 [B, L]                        context [B, L, D]
    class_embedder   labels int64 [B]                        context [B, 1, D]

Names of the graphs are those of the parts of the pipeline. Only B is dynamic. A part that a pipeline lacks (None) has
no graph. Tokenizer and scheduler are no networks; they stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from mezzotint.errors import ModelError
from mezzotint.export.qdq import exportable
from mezzotint.models.conditioning import conditioning_kind, token_ids
from mezzotint.models.decoding import first_stage
from mezzotint.models.denoiser import EXAMPLE_TOKENS, example_inputs, network_of
from mezzotint.models.families import first_stage_name

BATCH = 2  # of the example inputs; torch.export takes a batch of 1 for a constant


@dataclass(frozen=True, eq=False)
class Graph:
    """One network to export.

    Attributes:
        module: the whole network; what is exported is `call(module, *inputs)`.
        inputs: example inputs by name, each with the batch as its first axis.
        output: name of the output.
    """

    module: nn.Module
    call: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    output: str

    def traceable(self) -> nn.Module:
        """A module that takes the inputs by position and gives the output; its layers are those of `exportable`."""
        return _Call(exportable(self.module), self.call).eval()


class _Call(nn.Module):
    """call(network, *inputs) as a module, which is what exporters take."""

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(self.network, *inputs)


def graphs_of(pipeline: DiffusionPipeline) -> dict[str, Graph]:
    """The graphs of `pipeline`, by the names of its parts."""
    kind, parts = conditioning_kind(pipeline), pipeline.components
    tokens = 1
    graphs: dict[str, Graph] = {}
    if kind == "text" and parts["text_encoder"] is not None:
        ids = token_ids(pipeline, [""] * BATCH)
        tokens = ids.shape[1]
        graphs["text_encoder"] = Graph(parts["text_encoder"], _encode, {"ids": ids}, "context")
    if kind == "class" and parts["class_embedder"] is not None:
        labels = torch.zeros(BATCH, dtype=torch.int64)
        graphs["class_embedder"] = Graph(parts["class_embedder"], _embed, {"labels": labels}, "context")
    graphs["unet"] = denoiser_graph(network_of(pipeline), tokens=tokens)
    stage = first_stage_name(pipeline)
    if stage is not None and parts[stage] is not None:
        graphs[stage] = _stage_graph(pipeline)
    return graphs


def denoiser_graph(network: nn.Module, *, tokens: int = EXAMPLE_TOKENS) -> Graph:
    """The graph of a denoiser alone, whose context has `tokens` rows. ModelError if it takes class labels."""
    x_t, t, *others = (tensor.cpu() for tensor in example_inputs(network, BATCH))
    if len(others) > 1 or any(not other.is_floating_point() or other.ndim != 3 for other in others):
        raise ModelError(f"{type(network).__name__}: networks with an embedding of class labels cannot be exported")
    inputs = {"x_t": x_t, "t": t}
    if others:
        inputs["context"] = torch.zeros(BATCH, tokens, others[0].shape[-1])
    return Graph(network, _denoise, inputs, "eps")


def _stage_graph(pipeline: DiffusionPipeline) -> Graph:
    unet: Any = network_of(pipeline)
    stage: Any = first_stage(pipeline)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(BATCH, unet.config.in_channels, height, width, generator=generator)
    return Graph(stage, _decode, {"z": z}, "image")


def _denoise(network: Any, x_t: Tensor, t: Tensor, *context: Tensor) -> Tensor:
    return network(x_t, t, *context, return_dict=False)[0]


def _decode(stage: Any, z: Tensor) -> Tensor:
    return stage.decode(z, return_dict=False)[0]


def _encode(encoder: Any, ids: Tensor) -> Tensor:
    return encoder(ids)[0]


def _embed(table: Any, labels: Tensor) -> Tensor:
    return table(labels)
