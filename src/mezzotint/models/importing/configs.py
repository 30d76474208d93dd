"""Which YAML describes a checkpoint: the one that is given, the one beside it, or that of a published model.

The five models of the paper are in `published/`. A checkpoint without a YAML is one of them if its denoiser has exactly
their entries and shapes. Shapes do not tell noise schedules apart, so where a checkpoint keeps its betas they are
compared with those of the YAML, wherever that came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mezzotint.errors import ModelError
from mezzotint.models.importing.filling import Part, mismatches, shorten
from mezzotint.models.importing.keys import level_source, unet_source
from mezzotint.models.importing.networks import ddim_unet, latent_unet
from mezzotint.models.importing.reading import State
from mezzotint.models.importing.schema import CompVisConfig, DDIMConfig, UNetParams

PUBLISHED = Path(__file__).parent / "published"
UNET_PREFIX, EMA_PREFIX = "model.diffusion_model.", "model_ema."
CLOSE = 0.1  # of the entries may differ in a file that is called a damaged copy of a published model

Config = CompVisConfig | DDIMConfig


@dataclass(frozen=True)
class Described:
    """A configuration and where it is from.

    Attributes:
        origin: a file, or "published NAME".
    """

    config: Config
    origin: str


def is_compvis(state: State) -> bool:
    """Whether the entries are named as CompVis does, and not as in ermongroup/ddim."""
    return any(key.startswith((UNET_PREFIX, EMA_PREFIX)) for key in state)


def find_config(checkpoint: Path, state: State, given: Path | None) -> Described:
    """The configuration of the model whose entries are `state`.

    Raises:
        ModelError: a YAML is not to be read or describes another kind of model; or there is none, and the model is none
            of those that are published.
    """
    path = given or _beside(checkpoint)
    if path is None:
        return _recognise(checkpoint, state)
    config = read_config(path)
    if isinstance(config, CompVisConfig) != is_compvis(state):
        kinds = {True: "a CompVis model", False: "an ermongroup/ddim model"}
        raise ModelError(
            f"{path}: describes {kinds[isinstance(config, CompVisConfig)]}, but the entries of {checkpoint} are named "
            f"as those of {kinds[is_compvis(state)]}; give the YAML of this checkpoint with --config"
        )
    return Described(config, str(path))


def read_config(path: Path) -> Config:
    """The YAML at `path`. ModelError names what is wrong in it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ModelError(f"{path}: expected the YAML of a CompVis or ermongroup/ddim model, with model: in it")
    return parse(CompVisConfig if "target" in content["model"] else DDIMConfig, content, str(path))


def parse(kind: type[Any], content: Any, where: str) -> Any:
    """`content` as an instance of the pydantic model `kind`. ModelError names the first option that does not fit."""
    assert issubclass(kind, BaseModel)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = ".".join(str(part) for part in first["loc"]) or kind.__name__
        value = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
        raise ModelError(f"{where}: {option}: {first['msg']}{value}") from error


def unet_part(config: Config, *, ema: bool = False) -> Part:
    """The denoiser of `config`, without weights, and where they lie."""
    if isinstance(config, DDIMConfig):
        network: Any = ddim_unet(config)
        levels = len(config.model.ch_mult)
        return Part("unet", "", network, lambda name: level_source(name, levels))
    params = config.model.params
    arguments = parse(UNetParams, params.unet_config.params, "unet_config.params")
    network = latent_unet(arguments, params.image_size)
    if not ema:
        return Part("unet", UNET_PREFIX, network, lambda name: unet_source(name, network))
    return Part("unet", EMA_PREFIX, network, lambda name: unet_source(name, network), ema_entry)


def ema_entry(place: str) -> str:
    """The entry of the EMA copy of a denoiser's weight: CompVis takes the dots out of its name."""
    return EMA_PREFIX + f"diffusion_model{place}".replace(".", "")


def _beside(checkpoint: Path) -> Path | None:
    """The YAML that lies beside `checkpoint` under its name, or as the `config.yaml` of its folder."""
    places = [checkpoint.with_suffix(suffix) for suffix in (".yaml", ".yml")] + [checkpoint.parent / "config.yaml"]
    return next((place for place in places if place.is_file()), None)


def _recognise(checkpoint: Path, state: State) -> Described:
    """The published model with the same denoiser; or the one of which this seems to be a damaged copy."""
    tried = sorted(_differences(state), key=lambda found: found[0])
    if tried and tried[0][0] <= CLOSE:
        _, name, config = tried[0]
        return Described(config, f"published {name}")
    known = ", ".join(path.stem for path in sorted(PUBLISHED.glob("*.yaml")))
    raise ModelError(
        f"{checkpoint}: none of the published models ({known}) has these entries ({shorten(list(state))}); "
        f"give the YAML that came with it: --config, or a file {checkpoint.with_suffix('.yaml').name} beside it"
    )


def _differences(state: State) -> Iterator[tuple[float, str, Config]]:
    """(share of entries that differ, name, configuration) of every published model of the same kind."""
    for path in sorted(PUBLISHED.glob("*.yaml")):
        config = read_config(path)
        if isinstance(config, CompVisConfig) != is_compvis(state):
            continue
        part = unet_part(config, ema=not any(key.startswith(UNET_PREFIX) for key in state))
        wanted = part.wanted()
        wrong = mismatches(wanted, part.present(state))
        yield sum(map(len, wrong.values())) / len(wanted), path.stem, config
