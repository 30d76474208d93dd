"""`mezzotint zoo`: the models that come with the package."""

from __future__ import annotations

from typing import Any

import typer

from mezzotint.cli import options
from mezzotint.cli.output import guarded, show

zoo = typer.Typer(no_args_is_help=True, help="The models that come with the package.")


@zoo.command("list")
@guarded
def list_models(json: options.AsJson = False, debug: options.Debug = False) -> None:
    """List the models that need no download, with their licences."""
    from rich.table import Table

    from mezzotint.models import zoo as models

    found: list[dict[str, Any]] = [
        {
            "name": model.name,
            "description": model.description,
            "parameters": model.parameters,
            "licence": model.licence,
            "folder": str(model.folder),
        }
        for model in models.list_models()
    ]
    table = Table(
        "name", "parameters", "licence", "what it draws", title="Zoo", title_justify="left", title_style="bold"
    )
    for model in found:
        table.add_row(model["name"], f"{model['parameters']:,}", model["licence"] or "not stated", model["description"])
    show({"models": found}, table, json)
