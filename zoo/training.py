"""What the training programs of the zoo share: the data, a loop with a time limit, averaged weights, checkpoints.

A program gives a module and a function `losses_of(run)` that draws a batch with `run.generator` and returns scalars;
the one called "loss" is differentiated, the others are logged. Everything else is here:

    rate(n, p) = lr min(1, (n + 1) / warmup) min(1, (1 - p) / (1 - decay_from))                                  (1)
    average   <- average + (1 - d) (weights - average),      d = min(ema, (1 + n) / (10 + n))                    (2)

    n    steps made
    p    progress, 0 .. 1: the share of the *time* used, so that a run of `--minutes` always ends fully decayed;
         the share of the steps where `--steps` is given (repeatable, for tests)

On a GPU the whole step (batch, forward, backward, clip, AdamW, average) is captured into a CUDA graph and replayed:
these networks are so small that launching their kernels one by one takes longer than running them, and `torch.compile`,
the alternative, spends over a minute of a run that lasts a few. Rate, decay and progress are read from device memory,
random numbers come from a generator that is registered with the graph.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

HERE = Path(__file__).parent

# Small networks draw these well. With signs, flags, tools and vehicles added, a first run of the pixel model with the
# same number of steps drew many unreadable glyphs on coloured squares.
GROUPS = ("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink")

LOG_SECONDS = 10
SAVE_SECONDS = 60
WARM_UP_STEPS = 3  # before a graph is captured: allocations and cuDNN's choice of algorithms


@dataclass(frozen=True)
class Settings:
    """What decides the trained weights, beside the data and the machine's speed."""

    minutes: float  # wall clock from the start, capturing or compiling included
    batch: int = 128
    lr: float = 4e-4  # AdamW, betas (0.9, 0.99)
    decay_from: float = 0.6  # progress after which lr falls linearly to zero
    warmup: int = 300  # steps
    ema: float = 0.9995  # per step; less in the first steps, equation (2)
    clip: float = 1.0  # gradient norm
    seed: int = 0
    groups: tuple[str, ...] = GROUPS  # of emoji, as in the data's table
    weight_decay: float = 0.0
    steps: int | None = None  # if given, these and not the minutes end the run


