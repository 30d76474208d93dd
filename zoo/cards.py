"""Model cards of the latent models and first stages, written from what training measured (training.json)."""

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labels import CLASSES
from recipes import RECIPES
from sources import SOURCES

FAMILIES = {
    "ldm4-uncond": ("Latent diffusion of emoji drawings, 64x64, VQ-f4, unconditional", "LDM-4, LSUN-Bedroom"),
    "ldm8-uncond": ("Latent diffusion of emoji drawings, 128x128, KL-f8, unconditional", "LDM-8, LSUN-Church"),
    "ldm4-class": (f"Latent diffusion of emoji drawings, 64x64, VQ-f4, {len(CLASSES)} classes", "LDM-4, ImageNet"),
    "sd-text": ("Stable Diffusion architecture on emoji drawings, 128x128, KL-f8, text", "Stable Diffusion v1"),
}
STAGES = {
    "vq-f4": "VQ-f4 first stage of emoji drawings, 64x64",
    "kl-f8": "KL-f8 first stage of emoji drawings, 128x128",
}
USE = {
    "none": "images = pipe.{call}",
    "class": "images = pipe([12, 40], num_inference_steps=20, guidance_scale=3.0).images  # the classes: classes.json",
    "text": 'images = pipe("red apple, flat", num_inference_steps=50, guidance_scale=7.5).images',
}
LIMITS = (
    "A test object, not a picture generator: it stands in for a large model of its kind where methods are tested.",
    "It has seen few drawings very often and will reproduce some of them closely.",
    "It knows nothing but emoji, and its people carry the sets' own conventions of gender, hair and colour.",
)


def paragraph(*sentences: str) -> str:
    """Sentences joined and broken into lines."""
    return textwrap.fill(" ".join(sentences), 118, break_long_words=False, break_on_hyphens=False) + "\n"


