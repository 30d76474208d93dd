"""How images are drawn, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Spacing = Literal["quadratic", "uniform"]


class SamplerConfig(BaseModel):
    """DDIM: how many steps, at which times, with how much fresh noise.

    Attributes:
        steps: network calls a trajectory.
        spacing: a key of `mezzotint.sampling.schedulers.SPACINGS`.
        eta: 0 is deterministic DDIM, 1 adds as much noise as DDPM.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(100, ge=1, description="network calls a trajectory")
    spacing: Spacing = Field("quadratic", description="where the time steps lie")
    eta: float = Field(0.0, ge=0, le=1, description="share of DDPM's step noise")
