"""`mezzotint bench-quality`: the table of a paper, resumed where it stopped, and the report about it."""

from __future__ import annotations

import json as json_format
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli import inputs, options
from mezzotint.cli.output import guarded, progress_bars, show, stderr
from mezzotint.cli.quality_words import summary, tables_and_verdict, without_effect_line
from mezzotint.errors import ConfigError
from mezzotint.progress import NullProgress

if TYPE_CHECKING:
    from mezzotint.benchmark.plan import Cell
    from mezzotint.benchmark.row import Row

CELLS = "Cells"


@guarded
def bench_quality(
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="The float model. " + options.MODEL_HELP)
    ] = options.DEFAULT_MODEL,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the table; an unfinished one goes on.")
    ] = Path("quality"),
    recipes: Annotated[
        str, typer.Option(metavar="NAMES", help="Recipes, with commas between them.", rich_help_panel=CELLS)
    ] = "nearest,eda-dm",
    bits: Annotated[
        str,
        typer.Option(
            "--bits", metavar="SETTINGS", help="Bit settings, with commas between them.", rich_help_panel=CELLS
        ),
    ] = "w8a8,w4a8",
    seeds: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="Seeds of the calibration: 1,2,3 or 1..3. The images always come from the seeds 0, 1, 2, ...",
            rich_help_panel=CELLS,
        ),
    ] = "1234",
    differences: Annotated[
        bool,
        typer.Option("--differences", help="Also eda-dm with each fault of its release alone.", rich_help_panel=CELLS),
    ] = False,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Also eda-dm with each part changed or left out.", rich_help_panel=CELLS)
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PART.OPTION=VALUE",
            help="Any option of the recipes, such as reconstruction.layer_weight=0; repeat it for more. "
            "One of a part that a recipe lacks leaves that recipe as it is.",
            rich_help_panel=CELLS,
        ),
    ] = None,
    variant: Annotated[
        str, typer.Option(help="What rows with these options are called in the table.", rich_help_panel=CELLS)
    ] = "",
    samples: Annotated[int, typer.Option(help="Images of every cell.", min=2, rich_help_panel=options.DRAWING)] = 2048,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Distribution scores, as [b]mezzotint evaluate[/b] has them: fid,sfid,is,kid,pr,fd-zoo,...",
            show_default="fd-zoo of models that ship its statistics",
            rich_help_panel=options.DRAWING,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="What they compare with: a folder of pictures, an .npz, a zoo model (its training images).",
            show_default="the model's own training images",
            rich_help_panel=options.DRAWING,
        ),
    ] = None,
    arithmetic: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="Of the network that draws a cell's images: [b]simulated[/b], floats on the values of the grids, or "
            "[b]integer[/b], the same on int8 codes, much faster on a GPU, or [b]deployed[/b], the network as "
            "mezzotint.optimize makes it for the device (on a GPU bf16 in attention and between products). Cells of "
            "all can share DIR.",
            rich_help_panel=options.DRAWING,
        ),
    ] = "simulated",
    prompts: options.Prompts = None,
    labels: options.Labels = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    preset: options.Preset = "default",
    calib_size: options.CalibSize = None,
    iters: options.Iters = None,
    batch_size: options.BatchSize = 256,
    forward_batch: Annotated[
        int | None,
        typer.Option(
            help="Rows in a forward pass of the calibration.",
            min=1,
            show_default="the recipe's",
            rich_help_panel=options.RUNNING,
        ),
    ] = None,
    cache_gb: options.CacheGb = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Seconds: no cell begins that would take longer than what is left of them, as cells like it took; the "
            "first of its kind always begins.",
            min=0,
            show_default="no limit",
            rich_help_panel=options.RUNNING,
        ),
    ] = None,
    render_only: Annotated[
        bool,
        typer.Option("--render", help="Run nothing: write table and report anew.", rich_help_panel=options.RUNNING),
    ] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Run nothing: add the cells of another table, such as another machine's; repeat it for more. Of a "
            "cell in several, the last named counts.",
            rich_help_panel=options.RUNNING,
        ),
    ] = None,
    device: options.Device = "auto",
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Measure recipes, bit settings and seeds side by side; write a table and a report.

    Each cell calibrates a recipe, draws the float model's seeds with it and
    compares. DIR gets rows.jsonl (a line a cell, with everything that made it),
    table.md, table.tex and report.html. The same command goes on where a
    killed one was; finished cells are not run again. Each cell says what
    its integers take in bytes and bit operations; for their time and memory
    see [b]mezzotint bench[/b].

    [b]Examples[/b]

    mezzotint bench-quality -m ddim-emoji --recipes nearest,eda-dm --bits w8a8,w4a8 --samples 5000 -o table

    mezzotint bench-quality --bits w4a8 --seeds 1..3 --differences --ablations -o table

    mezzotint bench-quality --merge machine-1 --merge machine-2 -o table
    """
    from mezzotint.benchmark.merging import merge as merge_tables
    from mezzotint.benchmark.plan import Plan, list_cells, parse_arithmetic, without_effect
    from mezzotint.benchmark.render import render
    from mezzotint.benchmark.rows import RowFile
    from mezzotint.benchmark.verdict import verdict
    from mezzotint.models.families import family_of

    changes = {
        "iters": iters,
        "calib_size": calib_size,
        "steps": steps,
        "guidance_scale": guidance,
        "forward_batch": forward_batch,
        "cache_gb": cache_gb,
    }
    plan = Plan(
        model=Path(model).name,
        recipes=_words(recipes, "--recipes"),
        bits=_words(bits, "--bits"),
        seeds=tuple(inputs.parse_seeds(seeds)),
        samples=samples,
        preset=preset,
        changes=changes,
        settings=_settings(set_ or []),
        variant=variant,
        differences=differences,
        ablations=ablations,
        arithmetic=parse_arithmetic(arithmetic),
    )
    left: list[Cell] = []
    if merge:
        merge_tables(merge, out)
    elif not render_only:
        place, told = inputs.find_device(device), inputs.read_told(None, prompts, labels)
        with progress_bars() as progress:
            pipeline = inputs.load_float(model, "cpu", progress)
            cells, lacking = list_cells(plan, family_of(pipeline)), without_effect(plan, family_of(pipeline))
            if lacking:
                stderr().print(without_effect_line(lacking), markup=False, highlight=False, soft_wrap=True)
            scores = None if metrics is None else _words(metrics, "--metrics")
            scoring = {"metrics": scores, "reference": reference}
            drawing: dict[str, Any] = {"inputs": inputs.check_told(pipeline, told), "batch_size": batch_size}
            if prompts or labels:
                drawing["source"] = prompts.name if prompts else f"--labels {labels}"
            left = _run(pipeline, cells, out, progress, device=place, budget=budget, **drawing, **scoring)
    files = render(out)
    rows, missing = RowFile(out).read(), RowFile(out).missing()
    found = verdict(rows)
    result = {
        "folder": str(out),
        "files": [str(file) for file in files],
        "verdict": [found.headline, *found.sentences],
        "rows": [row.key | {"sqnr_db": row.sqnr_db, "psnr_mean_db": row.psnr_mean_db, "fd": row.fd} for row in rows],
        "left": [cell.key for cell in left],
        "missing": missing,
    }
    show(result, tables_and_verdict(rows, result), json)


def _run(pipeline: Any, cells: list[Cell], out: Path, progress: Any, **options: Any) -> list[Cell]:
    """Runs the cells, telling stderr about each; the cells for which no time was left."""
    from mezzotint.benchmark.run import run_cells

    console = stderr()

    def tell(row: Row) -> None:
        console.print(summary(row), markup=False, highlight=False, soft_wrap=True)

    shown = progress if console.is_terminal else NullProgress()
    command = shlex.join(["mezzotint", *sys.argv[1:]])
    outcome = run_cells(pipeline, cells, out, progress=shown, on_row=tell, command=command, **options)
    if outcome.found:
        console.print(f"{len(outcome.found)} of {len(cells)} cells were in {out} already", markup=False)
    unscored = _unscored(outcome.found, options["metrics"] or ())
    if unscored:
        console.print(f"{unscored} of these have not all of --metrics; their images are gone, run them elsewhere anew")
    for cell in outcome.left:
        console.print(f"not run, no time left: {cell.label}", markup=False, highlight=False)
    return outcome.left


def _unscored(rows: list[Row], metrics: tuple[str, ...]) -> int:
    """How many finished rows lack a score that is asked for."""
    from mezzotint.evaluation.metrics import METRICS

    wanted = {name for metric in metrics if metric in METRICS for name in METRICS[metric].names}
    return sum(not wanted <= {score["name"].removesuffix(" to float") for score in row.scores} for row in rows)


def _words(text: str, option: str) -> tuple[str, ...]:
    """The words between commas. ConfigError for a word named twice."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    twice = sorted({word for word in found if found.count(word) > 1})
    if twice:
        raise ConfigError(f"{option} {text!r}: {', '.join(twice)} named twice")
    return tuple(found)


def _settings(texts: list[str]) -> dict[str, Any]:
    """PART.OPTION=VALUE by option; VALUE is JSON, or else text. ConfigError for a word without `=`."""
    found: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--set {text!r}: write PART.OPTION=VALUE, such as reconstruction.layer_weight=0")
        try:
            found[name] = json_format.loads(value)
        except ValueError:
            found[name] = value
    return found
