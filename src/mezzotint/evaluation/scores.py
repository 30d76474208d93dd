"""Scores of a set of images: how far from a reference, how good, how diverse, how true to their captions.

Which metrics there are, and what each needs, is the table in `metrics`.

Every score carries an interval over the images (`intervals`: value +- 2 bootstrap standard deviations; the reference
stays as it is), and says which features it is made of, how images were resized for them, and how many there were.
Fewer than the protocol's number is a warning: a Frechet distance falls as images are added, so values of different
numbers of images do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mezzotint.errors import ConfigError
from mezzotint.evaluation.clip import clip_captions
from mezzotint.evaluation.frechet import Statistics, statistics
from mezzotint.evaluation.images import ImageSet, tensor_images
from mezzotint.evaluation.inception import Resize
from mezzotint.evaluation.metrics import METRICS, Measured, Metric
from mezzotint.evaluation.networks import (
    Network,
    Progress,
    extract_features,
    make_networks,
    network_of_set,
    networks_of_sets,
)
from mezzotint.evaluation.references import Reference

RESAMPLES = 20


class Score(BaseModel):
    """A measured score.

    Attributes:
        name: as published, such as "FID".
        value, low, high: the score and its interval.
        count: images that were scored.
        features: which features, in words.
        resize: what was done to images of another size than the network's.
        reference: what they were measured against, "" if nothing.
        warning: why not to quote it, or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    value: float
    low: float
    high: float
    count: int
    features: str
    resize: str
    reference: str
    warning: str | None


