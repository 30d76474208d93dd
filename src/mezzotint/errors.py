"""Every error a user can meet.

    MezzotintError                 the command line prints the message and exits with code 2
    |-- ModelError                 no such model, not a denoiser, a layout nobody declared
    |-- BitsError                  a bit setting that cannot be read or computed
    |-- ConfigError                an unknown option, or a value outside its range
    |-- ArtifactError              a saved model is truncated, altered, foreign or from a later version
    |-- OutputError                the place to write to exists already or cannot be written
    |-- MissingExtraError          an optional package is not installed; the message has the install line
    |-- WeightsError               weights of a feature network are neither on disk nor to be downloaded
    |-- KernelError                an integer kernel was asked for something it cannot do
    |-- ResumeError                checkpoints of a run that does not match this one
    `-- MemoryLimitError           the machine or the memory setting is too small for the request

A message names the thing, what was expected, what came, and what to do.
"""

from __future__ import annotations


class MezzotintError(Exception):
    """Base of everything this package raises on purpose."""


class ModelError(MezzotintError):
    """A model that is missing, is no denoiser, or has a layout that is not supported."""


class BitsError(MezzotintError):
    """A bit setting that cannot be read or computed."""


class ConfigError(MezzotintError):
    """An unknown option, or a value outside its range."""


class ArtifactError(MezzotintError):
    """A saved quantized model that is truncated, altered, foreign or from a later version."""


class OutputError(MezzotintError):
    """A place to write to that exists already or cannot be written."""


class MissingExtraError(MezzotintError):
    """An optional package that is not installed.

    Args:
        extra: name of the extra of this package, such as ``"metrics"``.
        package: the import that failed, such as ``"lpips"``.
    """

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'mezzotint[{extra}]'")
        self.extra = extra
        self.package = package


class WeightsError(MezzotintError):
    """Weights of a feature network that are not on disk and cannot be downloaded; says which, from where, to where."""


class KernelError(MezzotintError):
    """A kernel that was asked for something it cannot compute exactly."""


class ResumeError(MezzotintError):
    """Checkpoints that belong to another run."""


class MemoryLimitError(MezzotintError):
    """A request that does not fit in the memory there is, or in the memory that the settings allow."""
