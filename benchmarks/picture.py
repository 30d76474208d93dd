"""The picture of the README: the float model's images above, the quantized model's below, same seeds, nothing picked.

    python benchmarks/picture.py demo/ddim-emoji-w4a8 -o docs/pair.png

The quantized images are drawn with integer arithmetic.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mezzotint.evaluation.pictures import paired_grid, write_png
from mezzotint.loading import load
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.trajectory import sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--model", default="ddim-emoji", help="the float model")
    parser.add_argument("--count", type=int, default=12, help="seeds 0 to COUNT - 1")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/pair.png"))
    options = parser.parse_args()
    sampler, seeds = SamplerConfig(steps=options.steps), list(range(options.count))
    rows = [sample(load(model), seeds, sampler=sampler) for model in (options.model, options.artifact)]
    write_png(paired_grid(*rows), options.output, scale=3)


if __name__ == "__main__":
    main()
