"""The commands by name, and where the program begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from mezzotint.cli.bench import bench
from mezzotint.cli.bench_quality import bench_quality
from mezzotint.cli.compare import compare
from mezzotint.cli.evaluate import evaluate
from mezzotint.cli.export import export
from mezzotint.cli.import_ import import_
from mezzotint.cli.inspect import inspect
from mezzotint.cli.output import BAD_INPUT, INTERRUPTED, fail
from mezzotint.cli.quantize import quantize
from mezzotint.cli.sample import sample
from mezzotint.cli.zoo import zoo
from mezzotint.version import __version__

HELP = """\
Post-training quantization of diffusion models with EDA-DM, down to 4-bit
weights and 8-bit activations, computed on integers.

[b]From nothing to a report[/b]

mezzotint quantize --preset fast -o emoji-w4a8

mezzotint sample emoji-w4a8 --seeds 0..15 -o images

mezzotint compare ddim-emoji emoji-w4a8 -o report.html

Every command takes --json (only JSON on stdout) and --debug (tracebacks).
Exit codes: 0 done, 1 a bug, 2 bad input, 130 interrupted.
"""

app = typer.Typer(
    name="mezzotint", help=HELP, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False
)
for command in (quantize, sample, compare, evaluate, inspect, bench, export):
    app.command()(command)
app.command(name="bench-quality")(bench_quality)
app.command(name="import")(import_)
app.add_typer(zoo, name="zoo")


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"mezzotint {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (None is the process's own) and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return app(words, prog_name="mezzotint", standalone_mode=False) or 0
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED).exit_code
    except Exception as error:
        complaint = getattr(error, "format_message", None)  # what the parser raises for words it cannot read
        if complaint is None:
            raise
        if not complaint():  # a group without a command: the help was printed
            return BAD_INPUT
        return fail(f"error: {complaint()} (try --help)", BAD_INPUT).exit_code


def main() -> None:
    """The console script."""
    sys.exit(run())
