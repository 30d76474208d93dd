"""The learning loop of one unit.

An iteration draws a batch of rows, mixes the unit's float and quantized inputs element by element where QDrop is on,
runs the simulated unit once with hooks on its inner layers, runs the float unit without gradients for the inner layers'
targets (caching them would not fit for large models), and steps Adam on the rounding variables and the activation
steps together; both rates fall to zero along a cosine.

On a GPU the iteration is captured once and replayed as a CUDA graph: a unit is a few hundred small kernels, and
launching them one by one takes several times longer than running them.

A `Phase` may learn the rounding or the steps alone, as Q-Diffusion does one after the other.

Differs from the released code: one quantized forward instead of two, so block and layer losses see the same QDrop
masks; `separate_layer_pass` restores the second. That code checkpoints some blocks, whose pass is then run again,
without its random state, for the gradients; `checkpointed` does the same: layer losses, which are taken from the first
pass, have no gradient, and that of the block loss is at other masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.config import ReconstructionConfig
from mezzotint.progress import Progress
from mezzotint.reconstruction.losses import lp_loss
from mezzotint.reconstruction.problem import MAIN, UnitProblem
from mezzotint.reconstruction.rounding import LearnedRounding
from mezzotint.reconstruction.steps import LearnedStep, mixed, random_mask

RELEASED_LAST = {"transformer": "attn2.to_out.0"}  # registered last there, in kinds where it is not so here
EAGER_ITERATIONS = 3  # warm-up before a CUDA graph is captured; they count as training
REPORT_EVERY = 50


@dataclass(frozen=True)
class Phase:
    """What a walk through the network learns, and p of its losses."""

    rounding: bool = True
    steps: bool = True
    norm: float = 2.0


TOGETHER = Phase()


@dataclass(frozen=True)
class Learned:
    """What learning one unit found.

    Attributes:
        soft_loss: mean block loss over all rows with soft rounding and learned steps, nothing dropped.
        undecided: fraction of the soft roundings not within 0.01 of 0 or 1 at the end.
    """

    soft_loss: float
    undecided: float


def learn_unit(
    problem: UnitProblem,
    options: ReconstructionConfig,
    *,
    seed: int,
    device: torch.device,
    forward_batch: int,
    progress: Progress,
    phase: Phase = TOGETHER,
) -> Learned:
    """Learns rounding and steps of the unit's layers and writes them, hardened, into its codes and scales."""
    trainer = _Trainer(problem, options, seed, device, phase)
    try:
        trainer.run(progress)
        trainer.stop_dropping()
        soft_loss = problem.block_loss(forward_batch)
        undecided = trainer.undecided()
        trainer.harden_()
    finally:
        trainer.detach_()
    return Learned(soft_loss, undecided)