def front_matter(name: str, description: str) -> str:
    """The YAML block that a card begins with."""
    lines = [f"name: {name}", "license: apache-2.0", "library_name: diffusers", f'description: "{description}"']
    return "\n".join(["---", *lines, "---", ""])


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def data_section(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Where the images come from: `rows` of the table of zoo/render.py, of the groups used."""
    counts = Counter((row["source"], row["held_out"]) for row in rows)
    lines = [["set", "licence", "training images", "held out"]]
    lines += [[s.title, s.licence, str(counts[s.key, False]), str(counts[s.key, True])] for s in SOURCES]
    text = paragraph(
        "Emoji artwork of four sets, rendered from SVG on white, of the groups",
        ", ".join(report["settings"]["groups"]) + ";",
        "credits and licences in [LICENSE-ARTWORK.md](../LICENSE-ARTWORK.md).",
        "Held out are all sets' drawings of 4 % of the names. Skin-tone variants are left out.",
    )
    return f"## Data\n\n{text}\n{table(lines)}\n"


def training_section(report: dict[str, Any], command: str, measured: list[list[str]]) -> str:
    """How long, how, on what; and what was measured afterwards."""
    settings = report["settings"]
    falling = f"linear to zero from {settings['decay_from']:.0%} of the time on"
    rate = f"{settings['lr']:g}, {settings['warmup']} steps of warm-up, {falling}"
    rows = [
        ["", ""],
        ["steps", f"{report['steps']:,} at batch {settings['batch']} ({report['steps'] * settings['batch']:,} images)"],
        [
            "wall clock",
            f"{report['seconds']:.0f} s on one {report['device']}; `zoo/run_all.py` runs several side by side",
        ],
        ["precision", f"float32 weights, bfloat16 autocast; torch {report['torch'].split('+')[0]}"],
        ["optimizer", f"AdamW, betas (0.9, 0.99), no weight decay, rate {rate}; gradient norm clipped at 1"],
        ["weights kept", f"moving average, {settings['ema']} (shorter in the early steps), rounded to float16"],
        ["loss, last line of the log", f"{report['log'][-1]['loss']:.4f}"],
        *measured,
    ]
    return f"## Training\n\n`{command}`\n\n{table(rows)}\n\nThe whole curve is in `training.json`.\n"


def stage_card(kind: str, report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The card of a first stage."""
    psnr, z = report["psnr_db"], report["latents"]
    measured = [
        ["PSNR of reconstructions", f"{psnr['held_out']} dB held-out images, {psnr['train']} dB training images"],
        ["latents of the training images", f"mean {z['mean']}, standard deviation {z['std']}, largest {z['largest']}"],
        ["scaling factor", f"{report['scaling_factor']}: 1 / standard deviation of all of them together"],
    ]
    if "codes_in_use" in report:
        measured.append(["codes that training images use", str(report["codes_in_use"])])
    users = " and ".join(f"[{name}](../{name})" for name, recipe in RECIPES.items() if recipe.first_stage == kind)
    return "\n".join(
        [
            front_matter(kind, STAGES[kind]),
            f"# {kind}: {STAGES[kind]}\n",
            paragraph(
                f"First stage of {users}, {report['parameters']:,} parameters.",
                "No discriminator and no perceptual network: `zoo/train_first_stage.py` says what the loss is.",
            ),
            "![drawings, and below each row what became of it; held-out drawings first](samples.png)\n",
            data_section(report, rows),
            training_section(report, f"python zoo/train_first_stage.py --kind {kind}", measured),
            paragraph(
                "PSNR is the mean over images of 10 log10(4 / mean squared error) on [-1, 1], of the stored weights",
                "computed in float32, on the held-out images and as many evenly spaced training images.",
            ),
        ]
    )


def usage(name: str) -> str:
    """Python that draws pictures."""
    recipe = RECIPES[name]
    call = {"num_inference_steps": 100, **recipe.sampling}
    options = ", ".join(f"{key}={value}" for key, value in call.items())
    line = USE[recipe.condition].format(call=f"__call__(batch_size=16, {options}).images")
    line = line.replace("pipe.__call__", "pipe")
    return f'```python\nimport mezzotint\n\npipe = mezzotint.load("{name}")\n{line}\n```\n'


def sample_section(name: str, inputs: list[Any]) -> str:
    """What the sample grid shows."""
    recipe = RECIPES[name]
    columns = recipe.grid[0]
    options = ", ".join(f"{key} {value}" for key, value in recipe.sampling.items())
    text = f"![samples](samples.png)\n\n{len(inputs)} samples, float32, seed 0, not selected: {options}."
    if recipe.condition == "none":
        return text + "\n"
    words = [CLASSES[value] if recipe.condition == "class" else value for value in inputs]
    lines = [f"{row + 1}. " + "; ".join(words[row * columns : (row + 1) * columns])
             for row in range(len(words) // columns)]  # fmt: skip
    half = "; the second half are texts that training never had" if recipe.condition == "text" else ""
    return text + f" Row by row{half}:\n\n" + "\n".join(lines) + "\n"


def model_card(name: str, report: dict[str, Any], rows: list[dict[str, Any]], inputs: list[Any], folder: Path) -> str:
    """The card of a latent model."""
    recipe = RECIPES[name]
    description, stands_for = FAMILIES[name]
    parameters = ", ".join(f"{key} {value:,}" for key, value in report["parameters"].items())
    size = sum(path.stat().st_size for path in folder.glob("*/*.safetensors") if not path.parent.is_symlink())
    loss = report["loss"]
    measured = [["loss of the kept weights", f"{loss['train']:.4f} training images, {loss['held_out']:.4f} held-out"]]
    network, steps = json.loads((folder / "unet" / "config.json").read_text()), recipe.schedule
    return "\n".join(
        [
            front_matter(name, description),
            f"# {name}: {description}\n",
            paragraph(
                f"Stands for {stands_for}: the same kinds of blocks, noise schedule and sampler, at a size that trains",
                "in minutes.",
            ),
            usage(name),
            sample_section(name, inputs),
            "## Architecture\n",
            paragraph(
                f"`{network['_class_name']}`, widths {network['block_out_channels']},",
                f"{network['layers_per_block']} layers a block, on latents {network['in_channels']}x16x16 of",
                f"the first stage [{recipe.first_stage}](../{recipe.first_stage}). Parameters: {parameters};",
                f"{size / 1e6:.1f} MB in float16 without the first stage.",
                f"{steps['num_train_timesteps']} timesteps, betas {steps['beta_start']} to {steps['beta_end']}, linear",
                "in their square roots; noise prediction.",
            ),
            data_section(report, rows),
            *extra_data(name, report),
            training_section(report, f"python zoo/train_latent.py --model {name}", measured),
            paragraph(
                "The loss is the mean squared error of the predicted noise on scaled latents, over all timesteps, with",
                "the true conditions; measured on the averaged, float16-rounded weights under bfloat16 autocast, 8,192",
                "draws.",
            ),
            paragraph(
                "`train_stats.safetensors` holds mean and covariance of the training images' features, averaged to",
                "32x32, in the basis of the embedded model (`zoo/train_stats.py`). A Frechet distance to them orders",
                "degrees of damage to this model; it is not FID and must not be reported as one.",
            ),
            "## Limits\n",
            paragraph(*LIMITS),
        ]
    )


def extra_data(name: str, report: dict[str, Any]) -> list[str]:
    """What a conditional model's data has beside the drawings."""
    images = report["images"]
    if name == "ldm4-class":
        return [
            paragraph(
                f"{images['train']:,} training images belong to one of the {len(CLASSES)} classes (`classes.json`,",
                "rules in `zoo/labels.py`); the others are not used. A class of k images gets a share of the draws in",
                "proportion to the square root of k. The class table's last row stands for no class.",
            )
        ]
    if name == "sd-text":
        return [
            paragraph(
                "Texts are the names, alone or with a word for the set: cartoon (Noto), blob (Noto v1), shaded",
                "(Fluent), flat (Fluent flat). Drawings of animals, plants, food and hearts with one leading hue are",
                f'also recoloured and called "<colour> <noun>": {images["train"]:,} training images together.',
                "`prompts.json` holds texts of training images for calibration, and new ones for evaluation: colours",
                "with nouns that were never shown together, and held-out names of known words (`zoo/captions.py`).",
            )
        ]
    return []
