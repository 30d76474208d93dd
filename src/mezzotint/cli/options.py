"""Options that mean the same in every command."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_MODEL = "ddim-emoji"
MODEL_HELP = "A zoo name (see [b]mezzotint zoo list[/b]), a folder in the diffusers layout, or a hub id ORG/NAME."
METHOD = "Method"
DRAWING = "Sampling"
RUNNING = "Run"

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Steps = Annotated[
    int | None,
    typer.Option(help="Sampler steps.", min=1, show_default="100, or what the preset says", rich_help_panel=DRAWING),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Spacing of the DDIM time steps: [b]quadratic[/b] (dense near the image) or [b]uniform[/b].",
        show_default="quadratic",
        rich_help_panel=DRAWING,
    ),
]
Eta = Annotated[
    float | None,
    typer.Option(
        help="Noise added at every step: 0 is DDIM, 1 is DDPM.", min=0.0, show_default="0", rich_help_panel=DRAWING
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
