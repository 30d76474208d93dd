"""How images are drawn, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["ddim", "plms"]
Spacing = Literal["quadratic", "uniform"]


class SamplerConfig(BaseModel):
    """Which sampler, how many steps at which times, how much fresh noise, how much guidance.

    Attributes:
        kind: a key of `mezzotint.sampling.schedulers.SCHEDULERS`.
        steps: steps a trajectory; PLMS calls the network once more than that.
        spacing: a key of `mezzotint.sampling.spacings.SPACINGS`; PLMS is for uniform times only.
        eta: 0 is deterministic DDIM, 1 adds as much noise as DDPM; PLMS has none.
        guidance_scale: s of classifier-free guidance, eps_u + s (eps_c - eps_u); 1 is without. Unconditional models
            take no notice of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field("ddim", description="ddim, or plms (linear multistep, uniform times, eta 0)")
    steps: int = Field(100, ge=1, description="steps a trajectory")
    spacing: Spacing = Field("quadratic", description="where the time steps lie")
    eta: float = Field(0.0, ge=0, le=1, description="share of DDPM's step noise")
    guidance_scale: float = Field(1.0, ge=0, description="classifier-free guidance; 1 is without")

    @model_validator(mode="after")
    def _plms_is_uniform_and_deterministic(self) -> SamplerConfig:
        if self.kind == "plms" and self.spacing != "uniform":
            raise ValueError(f"plms needs evenly spaced times: choose spacing uniform, not {self.spacing}")
        if self.kind == "plms" and self.eta:
            raise ValueError(f"plms adds no noise: choose eta 0, not {self.eta:g}")
        return self
