"""Options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "ddim-emoji"
MODEL_HELP = (
    "A zoo name (see [b]mezzotint zoo list[/b]), a folder in the diffusers layout, an original checkpoint file, "
    "or a hub id ORG/NAME."
)
PRESET_HELP = (
    "Time to spend. [b]fast[/b]: minutes on a CPU. [b]default[/b]: minutes on a GPU. "
    "[b]paper[/b]: as many samples and iterations as the paper."
)
METHOD = "Method"
DRAWING = "Sampling"
RUNNING = "Run"
USUAL = "what the model's family is drawn with, or what the artifact was calibrated with"
BUILT_IN = "those that come with the model, or built-in ones"

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Preset = Annotated[str, typer.Option(help=PRESET_HELP, rich_help_panel=METHOD)]
CalibSize = Annotated[
    int | None,
    typer.Option(
        help="Calibration samples: trajectories, each gives one.",
        min=1,
        show_default="512, or what the preset says",
        rich_help_panel=METHOD,
    ),
]
Iters = Annotated[
    int | None,
    typer.Option(
        help="Optimiser steps for every unit of the network, in recipes that learn.",
        min=1,
        show_default="1000, or what the preset says",
        rich_help_panel=METHOD,
    ),
]
CacheGb = Annotated[
    float | None,
    typer.Option(
        help="Memory for the inputs and targets of reconstruction, in GB; beyond it they go to temporary files.",
        show_default="8",
        rich_help_panel=RUNNING,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Sampler steps.", min=1, show_default=USUAL, rich_help_panel=DRAWING),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Sampler: [b]ddim[/b], or [b]plms[/b] (linear multistep, as Stable Diffusion's first scripts).",
        show_default=USUAL,
        rich_help_panel=DRAWING,
    ),
]
Spacing = Annotated[
    str | None,
    typer.Option(
        help="Spacing of the time steps: [b]quadratic[/b] (dense near the image) or [b]uniform[/b].",
        show_default=USUAL,
        rich_help_panel=DRAWING,
    ),
]
Eta = Annotated[
    float | None,
    typer.Option(
        help="Noise added at every step: 0 is DDIM, 1 is DDPM.",
        min=0.0,
        max=1.0,
        show_default=USUAL,
        rich_help_panel=DRAWING,
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance of a conditional model; 1 is without.",
        min=0.0,
        show_default=USUAL,
        rich_help_panel=DRAWING,
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="What a text model draws; repeat it for more. Image n shows prompt n, begun again where there are fewer.",
        show_default=BUILT_IN,
        rich_help_panel=DRAWING,
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The same from a file: one prompt a line, a JSON list, or COCO captions.",
        show_default=BUILT_IN,
        rich_help_panel=DRAWING,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBERS",
        help="What a class-conditional model draws: 3,7,12 or 0..9. Image n shows class n of these, likewise.",
        show_default=BUILT_IN,
        rich_help_panel=DRAWING,
    ),
]
BatchSize = Annotated[
    int, typer.Option(help="Images at a time. Changes memory, not results.", min=1, rich_help_panel=RUNNING)
]
Device = Annotated[
    str,
    typer.Option(help="[b]auto[/b] (CUDA if there is one), cpu, cuda, cuda:1, ...", rich_help_panel=RUNNING),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run left there.", rich_help_panel=RUNNING)
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print only JSON on stdout; progress goes to stderr.", rich_help_panel=RUNNING),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.", rich_help_panel=RUNNING)]
