"""Progress in its two forms: phases, and the callbacks of samplers."""

from __future__ import annotations

import pytest

from mezzotint.progress import Progress, as_callback, one_phase
from phases import Told


def test_callback_form_of_progress_adds_up() -> None:
    told = Told()
    callback = as_callback(told, "sample")
    for done in (0, 3, 5, 8):
        callback(done, 8)
    callback(2, 2)
    assert told.words == [("sample", 8), 0, 3, 2, 3, "end", ("sample", 2), 2, "end"]


def test_a_block_is_a_phase_which_an_error_leaves_open() -> None:
    told = Told()
    with one_phase(told, "trace network"):
        told.advance()
    with pytest.raises(ZeroDivisionError), one_phase(told, "tune products", 3):
        raise ZeroDivisionError
    assert isinstance(told, Progress)
    assert told.words == [("trace network", 1), 1, "end", ("tune products", 3)]
