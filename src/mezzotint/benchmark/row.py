"""One finished cell of a table: its name, its figures, and all that made them."""

from __future__ import annotations

import contextlib
import functools
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mezzotint.benchmark.plan import SPENDING, Arithmetic, Kind
from mezzotint.config import QuantizeConfig
from mezzotint.evaluation.cost import FixedCost
from mezzotint.evaluation.layers import LayerSqnr
from mezzotint.evaluation.pages import settings
from mezzotint.evaluation.result import Versions
from mezzotint.evaluation.steps import StepSqnr
from mezzotint.manifest import BaseInfo

USUAL_SOURCE = "evaluation split"
DEFINED = "as defined"  # of `Row.computes`
KEY = ("model", "recipe", "bits", "iters", "calib_size", "samples", "seed", "variant", "arithmetic")
ELAPSED = ("calibrate", "sample", "sqnr", "compare", "score")  # parts of a cell's time that add up to it


class Sheets(BaseModel):
    """The first images of the float model and of the quantized one, as two pictures of one size.

    Attributes:
        float_images, quantized_images: files in the folder of the table.
        count: images in each, `columns` in a line, from seed 0 on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    float_images: str
    quantized_images: str
    count: int
    columns: int
    side: tuple[int, int]


class Told(BaseModel):
    """What the images of a conditional model show.

    Attributes:
        source: "evaluation split", or where the user took them from.
        count: of different prompts or classes.
        sha256: of all of them in the order of the images, a line each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    count: int
    sha256: str


class Row(BaseModel):
    """One finished cell: its name, its figures, and all that made them.

    Attributes:
        model ... arithmetic: the cell's name (`plan.Cell.key`); `seed` is the calibration's, `arithmetic` that of the
            network that drew the images.
        attention: how that network, on integers, multiplied in attention: "int8" of codes, or "bf16"; "" of a
            simulated one.
        refused: why no integer network drew them where one was asked for; "" otherwise.
        kind, note: as in `plan.Cell`.
        sqnr_db: mean over ten evenly chosen steps of the float trajectory; both networks get the same rows.
        sampler_sqnr_db: the same of eps as the sampler uses it, guided and corrected.
        sqnr_steps_db, steps: these ten values; with their steps and times.
        psnr_pooled_db: one mean squared error over all images, [-1, 1].
        psnr_mean_db: mean over images of each image's PSNR.
        psnr_interval_db: of psnr_mean_db, as `evaluation.intervals`.
        lpips: mean over images, where the weights of its network are on the disk.
        fd, fd_interval: Frechet distance to the float model's images in `features`.
        fd_train, fd_train_float: the same to the training images; what the float model's images have.
        intervals: of other figures, by their names here.
        scores, float_scores: distribution scores of this cell and of the float model, as `scoring` takes them.
        warnings: what a reader must know before quoting a figure.
        counts, selection: calibration samples of each step; how they came about.
        units: every unit with its losses.
        layers: SQNR of single layers on the float network's inputs.
        undecided: mean share of soft roundings that were undecided when made hard.
        seconds: by part. Where the calibration set was that of an earlier cell, "record", "select" and "calibrate" hold
            what it took there, and "shared" how much that was.
        cost: bytes and bit operations of this very plan of layers. calls: network rows that one image takes.
        parts: bits and SQNR of the other networks, where they are quantized too.
        config: every option. base: name and hash of the float weights. image_seeds: first and last.
        told: prompts or classes of the images; None for unconditional models.
        command: what was typed, "" if nothing was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    model: str
    recipe: str
    bits: str
    iters: int
    calib_size: int
    samples: int
    seed: int
    variant: str
    arithmetic: Arithmetic = "simulated"
    attention: str = ""
    refused: str = ""
    kind: Kind = "recipe"
    note: str = ""

    sqnr_db: float
    sampler_sqnr_db: float | None = None
    sqnr_steps_db: list[float]
    steps: list[StepSqnr] = []
    psnr_pooled_db: float
    psnr_mean_db: float
    psnr_interval_db: tuple[float, float] | None = None
    ssim: float | None
    lpips: float | None = None
    fd: float
    fd_interval: tuple[float, float]
    fd_train: float | None
    fd_train_float: float | None
    features: str
    intervals: dict[str, tuple[float, float]] = {}
    scores: list[dict[str, Any]] = []
    float_scores: list[dict[str, Any]] = []
    warnings: list[str] = []

    counts: list[int]
    selection: dict[str, Any] | None = None
    units: list[dict[str, Any]]
    layers: list[LayerSqnr] = []
    undecided: float | None
    ms_per_iteration: float | None
    seconds: dict[str, float]
    sheets: Sheets | None = None
    cost: FixedCost | None = None
    calls: int | None = None
    parts: dict[str, dict[str, Any]] = {}

    device: str
    config: dict[str, Any]
    base: BaseInfo | None = None
    image_seeds: tuple[int, int] | None = None
    told: Told | None = None
    versions: Versions | None = None
    created: str | None = None
    command: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What names the cell."""
        return {name: getattr(self, name) for name in KEY}

    @property
    def drawn(self) -> str:
        """What drew the images, in words."""
        if self.arithmetic == "simulated":
            return "simulated networks"
        attention = "on int8 codes" if self.attention == "int8" else f"in {self.attention}"
        return (
            f"{'integer networks' if self.arithmetic == 'integer' else 'networks as deployed'} (attention {attention})"
        )

    @property
    def computes(self) -> str:
        """Equal for rows whose images the same numbers make: the simulation and the integer network as it is defined
        differ in nothing but codes that another order of sums tips over; a deployed one may differ in more."""
        defined = self.arithmetic == "simulated" or (
            self.arithmetic == "integer" and self.attention in ("int8", "fp32")
        )
        return DEFINED if defined else self.drawn

    @property
    def elapsed(self) -> float:
        """Seconds of the whole cell, a shared calibration set counted as if it had been its own."""
        return sum(self.seconds.get(part, 0.0) for part in ELAPSED)

    @property
    def weights(self) -> str:
        """Hash of the float weights, "" in rows of before it was recorded."""
        return "" if self.base is None else self.base.sha256

    @property
    def options(self) -> dict[str, str]:
        """What the cell computed: every option but `SPENDING` by its dotted name, with the default where the row is
        older than the option."""
        return dict(_options(json.dumps(self.config)))

    @property
    def shown(self) -> str:
        """Hash of what the images show, "" for the evaluation split, which rows do not say that are older."""
        return "" if self.told is None or self.told.source == USUAL_SOURCE else self.told.sha256

    @property
    def saw_drawn(self) -> bool:
        """Whether it calibrated on the very prompts or classes that its images show."""
        usual = self.told is not None and self.told.source == USUAL_SOURCE and self.config.get("conditions") is None
        return usual and self.options.get("condition_split") == "evaluation"

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for two rows of one cell."""
        drawn = (self.arithmetic, self.attention)
        return (self.model, self.weights, self.variant, str(self.samples), self.shown, *drawn, str(self.options))


@functools.lru_cache(maxsize=1024)
def _options(config: str) -> tuple[tuple[str, str], ...]:
    """`Row.options` of a config as JSON."""
    data = json.loads(config)
    with contextlib.suppress(ValidationError):  # written by a version whose options were others
        data = QuantizeConfig.model_validate(data).model_dump(mode="json")
    return tuple(settings({key: value for key, value in data.items() if key not in SPENDING}))
