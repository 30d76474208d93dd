"""Where a float model comes from: name, hash, licence, credits, for the manifest of what is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from diffusers import DiffusionPipeline

from mezzotint.manifest import BaseInfo, weights_sha256
from mezzotint.models.denoiser import network_of

CARD = "README.md"
CREDITS = "LICENSE-ARTWORK.md"


def base_info(pipeline: DiffusionPipeline) -> BaseInfo:
    """Name, weights' SHA-256, licence and credits of a float pipeline, the last two from the model card beside it."""
    source = str(pipeline.config.get("_name_or_path") or "")
    folder = Path(source)
    card = folder / CARD
    front = _front_matter(card.read_text(encoding="utf-8")) if source and card.is_file() else {}
    credits = folder / CREDITS
    return BaseInfo(
        name=str(front.get("name") or (folder.name if folder.is_dir() else source) or type(pipeline).__name__),
        sha256=weights_sha256(network_of(pipeline)),
        licence=str(front.get("license", "")),
        credits=credits.read_text(encoding="utf-8").strip() if source and credits.is_file() else "",
    )


def _front_matter(text: str) -> dict[str, Any]:
    """The YAML block at the top of a model card; {} if there is none."""
    if not text.startswith("---\n"):
        return {}
    head, separator, _ = text[4:].partition("\n---")
    fields = yaml.safe_load(head) if separator else {}
    return fields if isinstance(fields, dict) else {}
