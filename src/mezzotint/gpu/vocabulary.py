"""What a network says in `rows`: channels-last steps that name their layers, as `torch.library` schemas without bodies.

A tensor of rows is [B, P, C]: the P = H W pixels of a picture or the tokens of a sequence, channels next to each other.
Transposing between pictures and sequences, which fills a diffusers graph, is nothing here. Codes are signed, see
`kernels.triton`. Steps with two outputs of a grid (`..., codes`) are what `fusion` makes of two; `emission` turns every
step into an operator of `kernels.triton` with its constants.

    product            layers side by side on the same codes; picture [H, W] for a convolution, [] for a linear layer;
                       edges: zeros around the picture beyond the layer's own padding (above, below, left, right)
    codes              onto one grid, or onto one for each part that is concatenated
    group_norm         of [x | second] + added, times (1 + factor), plus shift
    entry_codes        group_norm_codes, and codes of [x | second] with a grid for each; a pair
    upsampled_codes    codes of a picture, each pixel factor * factor times
    attention          softmax(q k^T scale) v, `heads` heads side by side along the channels
    int_attention      the same of codes of q, k and v, or of floats that become codes inside
"""

from __future__ import annotations

from typing import Any

import torch

Node = Any  # torch.fx.Node: typed, its arguments are a union of everything there is

_OPERATORS = torch.library.Library("rows", "DEF")
_PRODUCT = "Tensor x_q, Tensor? residual, str[] layers, int[] picture, int[] edges"
_GRID = "float scale, int zero_point, int largest"
_GROUP_NORM = (
    "Tensor x, Tensor? second, Tensor? added, Tensor? weight, Tensor? bias, Tensor? factor, Tensor? shift, "
    "int groups, float eps, bool silu"
)
_LAYER_NORM = "Tensor x, Tensor? weight, Tensor? bias, float eps"
_ATTENTION = "Tensor q, Tensor k, Tensor v, str name, int heads, float scale"

for _schema in (
    f"codes(Tensor x, {_GRID}) -> Tensor",
    f"product({_PRODUCT}) -> Tensor",
    f"product_codes({_PRODUCT}, {_GRID}) -> Tensor",
    f"geglu_codes({_PRODUCT}, {_GRID}) -> Tensor",
    f"group_norm({_GROUP_NORM}) -> Tensor",
    f"group_norm_codes({_GROUP_NORM}, {_GRID}) -> Tensor",
    f"entry_codes({_GROUP_NORM}, {_GRID}, float[] scales, int[] zero_points, int[] largests) -> (Tensor, Tensor)",
    f"layer_norm({_LAYER_NORM}) -> Tensor",
    f"layer_norm_codes({_LAYER_NORM}, {_GRID}) -> Tensor",
    f"attention({_ATTENTION}) -> Tensor",
    f"attention_codes({_ATTENTION}, float step, int zero_point, int largest) -> Tensor",
    f"int_attention({_ATTENTION}) -> Tensor",
    f"int_attention_codes({_ATTENTION}, float step, int zero_point, int largest) -> Tensor",
    "upsample(Tensor x, int[] picture, int factor) -> Tensor",
    f"upsampled_codes(Tensor x, int[] picture, int factor, {_GRID}) -> Tensor",
    "pad(Tensor x, int[] picture, int[] edges) -> Tensor",
):
    _OPERATORS.define(_schema)

CODES = torch.ops.rows.codes.default
PRODUCT = torch.ops.rows.product.default
PRODUCT_CODES = torch.ops.rows.product_codes.default
GEGLU_CODES = torch.ops.rows.geglu_codes.default
GROUP_NORM = torch.ops.rows.group_norm.default
GROUP_NORM_CODES = torch.ops.rows.group_norm_codes.default
ENTRY_CODES = torch.ops.rows.entry_codes.default
LAYER_NORM = torch.ops.rows.layer_norm.default
LAYER_NORM_CODES = torch.ops.rows.layer_norm_codes.default
ATTENTION = torch.ops.rows.attention.default
ATTENTION_CODES = torch.ops.rows.attention_codes.default
INT_ATTENTION = torch.ops.rows.int_attention.default
INT_ATTENTION_CODES = torch.ops.rows.int_attention_codes.default
UPSAMPLE = torch.ops.rows.upsample.default
UPSAMPLED_CODES = torch.ops.rows.upsampled_codes.default
PAD = torch.ops.rows.pad.default