def score_images(
    images: Float[Tensor, "n c h w"] | ImageSet,
    reference: Reference | None,
    metrics: Sequence[str],
    *,
    captions: Sequence[str] | None = None,
    resize: Resize = "tf1",
    resamples: int = RESAMPLES,
    seed: int = 0,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    networks: Mapping[str, Network] | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """The scores of `images`, in the order of `metrics`; each network sees each image once.

    Args:
        images: in [-1, 1], or a set that is read in batches; scored as the 8-bit pictures they would be saved as.
        reference: None if no metric needs one.
        metrics: names in METRICS.
        captions: one for each image, for `clip`.
        resize: Inception's, see `inception`.
        resamples: of the bootstrap; fewer than 2 give intervals without width.
        networks: None is `make_networks(resize)`.
        progress: called with (images seen, images in all) over all networks, those of the reference included.

    Raises:
        ConfigError: an unknown metric, or a reference or captions that do not serve one.
        WeightsError: weights that are nowhere.
    """
    given = images if isinstance(images, ImageSet) else tensor_images(images)
    networks = make_networks(resize) if networks is None else networks
    chosen = check_metrics(metrics, given, reference, captions, resize)
    taken = _take_features(given, reference, chosen, networks, device, batch_size, progress)
    scores = []
    for metric in chosen:
        features = taken[metric.features]
        network = networks[network_of_set(networks, metric.features)]
        known = None if reference is None else reference.features.get((metric.features, network.resize))
        stats = None
        if metric.needs == "captions":
            known = clip_captions(captions or (), device=device)
        elif metric.needs == "statistics" and reference is not None:
            stats = reference.statistics.get(metric.features)
            stats = statistics(known) if stats is None and known is not None else stats
        estimates = metric.measure(Measured(features, stats, known, resamples, seed))
        against = "" if reference is None or metric.needs in ("nothing", "captions") else reference.name
        warning = too_few(len(features), metric)
        scores += [
            Score(
                name=name,
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                count=len(features),
                features=f"{metric.features} of {network.label}",
                resize=network.resize,
                reference=against,
                warning=warning,
            )
            for name, estimate in zip(metric.names, estimates, strict=True)
        ]
    return scores


def take_statistics(
    images: Float[Tensor, "n c h w"] | ImageSet,
    metrics: Sequence[str],
    *,
    resize: Resize = "tf1",
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    networks: Mapping[str, Network] | None = None,
    progress: Progress | None = None,
) -> dict[str, Statistics]:
    """{set: statistics} of the images in the features that these metrics compare statistics of: a reference for later.

    Raises:
        ConfigError: an unknown metric, or one that compares no statistics.
        WeightsError: weights that are nowhere.
    """
    given = images if isinstance(images, ImageSet) else tensor_images(images)
    networks = make_networks(resize) if networks is None else networks
    usable = [name for name, metric in METRICS.items() if metric.needs == "statistics"]
    unusable = [name for name in metrics if name not in usable]
    if unusable or not metrics:
        raise ConfigError(
            f"metrics: statistics serve {', '.join(usable)}, got {', '.join(unusable) or 'none'}; "
            f"the other metrics need the images themselves"
        )
    chosen = [METRICS[name] for name in metrics]
    found = _take_features(given, None, chosen, networks, device, batch_size, progress)
    return {metric.features: statistics(found[metric.features]) for metric in chosen}


def check_metrics(
    names: Sequence[str],
    images: ImageSet,
    reference: Reference | None,
    captions: Sequence[str] | None,
    resize: Resize,
) -> list[Metric]:
    """The metrics by name, known to be computable; for before anything is loaded. ConfigError otherwise."""
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ConfigError(f"metrics: expected some of {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}")
    if images.count < 2:
        raise ConfigError(f"{images.name}: a score needs at least 2 images, got {images.count}")
    for name in names:
        metric = METRICS[name]
        if metric.needs == "captions" and (captions is None or len(captions) != images.count):
            raise ConfigError(
                f"{name}: needs one caption for each of the {images.count} images, "
                f"got {'none' if captions is None else len(captions)}"
            )
        if metric.needs not in ("statistics", "images") or (reference is not None and reference.images is not None):
            continue
        if reference is None:
            raise ConfigError(f"{name}: needs a reference: a folder of pictures, an npz, or a model of the zoo")
        if metric.needs == "images":
            raise ConfigError(f"{name}: needs images to compare with, and {reference.name} has statistics alone")
        if metric.features not in reference.statistics:
            raise ConfigError(
                f"{name}: needs {metric.features} statistics, and {reference.name} has "
                f"{', '.join(reference.statistics)}; name images or statistics of that network"
            )
        if metric.features in ("pool3", "spatial") and reference.resize not in (None, resize):
            raise ConfigError(
                f"{name}: {reference.name} was made with resize {reference.resize}, the images would be measured with "
                f"{resize}; choose --resize {reference.resize}"
            )
    return [METRICS[name] for name in names]


def too_few(count: int, metric: Metric) -> str | None:
    """A warning if fewer images were scored than published values are made of."""
    if count >= metric.protocol:
        return None
    return f"{count:,} images, the protocol takes {metric.protocol:,}: compare only with values of as many images"


def _take_features(
    images: ImageSet,
    reference: Reference | None,
    metrics: Sequence[Metric],
    networks: Mapping[str, Network],
    device: str | torch.device,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """{set: features of the images}; what is missing of the reference's goes into `reference.features`."""
    names = networks_of_sets(networks, [metric.features for metric in metrics])
    missing = {name: _missing(reference, metrics, networks[name]) for name in names}
    total = sum(source.count for name in names for source in (images, missing[name]) if source is not None)
    found: dict[str, Tensor] = {}
    done = 0
    for name in names:
        module: nn.Module = networks[name].load()
        for source in filter(None, (images, missing[name])):
            report = None if progress is None else (lambda seen, _, done=done: progress(done + seen, total))
            taken = extract_features(source, module, device=device, batch_size=batch_size, progress=report)
            done += source.count
            if source is images:
                found |= taken
            elif reference is not None:
                reference.features.update({(key, networks[name].resize): value for key, value in taken.items()})
    return found


def _missing(reference: Reference | None, metrics: Sequence[Metric], network: Network) -> ImageSet | None:
    """The reference's images if a metric still needs features of them from this network, else None."""
    if reference is None or reference.images is None:
        return None
    for metric in metrics:
        if metric.features not in network.sets or metric.needs in ("nothing", "captions"):
            continue
        from_statistics = metric.needs == "statistics" and metric.features in reference.statistics
        if not from_statistics and (metric.features, network.resize) not in reference.features:
            return reference.images
    return None
