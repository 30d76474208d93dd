"""The picture of the README: the float model's images above, the quantized model's below, same seeds, nothing picked.

    python benchmarks/picture.py demo/ddim-emoji-w4a8 -o docs/pair.png

The quantized images are drawn with integer arithmetic, by the sampler of the model's family; a conditional model shows
prompts or classes of the evaluation split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mezzotint.evaluation.drawing import sample_pairs
from mezzotint.evaluation.pictures import paired_grid, write_png
from mezzotint.loading import load
from mezzotint.sampling.defaults import default_sampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--model", default="ddim-emoji", help="the float model")
    parser.add_argument("--count", type=int, default=12, help="seeds 0 to COUNT - 1")
    parser.add_argument("--steps", type=int, help="sampler steps (default: the family's)")
    parser.add_argument("--scale", type=int, default=3, help="side of a pixel of the models in pixels of the picture")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/pair.png"))
    options = parser.parse_args()
    floating = load(options.model)
    sampler = default_sampler(floating)
    if options.steps is not None:
        sampler = sampler.model_copy(update={"steps": options.steps})
    pairs = sample_pairs(floating, load(options.artifact), samples=options.count, sampler=sampler)
    write_png(paired_grid(pairs.float_images, pairs.quantized_images), options.output, scale=options.scale)
    for label in pairs.conditions.labels if pairs.conditions is not None else []:
        print(label)


if __name__ == "__main__":
    main()
