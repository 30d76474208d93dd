"""PLMS (Liu et al. 2022, arXiv 2202.09778, equations 9, 12 and 13), as CompVis' PLMSSampler computes it.

A step is one of DDIM with eta = 0 and, for eps, a linear multistep estimate of the last network outputs e_i (newest
first: e, e', ...):

    step 0   (e + e(x~, t_1)) / 2                  x~ = x after a DDIM step with e: the network is called twice      (1)
    step 1   (3 e - e') / 2                                                                                          (2)
    step 2   (23 e - 16 e' + 5 e'') / 12                                                                             (3)
    then     (55 e - 59 e' + 37 e'' - 9 e''') / 24                                                                  (4)

The output at x~ is used once and not remembered. diffusers' PNDMScheduler(skip_prk_steps=True) says the same with a
repeated time; here a step is a step, so that step i of PLMS is at the same time as step i of DDIM. The paper's
Runge-Kutta start (four calls for each of three steps) is not what CompVis does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mezzotint.sampling.ddim import DDIM, Advance

PLMS_WEIGHTS = {  # by the number of outputs before this one: weights of the output, the one before, ...
    1: (3 / 2, -1 / 2),
    2: (23 / 12, -16 / 12, 5 / 12),
    3: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
PLMS_MEMORY = 3


class PLMS(DDIM):
    """Equations (1) to (4) of the module's docstring on the times of `DDIM`."""

    def advance(
        self,
        predict: Callable[[Tensor, int], Tensor],
        step: int,
        x_t: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"] | None,
        past: list[Tensor],
    ) -> Advance:
        """As `DDIM.advance`; step 0 calls `predict` twice. Take the steps in order, with one `past`."""
        needed = min(step, PLMS_MEMORY)
        if len(past) != needed:
            raise ValueError(f"step {step} of PLMS needs {needed} outputs of the steps before, got {len(past)}")
        eps = predict(x_t, self._times[step])
        if step == 0:
            ahead = predict(self.move(eps, step, x_t), self._times[min(1, len(self._times) - 1)])
            slope = (eps + ahead) / 2
        else:
            weights = PLMS_WEIGHTS[len(past)]
            slope = sum((w * e for w, e in zip(weights[1:], reversed(past), strict=True)), weights[0] * eps)
        past[:] = [*past, eps][-PLMS_MEMORY:]
        return Advance(eps, self.move(slope, step, x_t))

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: diffusers' own pipelines know PLMS as PNDMScheduler(skip_prk_steps=True)."""
        raise NotImplementedError("PLMS calls the network itself, see advance; diffusers has PNDMScheduler for its own")
