from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark_rows import make_row
from mezzotint.benchmark.rows import RowFile
from mezzotint.cli.app import run
from mezzotint.cli.quality_words import summary
from tiny import tiny_pipeline

QUICK = ["--samples", "2", "--steps", "2", "--calib-size", "2", "--set", "ranges.candidates=2", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bench-quality") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def test_a_table_from_nothing(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench-quality", "-m", model, "--recipes", "nearest", "--bits", "w8a8,w4a8", "-o", str(tmp_path / "t")]
    words += ["--set", "drift_trajectories=0", *QUICK, "--json"]
    assert run([*words, "--budget", "0"]) == 2
    said = capsys.readouterr().err
    assert "not run, no time left: tiny w8a8 nearest seed 1234" in said
    assert "holds no finished cell" in said
    assert run(words) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["left"] == []
    assert result["verdict"] == ["2 cells, and nothing to compare them with."]
    assert all(Path(file).is_file() for file in result["files"])
    assert "tiny w4a8 nearest seed 1234: SQNR" in err
    rows = RowFile(tmp_path / "t").read()
    assert [row.bits for row in rows] == ["w8a8", "w4a8"]
    assert {row.calib_size for row in rows} == {2}
    assert run([*words, "--metrics", "is"]) == 0
    assert "2 of these have not all of --metrics" in capsys.readouterr().err
    assert run(["bench-quality", "--render", "-o", str(tmp_path / "t")]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("nearest", "W8A8", "2 cells", "not run"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--recipes", "nearest,nearest"], "--recipes 'nearest,nearest': nearest named twice"),
        (["--recipes", "nearst"], "no recipe 'nearst' (did you mean 'nearest'?)"),
        (["--set", "iters"], "--set 'iters': write PART.OPTION=VALUE"),
        (["--set", "ranges.nrm=3"], "no option 'ranges.nrm'"),
        (["--recipes", "nearest", "--set", "reconstruction.layer_wieght=0"], "(did you mean 'layer_weight'?)"),
        (["--seeds", "1,1"], "--seeds '1,1': 1 of them are named twice"),
        (["--metrics", "fdi"], "metrics: expected some of fid"),
        (["--arithmetic", "bf16"], "arithmetic must be one of simulated, integer, deployed, got 'bf16'"),
        (["--labels", "3"], "--labels: DDIMPipeline is unconditional"),
        (["--merge", "nowhere"], "nowhere: holds no finished cell"),
        (["--reference", "nowhere", "--metrics", "fid"], "nowhere: no such reference"),
    ],
)
def test_wrong_words_are_said_on_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert run(["bench-quality", "-m", model, "-o", str(tmp_path / "t"), *QUICK, *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert complaint in said[-1]
    assert not (tmp_path / "t" / "rows.jsonl").exists()


def test_a_setting_that_says_nothing_to_a_recipe_is_told_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends at a reference that is not there, before anything is calibrated."""
    words = ["--recipes", "nearest,ptq4dm,eda-dm", "--set", "reconstruction.layer_weight=0", "--reference", "nowhere"]
    assert run(["bench-quality", "-m", model, "-o", str(tmp_path / "t"), *QUICK, *words, "--metrics", "fid"]) == 2
    said = capsys.readouterr().err
    line = "--set: reconstruction.layer_weight does nothing for nearest, ptq4dm (no reconstruction)\n"
    assert said.count("does nothing") == said.count(line) == 1


def test_a_finished_cell_on_one_line() -> None:
    row = make_row(scores=[{"name": "FID", "value": 9.5}], seconds={"calibrate": 30.4, "sample": 9.6, "compare": 1.0})
    assert summary(row) == (
        "emoji w4a8 eda-dm seed 1: SQNR 29.00 dB, PSNR pooled 24.50 mean 27.25 dB, FD 1.250, to training 70.500 "
        "(70.000), FID 9.500; 41 s: calibrate 30, draw 10, compare 1, 1.50 ms an iteration"
    )
    drawn = summary(row.model_copy(update={"arithmetic": "integer", "attention": "int8"}))
    assert drawn.startswith("emoji w4a8 eda-dm seed 1 integer: SQNR 29.00 dB (simulated), PSNR")
    seconds = {
        "float images": 39.0,
        "record": 3.0,
        "select": 6.0,
        "shared": 9.0,
        "fit": 2.0,
        "correct": 0.1,
        "reconstruct": 15.0,
    }
    seconds |= {"calibrate": 26.0, "sample": 8.0, "sqnr": 2.0, "compare": 2.0, "score": 1.0}
    told = "calibrate 26 (record 3, select 6, fit 2, reconstruct 15; shared 9), draw 8, sqnr 2, compare 2, score 1"
    assert f"; 39 s: {told}, beside float images 39, 1.50 ms" in summary(make_row(seconds=seconds))


def test_a_table_counts_what_was_planned_and_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RowFile(tmp_path).append(make_row())
    RowFile(tmp_path).plan([make_row(seed=seed).key for seed in (1, 2)])
    assert run(["bench-quality", "--render", "-o", str(tmp_path)]) == 0
    assert "1 planned cell, see table.md" in capsys.readouterr().out


def test_tables_of_two_machines_become_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seeds in (("one", (1, 2)), ("two", (2, 3))):
        for seed in seeds:
            RowFile(tmp_path / name).append(make_row(seed=seed, fd=1.0 if name == "one" else 2.0))
    words = ["--merge", str(tmp_path / "one"), "--merge", str(tmp_path / "two"), "-o", str(tmp_path / "both")]
    assert run(["bench-quality", *words]) == 0
    out, err = capsys.readouterr()
    assert "1.67 ± 0.58" in out
    assert "emoji w4a8 eda-dm seed 2 occur more than once; the last row of a cell counts" in err
    assert [(row.seed, row.fd) for row in RowFile(tmp_path / "both").read()] == [(1, 1.0), (2, 2.0), (3, 2.0)]
