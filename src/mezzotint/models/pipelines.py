"""Pipelines of the families that diffusers has none for.

    family                              pipeline                                                    of
    unconditional, VQ first stage       LDMPipeline(vqvae, unet, scheduler)                         diffusers
    unconditional, KL first stage       LatentKLPipeline(vae, unet, scheduler)                      here
    class-conditional, VQ first stage   ClassConditionalPipeline(vqvae, unet, class_embedder, ...)  here
    text-conditional, KL first stage    StableDiffusionPipeline                                     diffusers

    name     dtype    shape           meaning
    latents  float32  [B, C, h, w]    z times `scaling_factor` of the first stage; what the network denoises
    z        float32  [B, C, h, w]    what the first stage decodes; VQ looks its nearest codes up first
    images   float32  [B, 3, H, W]    in [-1, 1]

The calls below draw pictures as those of diffusers do. Quantization, recording and comparison use `mezzotint.sampling`,
where a sample's seed fixes all of its noise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.errors import ConfigError, ModelError


class ClassEmbedder(ModelMixin, ConfigMixin):
    """One learned vector for each class; the last row stands for no class (CompVis: 1001 rows, label 1000).

    Args:
        num_embeddings: classes and the unconditional label.
        embed_dim: width of a vector: `cross_attention_dim` of the network.
    """

    @register_to_config
    def __init__(self, num_embeddings: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embed_dim)

    @property
    def unconditional_label(self) -> int:
        """The label that stands for no class."""
        return self.embedding.num_embeddings - 1

    def forward(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b 1 d"]:
        """The vectors of `labels` (int64), as a context of one token each."""
        return self.embedding(labels)[:, None]


class _LatentPipeline(DiffusionPipeline):
    """What the two pipelines below share: the loop over the scheduler's times, and decoding."""

    def _draw(
        self,
        first_stage: Any,
        predict: Callable[[Tensor, Tensor], Tensor],
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        eta: float,
        num_inference_steps: int,
        output_type: str,
        return_dict: bool,
    ) -> ImagePipelineOutput | tuple[Any]:
        if first_stage is None:
            raise ModelError(f"{type(self).__name__}: has no first stage, so latents cannot be decoded to pictures")
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        shape = (batch_size, channels, size, size)
        latents = randn_tensor(shape, generator=generator, device=self.unet.device, dtype=self.unet.dtype)
        latents = latents * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps)
        options = {"eta": eta, "generator": generator}
        known = inspect.signature(self.scheduler.step).parameters
        options = {name: value for name, value in options.items() if name in known}
        for t in self.progress_bar(self.scheduler.timesteps):
            eps = predict(self.scheduler.scale_model_input(latents, t), t)
            latents = self.scheduler.step(eps, t, latents, **options).prev_sample
        images = first_stage.decode(latents / first_stage.config.scaling_factor).sample
        images = (images / 2 + 0.5).clamp(0, 1).float().cpu().permute(0, 2, 3, 1).numpy()
        pictures = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)


class LatentKLPipeline(_LatentPipeline):
    """Unconditional latent diffusion over a KL autoencoder (LSUN-Church: KL-f8).

    Args:
        vae: AutoencoderKL, or None where a checkpoint holds none.
        unet: UNet2DModel or a subclass, on latents.
        scheduler: DDIMScheduler or another of diffusers.
    """

    def __init__(self, vae: AutoencoderKL | None, unet: UNet2DModel, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws `batch_size` pictures: PIL images, or float32 [B, H, W, 3] in [0, 1] for output_type "np"."""

        def predict(latents: Tensor, t: Tensor) -> Tensor:
            return self.unet(latents, t).sample

        return self._draw(self.vae, predict, batch_size, generator, eta, num_inference_steps, output_type, return_dict)


class ClassConditionalPipeline(_LatentPipeline):
    """Class-conditional latent diffusion with classifier-free guidance (ImageNet: `cin256-v2`).

    Args:
        vqvae: VQModel, or None where a checkpoint holds none.
        unet: UNet2DConditionModel on latents; the class vector is its context of one token.
        class_embedder: ClassEmbedder, or None where a checkpoint holds none.
        scheduler: DDIMScheduler or another of diffusers.
    """

    def __init__(
        self,
        vqvae: VQModel | None,
        unet: UNet2DConditionModel,
        class_embedder: ClassEmbedder | None,
        scheduler: DDIMScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(vqvae=vqvae, unet=unet, class_embedder=class_embedder, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int],
        *,
        guidance_scale: float = 3.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 20,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws one picture a label: PIL images, or float32 [B, H, W, 3] in [0, 1] for output_type "np".

        Args:
            guidance_scale: s in eps = eps_u + s (eps_c - eps_u); 1 is no guidance and half the work.

        Raises:
            ConfigError: a label that the embedder does not have.
            ModelError: there is no class embedder, or no first stage.
        """
        if self.class_embedder is None:
            raise ModelError(f"{type(self).__name__}: has no class embedder, so labels cannot be encoded")
        labels = self._labels(class_labels)
        context = self.class_embedder(labels)
        nothing = self.class_embedder(torch.full_like(labels, self.class_embedder.unconditional_label))

        def predict(latents: Tensor, t: Tensor) -> Tensor:
            if guidance_scale == 1:
                return self.unet(latents, t, context).sample
            both = self.unet(torch.cat([latents, latents]), t, torch.cat([nothing, context])).sample
            unconditional, conditional = both.chunk(2)
            return unconditional + guidance_scale * (conditional - unconditional)

        return self._draw(
            self.vqvae, predict, len(labels), generator, eta, num_inference_steps, output_type, return_dict
        )

    def _labels(self, labels: int | Sequence[int]) -> Int[Tensor, " b"]:
        """`labels` as int64 where the embedder is."""
        rows = torch.atleast_1d(torch.as_tensor(labels, dtype=torch.int64))
        last = self.class_embedder.unconditional_label
        if len(rows) == 0 or rows.min() < 0 or rows.max() > last:
            raise ConfigError(f"class_labels: expected whole numbers from 0 to {last}, got {labels}")
        return rows.to(self.class_embedder.device)


# Classes of this module that a model folder may name: model_index.json gives them as [__name__, class].
OWN_PIPELINES: dict[str, type[DiffusionPipeline]] = {
    kind.__name__: kind for kind in (LatentKLPipeline, ClassConditionalPipeline)
}
OWN_PARTS: dict[str, type[ModelMixin]] = {ClassEmbedder.__name__: ClassEmbedder}
