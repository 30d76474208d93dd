"""Render the fetched emoji artwork to one array of RGB images, with a JSON table that says what each image is.

Written to ``<out>/emoji-<size>.npz`` and ``<out>/emoji-<size>.json``:

    images  uint8 [N, size, size, 3]   RGB, composited on white (npz key "images")
    table   list of N dicts            name, text, group, source, licence, flippable, held_out

An image's place in the two files is the same. Any size works; the zoo uses 32 to 128.

What is left out: icons the set hides (old names of others), skin-tone variants (they would be more than half of
all images, nearly alike at 32 px; `--skin-tones` keeps them), and images equal to an earlier one pixel for pixel.
What is held out: every set's drawing of 4 % of the *names*, chosen by a hash of the name, so that no held-out
emoji is seen in training in another set's style and the choice is the same at every size.
"""

import hashlib
import io
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import resvg_py
import typer
from PIL import Image
from sources import SOURCES, Source
from tqdm import tqdm

DATA = Path(__file__).parent / "data"
HELD_OUT_PERCENT = 4

TONE_SUFFIX = re.compile(r"-(medium-light|medium-dark|light|medium|dark)$")
# Drawings that a mirror makes wrong: letters, digits, clocks, flags. Matched against the name, beside the groups.
READABLE = re.compile(
    r"button|clock|-thirty|keycap|letter|number|digit|hundred|sign\b|calendar|flag|map|medal|banknote|input"
    r"|arrow|newspaper|receipt|abacus|1234|ruler|license|name-badge|id-|atm|post|hospital|store|music|score|dollar|yen"
    r"|left|right|mahjong|zzz"  # names that say a side stay true
)
READABLE_GROUPS = {"Symbols", "Flags"}


def is_skin_tone(name: str, names: set[str]) -> bool:
    """Whether `name` is the tinted variant of another icon (Noto spells it out; Fluent appends "-dark" to a name)."""
    return "skin-tone" in name or (TONE_SUFFIX.search(name) is not None and TONE_SUFFIX.sub("", name) in names)


def is_held_out(name: str) -> bool:
    """Whether every drawing of `name` is kept from training; depends on nothing but the name."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def read_groups(artwork: Path) -> dict[str, str]:
    """Emoji group by icon name, over all sets: Fluent Emoji ships no groups and takes those of its flat twin."""
    groups: dict[str, str] = {}
    for source in SOURCES:
        metadata = json.loads((artwork / source.key / "metadata.json").read_text())
        for group, names in metadata.get("categories", {}).items():
            for name in names:
                groups.setdefault(name, group)
    return groups


def read_icons(source: Source, artwork: Path, *, skin_tones: bool) -> list[tuple[str, str]]:
    """(name, SVG document) of each icon of `source`, in the order of its file; hidden icons are left out."""
    data = json.loads((artwork / source.key / "icons.json").read_text())
    icons = data["icons"]
    result = []
    for name, icon in icons.items():
        if icon.get("hidden") or (not skin_tones and is_skin_tone(name, set(icons))):
            continue
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = icon.get("width", data["width"]), icon.get("height", data["height"])
        result.append((name, svg_document(icon["body"], left, top, width, height)))
    return result


def svg_document(body: str, left: int, top: int, width: int, height: int) -> str:
    """A square SVG document around an icon's body; an oblong icon is centred."""
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} width="{side}" height="{side}" viewBox="{box}">{body}</svg>'


def rasterize(svg: str, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: the drawing over white."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def describe(name: str, source: Source, groups: dict[str, str]) -> dict[str, str | bool]:
    """The table's row for one icon."""
    group = groups.get(name, "Other")
    return {
        "name": name,
        "text": name.replace("-", " "),
        "group": group,
        "source": source.key,
        "licence": source.licence,
        "flippable": group not in READABLE_GROUPS and READABLE.search(name) is None,
        "held_out": is_held_out(name),
    }


def contact_sheet(images: np.ndarray, columns: int) -> Image.Image:
    """The first images in rows of `columns`; a last row that is not full is left out."""
    rows, size = len(images) // columns, images.shape[1]
    tiles = images[: rows * columns].reshape(rows, columns, size, size, 3)
    return Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(rows * size, columns * size, 3))


def main(
    size: Annotated[int, typer.Option(min=8, max=512, help="Side of the images in pixels.")] = 32,
    artwork: Annotated[Path, typer.Option(help="Folder that zoo/fetch.py filled.")] = DATA / "artwork",
    out: Annotated[Path, typer.Option(help="Folder for the npz, the json and a contact sheet.")] = DATA,
    skin_tones: Annotated[bool, typer.Option("--skin-tones", help="Keep the skin-tone variants.")] = False,
    group: Annotated[list[str] | None, typer.Option(help="Only this emoji group; repeatable. Default: all.")] = None,
) -> None:
    """Render every emoji set at one size."""
    groups = read_groups(artwork)
    images, table, seen = [], [], set()
    dropped: Counter[str] = Counter()
    for source in SOURCES:
        icons = read_icons(source, artwork, skin_tones=skin_tones)
        icons = [icon for icon in icons if not group or groups.get(icon[0], "Other") in group]
        with ThreadPoolExecutor() as pool:
            pixels = pool.map(lambda icon: rasterize(icon[1], size), icons)
            for (name, _), image in tqdm(zip(icons, pixels, strict=True), desc=source.key, total=len(icons)):
                if image.tobytes() in seen:
                    dropped[source.key] += 1
                    continue
                seen.add(image.tobytes())
                images.append(image)
                table.append(describe(name, source, groups))

    out.mkdir(parents=True, exist_ok=True)
    stack = np.stack(images)
    np.savez_compressed(out / f"emoji-{size}.npz", images=stack)
    (out / f"emoji-{size}.json").write_text(json.dumps(table, indent=0) + "\n")
    sample = np.random.default_rng(0).permutation(len(stack))[:480]
    contact_sheet(stack[sample], columns=30).save(out / f"emoji-{size}.png")
    print(f"{len(stack)} images; per source {dict(Counter(row['source'] for row in table))}")
    print(f"per group {dict(Counter(row['group'] for row in table))}")
    print(f"held out {sum(row['held_out'] for row in table)}, may be mirrored {sum(row['flippable'] for row in table)}")
    print(f"duplicates dropped {dict(dropped)}")


if __name__ == "__main__":
    typer.run(main)
