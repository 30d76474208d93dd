"""Peak memory on the CPU: what a network takes, without what libraries take."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from mezzotint import resident
from mezzotint.evaluation.cost import float_bytes
from tiny import tiny_pipeline

BATCH = 64


@pytest.mark.skipif(not resident.can_measure(), reason="the peak of a process can be reset under Linux alone")
def test_the_peak_holds_weights_and_a_step_but_no_libraries(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    (found,) = resident.peak_bytes(str(tmp_path), ["fp32-eager"], BATCH, 1).values()
    channels, side = pipeline.unet.config.block_out_channels[0], pipeline.unet.config.sample_size
    assert found is not None
    assert found > float_bytes(pipeline.unet, 4) + 4 * BATCH * channels * side**2  # of one activation at least
    assert found < 100e6  # torch alone takes more


def test_a_process_that_is_killed_leaves_a_gap_and_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Killed:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Killed:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, *_: Any) -> None:
            raise BrokenProcessPool

    monkeypatch.setattr(resident, "ProcessPoolExecutor", Killed)
    assert resident.peak_bytes("m", ["bf16-eager"], 1, 1) == {"bf16-eager": None}
    assert "bf16-eager: the process that measured its memory was killed" in caplog.text
