"""Run several trainings side by side on one GPU, wait, and pack what each wrote into one tar file per training.

    python zoo/run_all.py vq-f4 kl-f8 --minutes 4 --out results
    python zoo/run_all.py ldm4-uncond ldm8-uncond --minutes 8 --out results --extra "ldm8-uncond=--batch 256"

A tar holds the model's folder (float16, averaged weights, no optimizer), its log `<name>.log`, and nothing else. A
training that is still at work after `--limit` seconds, or that fails, is packed as it stands; the program's exit
status is the number of trainings that did not end well.
"""

import shlex
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).parent
EARLY = 90  # seconds
NO_GRAPH = "--no-graph"
KEEP = {".json", ".safetensors", ".png", ".txt", ".md"}  # of a model folder

PROGRAMS = {
    "vq-f4": ("train_first_stage.py", "--kind"),
    "kl-f8": ("train_first_stage.py", "--kind"),
    "ldm4-uncond": ("train_latent.py", "--model"),
    "ldm8-uncond": ("train_latent.py", "--model"),
    "ldm4-class": ("train_latent.py", "--model"),
    "sd-text": ("train_latent.py", "--model"),
}


@dataclass
class Job:
    """A training at work, and the command that started it."""

    name: str
    folder: Path
    log: Path
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the training as a process of its own; what it prints is added to the log beside its folder."""
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(self.command, stdout=file, stderr=subprocess.STDOUT)

    def failed(self) -> bool:
        """Whether it has ended with an error."""
        return self.process.poll() not in (None, 0)


def make_job(name: str, kind: str, minutes: float, runs: Path, extra: list[str]) -> Job:
    """The training of `kind` into `<runs>/<name>`, not yet started."""
    program, option = PROGRAMS[kind]
    folder, log = runs / name, runs / f"{name}.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / program), option, kind, "--minutes", str(minutes), "--out", str(folder)]
    return Job(name, folder, log, [*command, *extra])


def wait(jobs: list[Job], limit: float) -> None:
    """Until all have ended; those that have not after `limit` seconds are told to, and 10 s later killed.

    One that fails in the first EARLY seconds is started once more without CUDA graphs, its progress lost: the most
    likely reason is a driver or a library on which the capture does not work.
    """
    began = time.monotonic()
    while (used := time.monotonic() - began) < limit:
        for job in jobs:
            if job.failed() and used < EARLY and NO_GRAPH not in job.command:
                print(f"{job.name}: failed ({last_line(job.log)[:300]}); once more with {NO_GRAPH}", flush=True)
                job.command.append(NO_GRAPH)
                job.start()
        if all(job.process.poll() is not None for job in jobs):
            break
        time.sleep(1)
    running = [job.process for job in jobs if job.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pack(job: Job, out: Path) -> Path:
    """Write `<out>/<name>.tar`."""
    path = out / f"{job.name}.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(job.log, job.log.name)
        for file in sorted(job.folder.rglob("*")):
            if file.is_file() and not file.is_symlink() and file.suffix in KEEP:
                archive.add(file, f"{job.name}/{file.relative_to(job.folder)}")
    return path


def last_line(log: Path) -> str:
    """The last that a training printed; a progress bar's redraws count as lines."""
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def main(
    models: Annotated[list[str], typer.Argument(help="KIND, or NAME:KIND for a second run of a kind.")],
    minutes: Annotated[float, typer.Option(help="Wall clock of each training.")] = 8.0,
    out: Annotated[Path, typer.Option(help="Folder for the tar files.")] = HERE / "runs" / "packed",
    runs: Annotated[Path, typer.Option(help="Folder for the models and logs.")] = HERE / "runs",
    limit: Annotated[float | None, typer.Option(help="Seconds after which all are stopped; minutes + 150 s.")] = None,
    extra: Annotated[list[str] | None, typer.Option(help="NAME=OPTIONS passed to that training.")] = None,
) -> None:
    """Train side by side and pack the results."""
    options = {name: shlex.split(rest) for name, _, rest in (item.partition("=") for item in extra or [])}
    names = {name: kind or name for name, _, kind in (model.partition(":") for model in models)}
    unknown = (set(names.values()) - set(PROGRAMS)) | (set(options) - set(names))
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected one of {', '.join(PROGRAMS)}")
    for folder in (out, runs):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [make_job(name, kind, minutes, runs, options.get(name, [])) for name, kind in names.items()]
    for job in jobs:
        job.start()
    try:
        wait(jobs, limit or minutes * 60 + 150)
    finally:
        for job in jobs:
            if job.process.poll() is None:
                job.process.kill()
    for job in jobs:
        path = pack(job, out)
        print(f"{job.name}: exit status {job.process.returncode}, {path} {path.stat().st_size / 1e6:.2f} MB")
        print(f"    {last_line(job.log)[:1000]}", flush=True)
    raise typer.Exit(sum(job.process.returncode != 0 for job in jobs))


if __name__ == "__main__":
    typer.run(main)
