"""The two products of an attention layer, q k^T and softmax(.) v, as modules that can be quantized.

diffusers keeps the arithmetic of its `Attention` in an exchangeable processor; ours is a module with two children, so
the products are layers like any other: they have a name, a spec, and a simulated and an integer form. Softmax itself
stays in float. Quantizing q and k before or after the factor d**-0.5 is the same, since a grid scales with its
tensor. In cross-attention k and v come from the context; it is quantized as what it is, the input of `to_k` and `to_v`.
"""

from __future__ import annotations

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


def has_plain_products(attention: Attention) -> bool:
    """Whether `attention` is softmax(q k^T) v of three projections and nothing else.

    Normed queries, a second context or fewer heads of k than of q are not; none of the models we know has them.
    """
    extras = (attention.norm_q, attention.norm_k, attention.added_kv_proj_dim)
    whole = None not in (attention.to_k, attention.to_v, attention.to_out)
    return whole and all(extra is None for extra in extras) and attention.inner_kv_dim == attention.inner_dim


class QuantizedAttnProcessor(nn.Module):
    """Attention whose products are the child modules `qk` and `pv`.

    Args:
        qk: product of q [B h, N, d] and k^T [B h, d, M].
        pv: product of probabilities [B h, N, M] and v [B h, M, d].
    """

    def __init__(self, qk: nn.Module, pv: nn.Module) -> None:
        super().__init__()
        self.qk = qk
        self.pv = pv

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
        q = attn.head_to_batch_dim(attn.to_q(hidden_states))  # [B h, N, d]
        k = attn.head_to_batch_dim(attn.to_k(context))  # [B h, M, d]
        v = attn.head_to_batch_dim(attn.to_v(context))  # [B h, M, d]

        scores = self.qk(q, k.transpose(-1, -2)) * attn.scale  # [B h, N, M]
        if attention_mask is not None:
            tokens, batch = context.shape[1], context.shape[0]
            scores = scores + attn.prepare_attention_mask(attention_mask, tokens, batch)
        if attn.upcast_softmax:
            scores = scores.float()
        probabilities = scores.softmax(dim=-1).to(v.dtype)
        hidden_states = attn.batch_to_head_dim(self.pv(probabilities, v))  # [B, N, C]

        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if picture is not None:
            hidden_states = hidden_states.transpose(1, 2).reshape(picture)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor
