"""The model card of an artifact, README.md: front matter that diffusers and the hub read, then text for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from diffusers import ModelMixin

from mezzotint.artifact.load import weights_name
from mezzotint.artifact.skeleton import empty_float_network
from mezzotint.manifest import DENOISER, Manifest

_TEXT = """\
# {title}

{base} quantized to **{bits}** by mezzotint {version} with the recipe `{recipe}`.
The network computes on integers; the rest of the pipeline is an ordinary diffusers pipeline.

```python
import mezzotint

pipeline = mezzotint.load("{name}")  # a folder; no float weights are needed
images = mezzotint.sample(pipeline, seeds=range(16))  # float32 [16, C, H, W] in [-1, 1]
```

or `mezzotint sample {name} --seeds 0..15`. `mezzotint inspect {name}` lists every layer.

| | float | quantized |
|---|---|---|
| network | {float_bytes:,} bytes | {bytes:,} bytes ({ratio:.2f}x smaller) |
| layers on integers | 0 | {n_layers} |
| modules in float | all | {n_float} |
{parts}
Repeat it with the config in `manifest.json`; there are also the base model's hash (`{sha256:.12}...`), the grids of
every layer, the chosen time steps and the losses of every unit.

## Licence and credits

Licence of the base model: {licence}. Quantizing changes the form of the weights, not their licence.

{credits}
"""


def write_card(manifest: Manifest, network: ModelMixin, path: Path, *, name: str) -> None:
    """Writes the card of `network` to `path`; `name` is what the artifact's folder is called."""
    float_network = empty_float_network(type(network).__name__, network.config)
    float_bytes = 4 * sum(leaf.numel() for leaf in float_network.parameters())
    size = manifest.files[weights_name(DENOISER)].bytes
    text = _TEXT.format(
        title=name,
        name=name,
        base=manifest.base.name,
        bits=manifest.bits.upper(),
        version=manifest.mezzotint_version,
        recipe=manifest.config.get("recipe", "unknown"),
        float_bytes=float_bytes,
        bytes=size,
        ratio=float_bytes / size,
        n_layers=len(manifest.layers),
        n_float=len(manifest.float_modules),
        parts="".join(_part_row(manifest, part) for part in manifest.parts),
        sha256=manifest.base.sha256,
        licence=manifest.base.licence or "not stated by its folder",
        credits=manifest.base.credits or "The base model names nobody to credit.",
    )
    path.write_text(f"---\n{yaml.safe_dump(front_matter(manifest), sort_keys=False)}---\n\n{text}", encoding="utf-8")


def _part_row(manifest: Manifest, part: str) -> str:
    record, size = manifest.parts[part], manifest.files[weights_name(part)].bytes
    return f"| {part} | float | {record.bits.upper()}, {len(record.layers)} layers, {size:,} bytes |\n"


def front_matter(manifest: Manifest) -> dict[str, Any]:
    """The card's metadata, in the hub's words."""
    fields: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusers", "mezzotint", "quantized", manifest.bits, str(manifest.config.get("recipe", "unknown"))],
        "base_model_relation": "quantized",
    }
    if manifest.base.licence:
        fields["license"] = manifest.base.licence.lower()
    if manifest.base.name.count("/") == 1:  # a hub id; other names mean nothing there
        fields["base_model"] = manifest.base.name
    return fields