class _Trainer:
    """Variables, static buffers and optimiser of one unit."""

    def __init__(
        self, problem: UnitProblem, options: ReconstructionConfig, seed: int, device: torch.device, phase: Phase
    ) -> None:
        self.problem, self.options, self.device, self.phase = problem, options, device, phase
        self.generator = torch.Generator(device).manual_seed(seed)
        self.picks = torch.Generator().manual_seed(seed)
        self.roundings = {name: LearnedRounding(layer) for name, layer in problem.layers.items() if phase.rounding}
        self.steps = {
            name: LearnedStep(
                grid,
                linear=options.step_parameter == "linear",
                drop=options.activation_drop,
                generator=self.generator,
            )
            for name, grid in problem.grids.items()
            if phase.steps
        }
        for name, rounding in self.roundings.items():
            problem.layers[name].rounding = rounding
        for name, step in self.steps.items():
            problem.grids[name].learner = step
        self.inner = self._inner_layers()
        self.optimizer = self._make_optimizer()
        self.beta = torch.tensor(options.beta_start, device=device)
        self.pull = torch.zeros((), device=device)
        self.loss = torch.zeros((), device=device)
        self.batch = min(options.batch_size, problem.n_rows)
        self.buffers: dict[str, dict[int | str, Tensor]] = {"quantized": {}, "float": {}}
        self.target = torch.empty(0)
        self.weight: Tensor | None = None

    def run(self, progress: Progress) -> None:
        graph: Any = None
        use_graph = self.options.cuda_graph and self.device.type == "cuda"
        for iteration in range(self.options.iters):
            self._schedule(iteration)
            self._draw()
            if graph is not None:
                graph.replay()
            else:
                self._step_eagerly(on_side_stream=use_graph)
                if use_graph and iteration + 1 == EAGER_ITERATIONS:
                    graph = self._capture()
            report = (iteration + 1) % REPORT_EVERY == 0 or iteration + 1 == self.options.iters
            if report:
                done = REPORT_EVERY if (iteration + 1) % REPORT_EVERY == 0 else (iteration + 1) % REPORT_EVERY
                progress.advance(done, unit=self.problem.unit.name, loss=float(self.loss))

    def stop_dropping(self) -> None:
        for step in self.steps.values():
            step.drop = 0.0

    def undecided(self) -> float:
        total = sum(r.alpha.numel() for r in self.roundings.values())
        return sum(r.undecided() for r in self.roundings.values()) / total if total else 0.0

    @torch.no_grad()
    def harden_(self) -> None:
        for name, rounding in self.roundings.items():
            self.problem.layers[name].weight_codes.copy_(rounding.codes())
        for name, step in self.steps.items():
            self.problem.grids[name].scale.copy_(step.scale())

    def detach_(self) -> None:
        for layer in self.problem.layers.values():
            layer.rounding = None
        for grid in self.problem.grids.values():
            grid.learner = None

    def _inner_layers(self) -> tuple[str, ...]:
        """Names, within the unit, of the layers whose losses are added."""
        unit, layers = self.problem.unit, tuple(self.problem.layers)
        if self.options.layer_weight == 0 or self._checkpointed():
            return ()
        if self.options.inner_layers == "registered":
            last = RELEASED_LAST.get(unit.kind)
            return tuple(name for name in layers if name != (last if last in layers else layers[-1]))
        return tuple(name for name in unit.inner if name in layers)

    def _checkpointed(self) -> bool:
        return self.problem.unit.kind in self.options.checkpointed

    def _make_optimizer(self) -> torch.optim.Optimizer:
        on_gpu = self.device.type == "cuda"
        groups = [
            {"params": [r.alpha for r in self.roundings.values()], "start_lr": self.options.rounding_lr},
            {"params": [s.value for s in self.steps.values()], "start_lr": self.options.step_lr},
        ]
        groups = [g for g in groups if g["params"]]
        for group in groups:
            start: Any = group["start_lr"]
            group["lr"] = torch.tensor(start, device=self.device) if on_gpu else start
        return torch.optim.Adam(groups, capturable=on_gpu)

    def _schedule(self, iteration: int) -> None:
        """Cosine of the rates to zero; beta falls linearly after the warm-up."""
        options = self.options
        done = iteration / options.iters
        for group in self.optimizer.param_groups:
            rate = group["start_lr"] * 0.5 * (1 + math.cos(math.pi * done))
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        after_warmup = max(0.0, (done - options.warmup) / (1 - options.warmup))
        self.beta.fill_(options.beta_start + (options.beta_end - options.beta_start) * after_warmup)
        self.pull.fill_(options.rounding_weight if done >= options.warmup else 0.0)

    def _draw(self) -> None:
        """Fills the static buffers with a random batch of rows."""
        problem = self.problem
        picks = torch.randperm(problem.n_rows, generator=self.picks)[: self.batch]
        first = not self.target.numel()
        for key, rows in (("quantized", problem.quantized_inputs), ("float", problem.float_inputs)):
            for place, kept in rows.items():
                if key == "float" and kept is problem.quantized_inputs.get(place):  # such as the conditions
                    self.buffers[key][place] = self.buffers["quantized"][place]
                else:
                    self.buffers[key][place] = _fill(self.buffers[key].get(place), kept.read(picks))
        self.target = _fill(None if first else self.target, problem.target.read(picks))
        if problem.weight is not None:
            self.weight = _fill(self.weight, problem.weight.read(picks))

    def _total_loss(self) -> Tensor:
        options, call, simulated = self.options, self.problem.call, self.problem.simulated
        inputs = dict(self.buffers["quantized"])
        if options.input_drop > 0:
            main = inputs[MAIN]
            swapped = random_mask(main, options.input_drop, self.generator)
            inputs[MAIN] = mixed(main, self.buffers["float"][MAIN], swapped)
        with outputs_of(simulated, self.inner) as quantized:
            output = call(simulated, inputs)
        if self._checkpointed():
            with torch.no_grad():
                shown = call(simulated, inputs)
            output = shown + (output - output.detach())  # this value, the other's gradient
        loss = self._lp(output, self.target, self.weight)
        if self.inner:
            if options.separate_layer_pass:
                with outputs_of(simulated, self.inner) as quantized:
                    call(simulated, inputs)
            with torch.no_grad(), outputs_of(self.problem.floating, self.inner) as targets:
                call(self.problem.floating, self.buffers["float"])
            layers = torch.stack([self._lp(quantized[name], targets[name]) for name in self.inner])
            loss = loss + options.layer_weight * layers.sum()
        if options.rounding_weight > 0:
            pulls = [rounding.regulariser(self.beta) for rounding in self.roundings.values()]
            loss = loss + self.pull * torch.stack(pulls).sum() if pulls else loss
        return loss

    def _lp(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        tokens_first = self.options.loss_axis == "first" and self.problem.unit.kind == "transformer"
        return lp_loss(output, target, weight, norm=self.phase.norm, axis=1 if tokens_first else None)

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._total_loss()
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def _step_eagerly(self, on_side_stream: bool) -> None:
        if not on_side_stream:
            self._step()
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()
        torch.cuda.current_stream().wait_stream(side)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        torch.cuda.empty_cache()  # a graph has memory of its own; what the iterations before it used would lie idle
        with torch.cuda.graph(graph):
            self._step()
        return graph


def _fill(buffer: Tensor | None, values: Tensor) -> Tensor:
    """`values` in the same memory as before, so that a captured graph sees them."""
    if buffer is None:
        return values.clone()
    return buffer.copy_(values)


@contextmanager
def outputs_of(module: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Inside the block, what the submodules `names` return is collected, the last call of each."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            outputs[name] = output

        return hook

    handles = [module.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
