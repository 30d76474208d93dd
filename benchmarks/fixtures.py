"""Are our networks and samplers those of the original implementations? One row for each output that was recorded.

    python benchmarks/fixtures.py --fixtures DIR [NAME ...] --device cuda --json fixtures.json

DIR holds one JSON file a model, such as ldm8-church.json: the entries of an original checkpoint with their shapes, and
what the original code computed on seeded weights. Each checkpoint is built, written, imported and run, without its YAML
unless --yaml is given, so that the published models are recognised by their entries. A row passes with a relative
error of at most 1e-5 for single calls and 1e-4 for samplers. Float32 throughout, with TF32 off. The largest checkpoint
takes 3.8 GB of disk while it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from checkpoint_fixtures import Fixture, compute_rows, tolerance  # noqa: E402 - from the tests, which are no package


def measure(fixture: Fixture, device: str, *, config: bool, scratch: Path | None) -> list[dict[str, Any]]:
    """One row an output, printed as they come."""
    rows = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        checkpoint = fixture.write(Path(folder), config=config)
        begun = time.perf_counter()
        for row, output in compute_rows(fixture, checkpoint, device):
            error, limit, seconds = fixture.error(row, output), tolerance(row), time.perf_counter() - begun
            rows.append({"model": fixture.name, "row": row, "error": error, "limit": limit, "passes": error <= limit})
            verdict = "passes" if error <= limit else "FAILS"
            print(f"{fixture.name:14} {row:16} {error:9.2e} of {limit:.0e}  {verdict}  {seconds:6.1f} s", flush=True)
            begun = time.perf_counter()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="files of the folder, without .json; default: all")
    parser.add_argument("--fixtures", type=Path, required=True, help="folder with the JSON files")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--yaml", action="store_true", help="write the YAML, too; for sizes that nobody published")
    parser.add_argument("--scratch", type=Path, help="where checkpoints are written; default: the system's")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    names = arguments.names or sorted(path.stem for path in arguments.fixtures.glob("*.json"))
    if not names:
        parser.error(f"there are no fixtures in {arguments.fixtures}")
    device = torch.cuda.get_device_name(arguments.device) if arguments.device.startswith("cuda") else "CPU"
    print(f"{device}, torch {torch.__version__}", flush=True)
    rows = []
    for name in names:
        fixture = Fixture.read(arguments.fixtures / f"{name}.json")
        rows += measure(fixture, arguments.device, config=arguments.yaml, scratch=arguments.scratch)
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=2))
    failed = [row for row in rows if not row["passes"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} rows pass")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
