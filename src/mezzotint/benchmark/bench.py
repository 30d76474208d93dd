"""What all cells of a run share: the float model, its images, the scores, and calibration sets.

The float model's images are drawn once for each sampler. They are kept in the folder of the table until every planned
cell is there, so that a run which goes on, or another one in this folder, need not draw them again. Their file is named
by all that makes them: weights of every part, sampler, seeds, prompts or classes, device, versions of the libraries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from mezzotint.base import base_info
from mezzotint.benchmark.row import USUAL_SOURCE, Told
from mezzotint.benchmark.rows import UNFINISHED, write_whole
from mezzotint.benchmark.scoring import Scorer, find_reference, usual_metrics
from mezzotint.errors import ResumeError
from mezzotint.evaluation.cost import count_macs, device_name
from mezzotint.evaluation.drawing import repeated
from mezzotint.evaluation.result import Versions
from mezzotint.manifest import BaseInfo, weights_sha256
from mezzotint.models.conditioning import Inputs, condition_inputs, encode_conditions
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import example_inputs, network_of
from mezzotint.pipeline import CalibrationCache
from mezzotint.progress import NullProgress, Progress, as_callback
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.trajectory import sample

IMAGES_KEY = "images"


@dataclass
class Bench:
    """What all cells of a run share.

    Attributes:
        pipeline: the float model, on `device`.
        folder: of the table.
        batch_size: the most images that are drawn at once.
        inputs, told, conditions: prompts or classes, what a row says of them, and a row for each image; None for
            unconditional models.
        macs: multiply-accumulates of one call for one image, by layer.
        references: the float model's images by the sampler that drew them.
        calibration: sets that cells with the same selection share.
    """

    pipeline: DiffusionPipeline
    folder: Path
    samples: int
    device: str
    batch_size: int
    scorer: Scorer
    base: BaseInfo
    inputs: list[Any] | None
    told: Told | None
    conditions: Conditions | None
    macs: dict[str, int]
    references: dict[str, Tensor] = field(default_factory=dict)
    calibration: CalibrationCache = field(default_factory=CalibrationCache)

    @classmethod
    def of(
        cls,
        pipeline: DiffusionPipeline,
        folder: Path,
        *,
        samples: int,
        device: str,
        batch_size: int,
        metrics: Sequence[str] | None = (),
        reference: str | None = None,
        inputs: Inputs | None = None,
        source: str = USUAL_SOURCE,
    ) -> Bench:
        """Moves the pipeline to the device and encodes what it is to draw.

        Args:
            inputs: prompts or classes, begun again where there are fewer than images; None is the evaluation split.
            source: where they come from, in words for the rows.
            metrics: distribution scores to take; None is `usual_metrics`.
            reference: what they compare with; None is `find_reference`.
        """
        base = base_info(pipeline)
        pipeline.to(device)
        given = condition_inputs(pipeline, "evaluation", samples) if inputs is None else repeated(inputs, samples)
        conditions = encode_conditions(pipeline, given)
        scorer = Scorer(
            metrics=usual_metrics(pipeline) if metrics is None else tuple(metrics),
            reference=find_reference(pipeline, reference),
            captions=None if conditions is None else conditions.labels,
            device=device,
            batch_size=batch_size,
        )
        scorer.check(samples)
        told = None if conditions is None else told_of(conditions.labels, source)
        network = network_of(pipeline)
        macs = count_macs(network, *example_inputs(network))
        return cls(pipeline, folder, samples, device, batch_size, scorer, base, given, told, conditions, macs)

    def images(
        self,
        pipeline: DiffusionPipeline,
        sampler: SamplerConfig,
        progress: Progress | None = None,
        whose: str = "quantized model",
    ) -> Tensor:
        """Images [N, C, H, W] of all seeds, on the CPU. A pipeline with a text encoder of its own encodes with it.

        Args:
            progress: is told of drawing and decoding, which name `whose` they are.
        """
        own = pipeline.components.get("text_encoder") is not self.pipeline.components.get("text_encoder")
        conditions = encode_conditions(pipeline, self.inputs) if own else self.conditions
        drawing: dict[str, Any] = {"conditions": conditions, "device": self.device, "batch_size": self._even_batch}
        for name, verb in (("progress", "draw"), ("decode_progress", "decode")):
            drawing[name] = as_callback(progress or NullProgress(), f"{verb}: {whose}")
        return sample(pipeline, list(range(self.samples)), sampler=sampler, **drawing)

    @property
    def _even_batch(self) -> int:
        """Images drawn at once: batches as equal as can be, since a network is lowered anew for another size."""
        batches = -(-self.samples // self.batch_size)
        return -(-self.samples // batches)

    def reference(self, sampler: SamplerConfig, progress: Progress | None = None) -> Tensor:
        """The float model's images; drawn at the first call with this sampler, if the folder does not keep them.

        Raises:
            ResumeError: they are kept in a file that is damaged.
        """
        key = sampler.model_dump_json()
        if key not in self.references:
            origin = self._origin(sampler)
            path = self.folder / UNFINISHED / f"float-{digest(origin)}.safetensors"
            images = _kept(path)
            if images is None:
                images = self.images(self.pipeline, sampler, progress, "float model")
                write_whole(path, as_bytes({IMAGES_KEY: images}, {"origin": origin}))
            self.references[key] = images
        return self.references[key]

    def _origin(self, sampler: SamplerConfig) -> str:
        """All that makes the float model's images, as JSON."""
        parts = {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}
        origin = {
            "weights": {name: weights_sha256(part) for name, part in parts.items()},
            "sampler": sampler.model_dump(mode="json"),
            "seeds": [0, self.samples - 1],
            "told": "" if self.told is None else self.told.sha256,
            "device": device_name(torch.device(self.device)),
            "versions": Versions.here().model_dump(),
        }
        return json.dumps(origin, sort_keys=True)


def _kept(path: Path) -> Tensor | None:
    """The images in a file, None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return load_file(path)[IMAGES_KEY]
    except SafetensorError as error:
        raise ResumeError(f"{path} is damaged ({error}); delete it to draw the float model's images again") from error


def told_of(labels: Sequence[str], source: str) -> Told:
    """What a row says of its prompts or classes."""
    lines = "\n".join(labels).encode()
    return Told(source=source, count=len(set(labels)), sha256=hashlib.sha256(lines).hexdigest())


def digest(text: str) -> str:
    """Twelve digits by which two texts are told apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def slug(words: str) -> str:
    """A file name of lower-case letters, digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in words.lower()).split())
