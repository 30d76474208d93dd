"""Run an exported folder: a pipeline whose networks are graphs in a runtime.

What comes back has the parts that the samplers of this package ask a pipeline for, under their usual names, and nothing
more: `unet` is an instance of the network class that it was exported from, without a single layer, so that
`mezzotint.sample` draws with it unchanged: the same seeds, the same steps.

    part             is                                                      computes
    unet             ExportedUNet2DModel or ExportedUNet2DConditionModel     the graph
    vae, vqvae       ExportedStage, decode only                              the graph
    text_encoder     ExportedEncoder                                         the graph
    class_embedder   ExportedEmbedder                                        the graph
    tokenizer        CLIPTokenizer                                           from its files
    scheduler        the class of diffusers that the record names            from the record

The images are those of the integer network up to rounding. Products of codes are exact sums in both; what differs is
the order of float32 additions in norms, softmax and the products left in float (relative error near 1e-6). Layer by
layer that is over 100 dB. Where it tips a value over the edge between two codes, the next layer sees a whole grid step,
as between the integer and the simulated network; whole networks therefore agree as those two do, not bit for bit.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DConditionModel, UNet2DModel
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn
from transformers import CLIPTokenizer

from mezzotint.artifact.load import file_record
from mezzotint.errors import ArtifactError
from mezzotint.export.record import AGAIN, RECORD_NAME, ExportRecord, GraphRecord, read_record
from mezzotint.export.runtimes import Run, check_runtime, open_graph
from mezzotint.export.save import TOKENIZER
from mezzotint.sampling.correction import correct_


class _Exported(nn.Module):
    """A network that is one graph. Its only parameter is empty and says where it computes."""

    def _hold(self, run: Run) -> None:
        self.run = run
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)
        self.eval()


class _Denoiser(_Exported):
    """x_t and t to eps, in the words of diffusers' networks."""

    register_to_config: Any

    def __init__(self, run: Run, config: dict[str, Any]) -> None:
        nn.Module.__init__(self)  # not the network's own, which would build its layers
        self.register_to_config(**config)
        self._hold(run)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """(eps,) for a time of each row; float32."""
        t = timestep.expand(len(sample))
        return (self.run(sample, t, *(() if encoder_hidden_states is None else (encoder_hidden_states,))),)


class ExportedUNet2DModel(_Denoiser, UNet2DModel):
    """An unconditional denoiser that is a graph."""


class ExportedUNet2DConditionModel(_Denoiser, UNet2DConditionModel):
    """A denoiser with a context that is a graph."""


