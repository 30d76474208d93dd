"""Calls of a network as replays of a CUDA graph: sampling calls one network at one shape, tens to hundreds of times.

A small denoiser is a few hundred kernels of microseconds each; launching them one by one from Python takes several
times longer than running them. The first call runs as it is (lazy initialisation may allocate and copy), the second is
captured, all others replay it with x_t and t written into its inputs. The kernels are the same, so are the outputs.

A replay runs no Python: forward hooks of the network see the first two calls only. Whoever reads features through hooks
must not replay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.models.conditions import Conditions
from mezzotint.sampling.guidance import guided_eps

logger = logging.getLogger("mezzotint")

Predict = Callable[[Tensor, int], Tensor]


def eps_of(
    network: nn.Module, conditions: Conditions | None = None, guidance_scale: float = 1.0, *, replay: bool = False
) -> Predict:
    """A function (x_t, t) -> guided eps, see `guided_eps`, for x_t of one shape.

    Args:
        conditions: a row for each of x_t, on its device.
        replay: replay a CUDA graph where x_t lies on a GPU; elsewhere it makes no difference.
    """

    def predict(x_t: Tensor, t: int | Tensor) -> Tensor:
        return guided_eps(network, x_t, t, conditions, guidance_scale)

    return _Replayed(predict) if replay else predict


class _Replayed:
    """`predict` without Python in between, from its third call on."""

    def __init__(self, predict: Callable[[Tensor, int | Tensor], Tensor]) -> None:
        self._predict = predict
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, x_t: Float[Tensor, "b c h w"], t: int) -> Float[Tensor, "b c h w"]:
        self._calls += 1
        if x_t.device.type != "cuda" or self._calls == 1 or torch.is_grad_enabled():
            return self._predict(x_t, t)
        if self._calls == 2:
            self._graph = self._captured(x_t, t)
        if self._graph is None:
            return self._predict(x_t, t)
        self._x_t.copy_(x_t)
        self._t.fill_(t)
        self._graph.replay()
        return self._eps.clone()

    def _captured(self, x_t: Tensor, t: int) -> torch.cuda.CUDAGraph | None:
        """The graph, its inputs `_x_t` and `_t` and its output `_eps`; None where the network cannot be captured."""
        self._x_t, self._t = x_t.clone(), torch.full((), t, dtype=torch.int64, device=x_t.device)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(x_t.device)
        random_state = torch.cuda.get_rng_state(x_t.device)
        torch.cuda.synchronize(x_t.device)
        try:
            with torch.cuda.graph(graph):
                self._eps = self._predict(self._x_t, self._t)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            logger.warning("the network is called step by step, slower: it fits no CUDA graph (%s)", reason)
            _leave_capture(stream, random_state)
            return None
        return graph


def _leave_capture(stream: torch.cuda.Stream, random_state: Tensor) -> None:
    """What torch leaves out where a capture fails: the stream from before, and random numbers outside a capture.

    Its generator stays in the capture for good, and the next random number would be an error.
    """
    torch.cuda.set_stream(stream)
    fresh = torch.Generator(stream.device)
    fresh.set_state(random_state)
    torch.cuda.default_generators[stream.device.index].graphsafe_set_state(fresh)
