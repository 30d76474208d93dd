"""What cells share: the float model's images, also between processes, and calibration sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mezzotint.pipeline as pipelines
from mezzotint.benchmark.bench import Bench
from mezzotint.benchmark.measure import Clock
from mezzotint.benchmark.plan import Plan, list_cells
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.rows import UNFINISHED
from mezzotint.benchmark.run import run_cells
from mezzotint.errors import ResumeError
from mezzotint.pipeline import CALIBRATION_OPTIONS, CalibrationCache
from mezzotint.progress import NullProgress
from mezzotint.recipes.registry import make_config
from mezzotint.sampling.config import SamplerConfig
from phases import Told
from tiny import tiny_pipeline

PLAN = Plan(
    "tiny",
    ("nearest",),
    ("w8a8", "w4a8"),
    samples=4,
    changes={"steps": 3, "calib_size": 4, "forward_batch": 8},
    settings={"ranges.candidates": 2, "drift_trajectories": 0},
)
SAMPLER = SamplerConfig(steps=2)


def bench_in(folder: Path, seed: int = 0, samples: int = 5) -> Bench:
    return Bench.of(tiny_pipeline(seed), folder, samples=samples, device="cpu", batch_size=4)


def run(folder: Path, plan: Plan = PLAN, **options: Any) -> list[Row]:
    return run_cells(tiny_pipeline(), list_cells(plan, "ddim"), folder, device="cpu", **options).made


def without_time(row: Row) -> Row:
    return row.model_copy(update={"seconds": {}, "created": None})


def test_the_float_images_are_drawn_once_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench_in(tmp_path)
    images = first.reference(SAMPLER)
    assert first.reference(SAMPLER) is images
    others = [bench_in(tmp_path, seed=1).reference(SAMPLER), bench_in(tmp_path).reference(SamplerConfig(steps=3))]
    others.append(bench_in(tmp_path, samples=6).reference(SAMPLER))
    assert len(list((tmp_path / UNFINISHED).iterdir())) == 4
    assert not any(torch.equal(images, other[:5]) for other in others[:2])
    monkeypatch.setattr(Bench, "images", lambda *_: pytest.fail("drawn again"))
    kept = bench_in(tmp_path).reference(SAMPLER)
    assert kept.dtype == torch.float32
    assert torch.equal(kept, images)


def test_a_cell_tells_what_it_draws_to_its_last_image(tmp_path: Path) -> None:
    told = Told()
    run(tmp_path, replace(PLAN, bits=("w8a8",)), progress=told)
    steps = PLAN.samples * PLAN.changes["steps"]
    for phase in ("draw: float model", "draw: quantized model"):
        begin = told.words.index((phase, steps)) + 1
        end = told.words.index("end", begin)
        assert sum(word for word in told.words[begin:end] if isinstance(word, int)) == steps
    assert ("measure: SQNR", 1) in told.words


def test_a_damaged_file_of_images_is_an_error_that_names_it(tmp_path: Path) -> None:
    bench_in(tmp_path).reference(SAMPLER)
    (path,) = (tmp_path / UNFINISHED).iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ResumeError, match=r"float-.*\.safetensors is damaged .*delete it"):
        bench_in(tmp_path).reference(SAMPLER)


def test_images_are_kept_until_every_planned_cell_is_there(tmp_path: Path) -> None:
    run(tmp_path, replace(PLAN, bits=("w8a8",), seeds=(1, 2)), budget=-1.0)
    assert len(run(tmp_path, replace(PLAN, bits=("w8a8",), seeds=(1,)))) == 1
    (kept,) = (tmp_path / UNFINISHED).iterdir()
    assert kept.name.startswith("float-")
    assert len(run(tmp_path, replace(PLAN, bits=("w8a8",), seeds=(2,)))) == 1
    assert not (tmp_path / UNFINISHED).exists()


def test_images_are_drawn_in_batches_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    bench = bench_in(tmp_path, samples=9)
    network: Any = bench.pipeline.components["unet"]
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    bench.images(bench.pipeline, SAMPLER)
    assert set(sizes) == {3}  # at most 4


def test_cells_share_a_calibration_set_and_are_what_they_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, record = [], pipelines.record_trajectory
    monkeypatch.setattr(pipelines, "record_trajectory", lambda *args: (recorded.append(1), record(*args))[1])
    first, second = run(tmp_path / "together")
    assert len(recorded) == 1
    (alone,) = run(tmp_path / "alone", replace(PLAN, bits=("w4a8",)))
    assert without_time(second) == without_time(alone)
    for phase in ("record", "select"):
        assert second.seconds[phase] == first.seconds[phase]
    assert second.seconds["shared"] == first.seconds["record"] + first.seconds["select"]
    assert "shared" not in first.seconds


def test_what_another_cell_spent_on_the_calibration_set_counts() -> None:
    clock = Clock()
    with clock("calibrate"):
        clock.add_shared(0.0)
    own = clock.seconds["calibrate"]
    assert clock.seconds.keys() == {"calibrate"}
    clock.add_shared(5.0)
    assert clock.seconds == {"calibrate": own + 5.0, "shared": 5.0}


def test_a_calibration_set_depends_on_nothing_but_its_options() -> None:
    pipeline, device = tiny_pipeline(), torch.device("cpu")
    config = make_config("eda-dm", "w4a8", steps=3, calib_size=4, pilot_size=2)
    bare = config.model_copy()
    for name in type(config).model_fields.keys() - set(CALIBRATION_OPTIONS):
        del bare.__dict__[name]  # to read it is an error
    found = [
        pipelines._calibration(pipeline, each, device, NullProgress(), pipelines._Clock()) for each in (config, bare)
    ]
    assert torch.equal(found[0].rows.x_t, found[1].rows.x_t)
    cache = CalibrationCache(most=2)
    configs = [make_config("eda-dm", bits, calib_size=n) for bits, n in (("w4a8", 4), ("w8a8", 4), ("w4a8", 5))]
    cache.keep(configs[0], device, found[0])
    assert cache.find(configs[1], device) is found[0]
    assert cache.find(configs[2], device) is None
    for size in (6, 7):
        cache.keep(make_config("nearest", "w4a8", calib_size=size), device, found[1])
    assert cache.find(configs[0], device) is None
