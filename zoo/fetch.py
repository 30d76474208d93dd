"""Fetch the emoji artwork with `npm pack` and unpack it to ``<out>/<source key>/``.

Needs the `npm` client on the PATH, configured as usual. Nothing of the packages is executed.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from sources import SOURCES, Source
from tqdm import tqdm

DEFAULT_OUT = Path(__file__).parent / "data" / "artwork"


def pack(source: Source, folder: Path) -> Path:
    """The tarball of `source`, downloaded into `folder`; raises `ValueError` if its digest is not the pinned one."""
    command = ["npm", "pack", "--silent", "--ignore-scripts", f"{source.package}@{source.version}"]
    subprocess.run([*command, "--pack-destination", str(folder)], check=True, stdout=subprocess.DEVNULL)
    (tarball,) = folder.glob("*.tgz")
    digest = "sha512-" + base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if digest != source.integrity:
        raise ValueError(f"{source.package}@{source.version}: expected {source.integrity}, got {digest}; do not use it")
    return tarball


def fetch(source: Source, out: Path) -> None:
    """Fill ``out/<key>/`` with the package's files; a folder that is complete is left alone."""
    target = out / source.key
    if target.exists():
        return
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        with tarfile.open(pack(source, Path(scratch))) as archive:
            archive.extractall(scratch, filter="data")
        shutil.move(Path(scratch) / "package", target)  # last, so that a broken fetch leaves no target


def main(out: Annotated[Path, typer.Option(help="Folder to unpack the packages to.")] = DEFAULT_OUT) -> None:
    """Fetch every package of zoo/sources.py (20 MB compressed, 140 MB on disk)."""
    out.mkdir(parents=True, exist_ok=True)
    for source in tqdm(SOURCES, desc="fetch", unit="package"):
        fetch(source, out)


if __name__ == "__main__":
    typer.run(main)
