"""Distribution scores of a table's cells: against a reference, and against the float model's own images.

Published tables give the distance to real images. There a quantized model may come out *ahead* of its float model by
chance or by a blur that suits the features, so each such score is also taken against the float model's images of the
same seeds (named "... to float"), and the float model's own score against the reference stands below the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from mezzotint.evaluation.images import ImageSet, tensor_images
from mezzotint.evaluation.metrics import METRICS
from mezzotint.evaluation.references import ZOO_FILE, Reference, load_reference
from mezzotint.evaluation.scores import Score, check_metrics, score_images
from mezzotint.models.families import model_folder

TO_FLOAT = " to float"
AGAINST_IMAGES = ("statistics", "images")  # needs of metrics that compare with a reference
ZOO_METRIC = "fd-zoo"


@dataclass
class Scorer:
    """Which scores a run takes, and of what.

    Attributes:
        reference: real images or statistics of them; None scores against the float model alone.
        captions: what each image shows, for metrics that ask; None for models without prompts.
        floats: the float model's images as a reference, by sampler; they keep the features once taken.
    """

    metrics: tuple[str, ...]
    reference: Reference | None
    captions: list[str] | None
    device: str
    batch_size: int
    floats: dict[str, Reference] = field(default_factory=dict)
    float_scores: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def check(self, samples: int) -> None:
        """ConfigError for a metric that cannot be computed of so many images; for before anything is calibrated."""
        if self.metrics:
            images = ImageSet("images", samples, lambda _: torch.empty(0))
            check_metrics(self.metrics, images, self.reference or Reference("float", images), self.captions, "tf1")

    def score(self, images: Tensor, reference: Tensor, key: str) -> dict[str, Any]:
        """The fields `scores` and `float_scores` of a row.

        Args:
            images, reference: of the cell and of the float model.
            key: names the float model's images, so that they are looked at once.
        """
        if not self.metrics:
            return {}
        floats = self.floats.setdefault(key, Reference("the float model's images", tensor_images(reference)))
        plain = [name for name in self.metrics if METRICS[name].needs not in AGAINST_IMAGES or self.reference]
        paired = [name for name in self.metrics if METRICS[name].needs in AGAINST_IMAGES]
        if key not in self.float_scores:
            self.float_scores[key] = self._taken(reference, self.reference, plain)
        scores = self._taken(images, self.reference, plain)
        scores += [{**score, "name": score["name"] + TO_FLOAT} for score in self._taken(images, floats, paired)]
        return {"scores": scores, "float_scores": self.float_scores[key]}

    def _taken(self, images: Tensor, reference: Reference | None, metrics: Sequence[str]) -> list[dict[str, Any]]:
        if not metrics:
            return []
        scores: list[Score] = score_images(
            images, reference, metrics, captions=self.captions, device=self.device, batch_size=self.batch_size
        )
        return [score.model_dump(mode="json") for score in scores]


def usual_metrics(pipeline: DiffusionPipeline) -> tuple[str, ...]:
    """FD-zoo for a model that ships its statistics, nothing for others."""
    return (ZOO_METRIC,) if _ships_statistics(pipeline) else ()


def find_reference(pipeline: DiffusionPipeline, named: str | None) -> Reference | None:
    """The reference called `named`, or else the statistics that the model ships; None if it ships none."""
    if named is not None:
        return load_reference(named)
    return load_reference(str(model_folder(pipeline))) if _ships_statistics(pipeline) else None


def _ships_statistics(pipeline: DiffusionPipeline) -> bool:
    folder = model_folder(pipeline)
    return folder is not None and (folder / ZOO_FILE).is_file()