def pick_device() -> torch.device:
    """The GPU if there is one."""
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_table(path: Path, groups: Iterable[str]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(uint8 [N, H, W, 3], N rows) of the images of `groups` in the npz of zoo/render.py."""
    table = json.loads(path.with_suffix(".json").read_text())
    wanted = [i for i, row in enumerate(table) if row["group"] in groups]
    return np.load(path)["images"][wanted], [table[i] for i in wanted]


def load_images(path: Path, device: torch.device, groups: Iterable[str]) -> tuple[dict[str, Tensor], Tensor]:
    """({"train", "held_out"}: uint8 [N, 3, H, W], bool [N] "may be mirrored" of the training images) of `groups`."""
    pixels, table = load_table(path, groups)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    held_out = torch.tensor([row["held_out"] for row in table])
    flippable = torch.tensor([row["flippable"] for row in table])
    splits = {"train": images[~held_out].to(device), "held_out": images[held_out].to(device)}
    return splits, flippable[~held_out].to(device)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float [N, 3, H, W] in -1..1 -> uint8 [N, H, W, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def draw_batch(images: Tensor, flippable: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """float32 [count, 3, H, W]: images drawn with replacement, mirrored half the time where that is allowed."""
    device = images.device
    index = torch.randint(len(images), (count,), generator=generator, device=device)
    mirror = (torch.rand(count, generator=generator, device=device) < 0.5) & flippable[index]
    x = to_float(images[index])
    return torch.where(mirror[:, None, None, None], x.flip(-1), x)


def draw_timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """int64 [count]: one uniform draw from each of `count` equal bins of [0, steps)."""
    bins = torch.arange(count, device=generator.device)
    u = torch.rand(count, generator=generator, device=generator.device)
    return ((bins + u) * steps / count).long().clamp_(max=steps - 1)


def learning_rate(settings: Settings, step: int, progress: float) -> float:
    """Equation (1)."""
    warm = min(1.0, (step + 1) / settings.warmup)
    return settings.lr * warm * min(1.0, (1 - progress) / (1 - settings.decay_from))


def ema_decay(settings: Settings, step: int) -> float:
    """d of equation (2)."""
    return min(settings.ema, (1 + step) / (10 + step))


def write_grid(images: np.ndarray, columns: int, path: Path, *, enlarge: int = 1) -> None:
    """Write a PNG of uint8 [N, H, W, 3] in rows of `columns`; N is a multiple of that."""
    rows, (side, width) = len(images) // columns, images.shape[1:3]
    tiles = images.reshape(rows, columns, side, width, 3).transpose(0, 2, 1, 3, 4)
    grid = Image.fromarray(tiles.reshape(rows * side, columns * width, 3))
    grid.resize((grid.width * enlarge, grid.height * enlarge), Image.Resampling.NEAREST).save(path)


class Run:
    """Everything that changes during training, and its checkpoint.

    `average` follows every floating-point entry of the module's state, buffers included; `rate`, `lag` (1 - d of (2))
    and `progress` are scalars on the device, set before each step.
    """

    def __init__(self, module: nn.Module, settings: Settings, device: torch.device) -> None:
        self.module = module.to(device, memory_format=torch.channels_last)
        self.settings = settings
        state = module.state_dict()
        self.average = {key: value.detach().clone() for key, value in state.items() if value.is_floating_point()}
        self.lag, self.progress = torch.zeros((), device=device), torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad],
            lr=torch.zeros((), device=device),
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.step, self.seconds, self.log = 0, 0.0, []

    @property
    def rate(self) -> Tensor:
        """The learning rate that the optimizer reads."""
        return self.optimizer.param_groups[0]["lr"]

    def share(self) -> float:
        """Progress, 0 .. 1."""
        if self.settings.steps is not None:
            return min(1.0, self.step / self.settings.steps)
        return min(1.0, self.seconds / (self.settings.minutes * 60))

    def averaged(self, prefix: str = "") -> dict[str, Tensor]:
        """The averaged state of the submodule whose keys begin with `prefix`, which is taken off."""
        state = {**self.module.state_dict(), **self.average}
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "module": self.module.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "progress": {"step": self.step, "seconds": self.seconds, "log": self.log},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, map_location=self.generator.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds, self.log = (state["progress"][key] for key in ("step", "seconds", "log"))


LossesOf = Callable[[Run], dict[str, Tensor]]


def make_step(run: Run, losses_of: LossesOf, sums: dict[str, Tensor]) -> None:
    """One step, all on the device; adds the losses to `sums`, where a loss begins at the first step that has it."""
    losses = losses_of(run)
    losses["loss"].backward()
    norm = nn.utils.clip_grad_norm_(run.module.parameters(), run.settings.clip)
    run.optimizer.step()
    with torch.no_grad():
        average, state = list(run.average.values()), run.module.state_dict()
        change = torch._foreach_sub([state[key] for key in run.average], average)
        torch._foreach_mul_(change, run.lag)
        torch._foreach_add_(average, change)
        for key, value in {**losses, "gradient": norm}.items():
            sums.setdefault(key, torch.zeros((), device=run.lag.device)).add_(value.detach())


def capture(run: Run, advance: Callable[[], None]) -> Callable[[], None]:
    """`advance` as a CUDA graph. What it allocates is kept by the graph; gradients live there too."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(run.generator)
    run.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        advance()
    return graph.replay


def train(run: Run, losses_of: LossesOf, *, graph: bool) -> Iterator[dict[str, float]]:
    """Train until the time is used; about every 10 s appends {step, seconds, losses, lr} to the log and yields it."""
    settings, cuda = run.settings, run.generator.device.type == "cuda"
    sums: dict[str, Tensor] = {}
    eager = replay = partial(make_step, run, losses_of, sums)
    side = torch.cuda.Stream() if graph else None
    began, logged_at, logged_step, first = time.monotonic() - run.seconds, run.seconds, run.step, run.step
    while (progress := run.share()) < 1:
        lr = learning_rate(settings, run.step, progress)
        for scalar, value in ((run.rate, lr), (run.lag, 1 - ema_decay(settings, run.step)), (run.progress, progress)):
            scalar.fill_(value)
        if graph and run.step == first + WARM_UP_STEPS:
            replay = capture(run, eager)
        if replay is not eager:
            replay()
        else:
            run.optimizer.zero_grad(set_to_none=True)
            step_on(side, eager)
        run.step += 1
        if run.step % 20 == 0 and cuda:
            torch.cuda.synchronize()  # so that the clock below counts work done, not work queued
        run.seconds = time.monotonic() - began
        if run.seconds - logged_at > LOG_SECONDS or run.share() >= 1:
            done = run.step - logged_step
            means = {key: value.item() / done for key, value in sums.items()}
            run.log.append({"step": run.step, "seconds": round(run.seconds, 1), **means, "lr": lr})
            yield {**run.log[-1], "images_per_s": settings.batch * done / (run.seconds - logged_at)}
            for value in sums.values():
                value.zero_()
            logged_at, logged_step = run.seconds, run.step


def step_on(side: "torch.cuda.Stream | None", advance: Callable[[], None]) -> None:
    """Run `advance` on the stream `side`, as steps before a capture must be; None is the current stream."""
    if side is None:
        advance()
        return
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        advance()
    torch.cuda.current_stream().wait_stream(side)


def fit(run: Run, losses_of: LossesOf, *, checkpoint: Path, export: Callable[[], None], graph: bool = True) -> None:
    """Train to the end with a progress bar; the checkpoint and the exported model are written once a minute.

    A checkpoint that exists is resumed. Without a GPU there is no graph.
    """
    if checkpoint.exists():
        run.load(checkpoint)
    total = run.settings.steps or round(run.settings.minutes * 60)
    position = (lambda: run.step) if run.settings.steps else (lambda: round(run.seconds))
    saved_at = run.seconds
    with tqdm(total=total, initial=position(), unit="step" if run.settings.steps else "s", desc="train") as bar:
        for row in train(run, losses_of, graph=graph and run.generator.device.type == "cuda"):
            bar.set_postfix({key: f"{value:.4g}" for key, value in row.items() if key != "seconds"}, refresh=False)
            bar.update(position() - bar.n)
            if run.seconds - saved_at > SAVE_SECONDS:
                run.save(checkpoint)
                export()
                saved_at = run.seconds
    run.save(checkpoint)
    export()


def describe_device(device: torch.device) -> str:
    """Name for a report."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