class ExportedStage(_Exported):
    """A first stage that decodes."""

    def __init__(self, run: Run, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = FrozenDict(config)
        self._hold(run)

    def decode(self, z: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """(images,) of z."""
        return (self.run(z),)


class ExportedEncoder(_Exported):
    """A text encoder: tokens to (context,)."""

    def __init__(self, run: Run, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = FrozenDict(config)
        self._hold(run)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (self.run(ids),)


class ExportedEmbedder(_Exported):
    """A class embedder: labels to contexts of one token."""

    def __init__(self, run: Run, config: dict[str, Any]) -> None:
        super().__init__()
        self.unconditional_label = int(config["num_embeddings"]) - 1
        self._hold(run)

    def forward(self, labels: Tensor) -> Tensor:
        return self.run(labels)


class ExportedPipeline(DiffusionPipeline):
    """The parts of an exported pipeline; see the module's docstring.

    Attributes:
        record: what export.json says.
        runtime: what runs the graphs.
    """

    def __init__(self, parts: dict[str, Any], record: ExportRecord, runtime: str, folder: Path) -> None:
        super().__init__()
        self.parts, self.record, self.runtime = parts, record, runtime
        self.register_to_config(_name_or_path=str(folder))
        for name, part in parts.items():
            setattr(self, name, part)

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name; diffusers would read their names off the signature of `__init__`."""
        return self.parts


# What a graph becomes, by the class it was exported from; and which parts a family has, beside the unet.
_DENOISERS: dict[str, type[_Denoiser]] = {
    "UNet2DModel": ExportedUNet2DModel,
    "MultiHeadUNet2DModel": ExportedUNet2DModel,
    "UNet2DConditionModel": ExportedUNet2DConditionModel,
}
_PARTS: dict[str, Any] = {
    "vae": ExportedStage,
    "vqvae": ExportedStage,
    "text_encoder": ExportedEncoder,
    "class_embedder": ExportedEmbedder,
}
_PARTS_OF: dict[str, tuple[str, ...]] = {
    "ddim": (),
    "ldm-vq": ("vqvae",),
    "ldm-kl": ("vae",),
    "ldm-class": ("vqvae", "class_embedder"),
    "sd": ("vae", "text_encoder", "tokenizer"),
}


def load_exported(folder: str | Path, runtime: str = "ort") -> ExportedPipeline:
    """The pipeline exported to `folder`, its networks running in `runtime` on the CPU with torch's number of threads.

    Args:
        runtime: "ort" (ONNX Runtime, exports to onnx) or "openvino" (both).

    Raises:
        ArtifactError: a file is missing, altered, foreign or from a later version, or the runtime refuses a graph.
        ConfigError: there is no such runtime, or it does not read what was exported.
        MissingExtraError: the runtime is not installed.
    """
    folder, chosen = Path(folder), check_runtime(runtime)
    record = read_record(folder)
    for name in record.files:
        _check_file(folder, name, record)
    parts: dict[str, Any] = dict.fromkeys(_PARTS_OF[record.family])
    for name, graph in record.graphs.items():
        kind = _class_of(name, graph, folder)
        run = open_graph(_listed(folder, graph.file, record), chosen, quantized=graph.bits is not None)
        parts[name] = kind(run, graph.config)
    if "tokenizer" in parts and any(file.startswith(f"{TOKENIZER}/") for file in record.files):
        parts["tokenizer"] = CLIPTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
    parts["scheduler"] = _scheduler(record, folder)
    if "unet" not in parts:
        raise ArtifactError(f"{folder / RECORD_NAME}: graphs: there is no unet; {AGAIN}")
    parts["unet"].quantization = record  # sampler and conditions of the calibration are looked up there
    if record.noise_correction is not None:
        correct_(parts["unet"], record.noise_correction)
    return ExportedPipeline(parts, record, chosen, folder)


def _class_of(name: str, graph: GraphRecord, folder: Path) -> Any:
    table: dict[str, Any] = _DENOISERS if name == "unet" else {graph.kind: _PARTS.get(name)}
    kind = table.get(graph.kind)
    if kind is None:
        raise ArtifactError(f"{folder / RECORD_NAME}: graphs: {name} of class {graph.kind} is none of ours; {AGAIN}")
    return kind


def _scheduler(record: ExportRecord, folder: Path) -> Any:
    kind = getattr(diffusers, record.scheduler.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ArtifactError(f"{folder / RECORD_NAME}: scheduler: diffusers has no scheduler {record.scheduler.kind!r}")
    return kind.from_config(record.scheduler.config)  # type: ignore[attr-defined]


def _listed(folder: Path, name: str, record: ExportRecord) -> Path:
    """The file called `name`, which must have been checked."""
    if name not in record.files:
        raise ArtifactError(f"{folder / RECORD_NAME}: files: {name} is not listed, so it cannot be trusted; {AGAIN}")
    return folder / name


def _check_file(folder: Path, name: str, record: ExportRecord) -> None:
    """ArtifactError unless the file is there and as it was written."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ArtifactError(f"{folder / RECORD_NAME}: files: {name!r} lies outside the folder")
    path = folder / name
    if not path.is_file():
        raise ArtifactError(f"{path}: the file is missing; {AGAIN}")
    if file_record(path) != record.files[name]:
        raise ArtifactError(f"{path}: altered after it was written (checksum differs); {AGAIN}")
