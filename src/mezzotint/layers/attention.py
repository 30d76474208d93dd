"""The two products of an attention layer, q k^T and softmax(.) v, as modules that can be quantized.

diffusers keeps the arithmetic of its `Attention` in an exchangeable processor; ours is a module with two children, so
the products are layers like any other: they have a name, a spec, and a simulated and an integer form. Softmax itself
stays in float. Quantizing q and k before or after the factor d**-0.5 is the same, since a grid scales with its
tensor. In cross-attention k and v come from the context; it is quantized as what it is, the input of `to_k` and `to_v`.

The matrix of scores is there in full, unlike in fused attention kernels: 537 MB a row for the 8 heads and 4,096 tokens
of Stable Diffusion's first level. Without gradients it is made in slices of heads, so that its memory does not grow
with the batch.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

SLICE_BYTES = 1 << 30  # of the scores that are made at once


def has_plain_products(attention: Attention) -> bool:
    """Whether `attention` is softmax(q k^T) v of three projections and nothing else.

    Normed queries, a second context or fewer heads of k than of q are not; none of the models we know has them.
    """
    extras = (attention.norm_q, attention.norm_k, attention.added_kv_proj_dim)
    whole = None not in (attention.to_k, attention.to_v, attention.to_out)
    return whole and all(extra is None for extra in extras) and attention.inner_kv_dim == attention.inner_dim


class ProjectedAttention(nn.Module):
    """A processor with what stands around the two products: norms, projections, the residual. A subclass mixes."""

    def mix(self, attn: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k^T s + mask) v of all heads, [B, N, C].

        Args:
            q: [B, N, C], the heads side by side; k and v [B, M, C] likewise.
            mask: what the layer was called with.
        """
        raise NotImplementedError

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """As `forward`; spelled out because diffusers reads a processor's arguments from this signature."""
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Output of the attention layer in the shape of `hidden_states` ([B, C, H, W] or [B, N, C])."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        picture = hidden_states.shape if hidden_states.dim() == 4 else None
        if picture is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # [B, H W, C]
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(encoder_hidden_states)
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        hidden_states = self.mix(attn, q, k, v, attention_mask)

        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if picture is not None:
            hidden_states = hidden_states.transpose(1, 2).reshape(picture)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor


class QuantizedAttnProcessor(ProjectedAttention):
    """Attention whose products are the child modules `qk` and `pv`.

    Args:
        qk: product of q [B h, N, d] and k^T [B h, d, M].
        pv: product of probabilities [B h, N, M] and v [B h, M, d].
    """

    def __init__(self, qk: nn.Module, pv: nn.Module) -> None:
        super().__init__()
        self.qk = qk
        self.pv = pv

    def mix(self, attn: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, k.shape[1], k.shape[0])
        q, k, v = attn.head_to_batch_dim(q), attn.head_to_batch_dim(k), attn.head_to_batch_dim(v)
        parts = [
            self._attend(attn, q[heads], k[heads], v[heads], None if mask is None else mask[heads])
            for heads in _slices(q, k)
        ]
        return attn.batch_to_head_dim(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _attend(self, attn: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k^T s + mask) v of some heads: q [H, N, d], k and v [H, M, d], mask [H, 1 or N, M]."""
        scores = self.qk(q, k.transpose(-1, -2)) * attn.scale  # [H, N, M]
        if mask is not None:
            scores = scores + mask
        if attn.upcast_softmax:
            scores = scores.float()
        return self.pv(scores.softmax(dim=-1).to(v.dtype), v)


def _slices(q: Tensor, k: Tensor) -> list[slice]:
    """Runs of heads whose scores take up to SLICE_BYTES; all heads at once where gradients are wanted."""
    heads = q.shape[0]
    size = SLICE_BYTES // (q.shape[1] * k.shape[1] * q.element_size())
    if torch.is_grad_enabled() or size >= heads:
        return [slice(0, heads)]
    size = max(size, 1)
    return [slice(start, min(start + size, heads)) for start in range(0, heads, size)]
