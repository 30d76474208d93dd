"""The model of GroupNorm's time puts first what was fastest, and only what can run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.kernels.triton.norm_model import NormConfig, norm_configs, predicted

# Microseconds on an H100 of [batch, pixels, channels] in 32 groups: (groups of a program, warps) that hold all pixels,
# and the fastest of two launches.
MEASURED = {
    (16, 1024, 640): ({(1, 16): 38.5}, 36.1),
    (16, 256, 1280): ({(1, 8): 19.2, (2, 16): 28.2}, 27.3),
    (16, 256, 2560): ({(1, 16): 50.0}, 35.0),
    (16, 64, 1280): ({(1, 4): 8.0, (2, 4): 8.4, (4, 8): 10.9, (8, 16): 27.2}, 13.9),
    (16, 64, 2560): ({(1, 4): 12.9, (2, 8): 17.3, (4, 16): 27.0}, 22.0),
    (2, 1024, 640): ({(1, 16): 10.2}, 12.1),
    (2, 256, 1280): ({(1, 8): 6.6, (2, 16): 13.2}, 10.2),
    (2, 256, 2560): ({(1, 16): 13.1}, 14.1),
    (2, 64, 1280): ({(1, 4): 3.7, (2, 4): 5.0, (4, 8): 9.3, (8, 16): 25.8}, 6.7),
    (2, 64, 2560): ({(1, 4): 5.0, (2, 8): 9.4, (4, 16): 25.2}, 7.3),
}


@pytest.mark.parametrize("shape", MEASURED, ids=str)
def test_what_was_fastest_comes_first(shape: tuple[int, int, int]) -> None:
    batch, rows, channels = shape
    whole, two = MEASURED[shape]
    times = {NormConfig(True, groups, rows, warps=warps): us for (groups, warps), us in whole.items()}
    first = next(c for c in norm_configs(batch, rows, channels, 32) if c in times or not c.whole)
    assert times.get(first, two) <= 1.1 * min(two, *times.values())
    for config, us in times.items():
        assert 0.8 * us < predicted(config, batch, rows, channels, 32) < 1.25 * us


def test_many_small_groups_are_taken_together() -> None:
    """A program of one group of 4 x 4 x 8 elements is a thousand instructions for each of its warps."""
    first = norm_configs(256, 16, 256, 32)[0]
    assert first.whole
    assert first.groups >= 8
    alone = NormConfig(True, 1, 16, warps=4)
    assert predicted(first, 256, 16, 256, 32) < predicted(alone, 256, 16, 256, 32) / 3


@given(st.integers(1, 300), st.integers(1, 5000), st.integers(1, 12), st.sampled_from([1, 3, 4, 6, 8, 32]))
def test_every_configuration_covers_the_picture(batch: int, rows: int, width: int, groups: int) -> None:
    configs = norm_configs(batch, rows, width * groups, groups)
    assert len(set(configs)) >= 2
    assert any(not config.whole for config in configs)
    for config in configs:
        assert 1 <= config.warps <= 16
        assert config.groups & (config.groups - 1) == 0
        if config.whole:
            assert config.rows >= rows
            assert groups % config.groups == 0
