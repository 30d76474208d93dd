"""Imports point one way: two columns that meet only above, recipes above those, the command line above all."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mezzotint

SOURCE = Path(__file__).parents[1] / "src" / "mezzotint"

LEAVES = {"errors", "version", "progress"}
NUMBERS = {"grid", "kernels", "layers"}
DIFFUSION = {"models", "sampling"}

# part -> the parts it may import, beside LEAVES, which anyone may. `top` is mezzotint/__init__.py.
ALLOWED: dict[str, set[str]] = {
    "grid": set(),
    "kernels": {"grid"},
    "layers": {"grid", "kernels"},
    "models": set(),
    "sampling": {"models"},
    "records": set(),
    "manifest": {"grid", "layers", "records"},
    "config": {"grid", "sampling"},
    "base": {"manifest", "models"},
    "calibration": {"config", *NUMBERS, *DIFFUSION},
    "reconstruction": {"config", "calibration", *NUMBERS, *DIFFUSION},
    "artifact": {"manifest", *NUMBERS, *DIFFUSION},
    "evaluation": {"manifest", *NUMBERS, *DIFFUSION},
    "export": {"artifact", "base", "manifest", "records", *NUMBERS, *DIFFUSION},
    "loading": {"artifact", "models"},
    "recipes": {"config", "calibration", "reconstruction", *NUMBERS, *DIFFUSION},
    "inspection": {"artifact", "calibration", "gpu", "manifest", "recipes", *NUMBERS, *DIFFUSION},
    "fusing": {"kernels"},
    "gpu": {"kernels", "layers"},
    "optimization": {"fusing", "gpu", "layers"},
    "speed": {"layers", "models"},
    "resident": {"loading", "optimization", "speed"},
    "benchmark": {"base", "calibration", "config", "evaluation", "manifest", "optimization", "pipeline", "recipes"}
    | NUMBERS
    | DIFFUSION,
    "pipeline": {"base", "calibration", "config", "manifest", "recipes", "reconstruction", *NUMBERS, *DIFFUSION},
}
ABOVE_ALL = {"top", "cli"}


def part_of(path: Path) -> str:
    """The part of the package that the file at `path` belongs to."""
    first = path.relative_to(SOURCE).parts[0]
    return "top" if first == "__init__.py" else first.removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Dotted names below `mezzotint` that a file imports anywhere in it, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "mezzotint":
            found |= {f"mezzotint.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            found.add(node.module or "")
    return {name.removeprefix("mezzotint.") for name in found if name.startswith("mezzotint.")}


def imported_parts(path: Path) -> set[str]:
    """Parts that a file imports, its own left out."""
    return {name.split(".")[0] for name in imported_modules(path)} - {part_of(path)}


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part in ABOVE_ALL:
        return
    allowed = set() if part in LEAVES else ALLOWED[part] | LEAVES
    assert imported_parts(path) <= allowed, f"{part} may import {sorted(allowed)}"


def test_the_allowed_directions_have_no_circle() -> None:
    order = list(TopologicalSorter(ALLOWED).static_order())
    assert set(order) >= set(ALLOWED)


def test_numbers_and_diffusion_never_meet() -> None:
    def below(part: str) -> set[str]:
        return {part}.union(*(below(other) for other in ALLOWED[part]))

    assert not set().union(*map(below, NUMBERS)) & set().union(*map(below, DIFFUSION))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def modules_read_on_import(path: Path, names: set[str]) -> set[str]:
    """Modules that importing the file at `path` reads: its imports outside of functions and of `if TYPE_CHECKING`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mezzotint."):
            home = (node.module or "").removeprefix("mezzotint.")
            inside = {f"{home}.{alias.name}" for alias in node.names}
            found |= inside if inside <= names else {home}
    return found - {module_name(path)}


def test_modules_have_no_circles() -> None:
    names = {module_name(path) for path in FILES}
    TopologicalSorter({module_name(path): modules_read_on_import(path, names) for path in FILES}).prepare()


def test_only_the_command_line_prints() -> None:
    for path in FILES:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not prints or part_of(path) == "cli", f"{path} prints in line {prints[0].lineno}"


def test_public_names_exist_and_are_sorted() -> None:
    assert mezzotint.__all__ == sorted(mezzotint.__all__)
    for name in mezzotint.__all__:
        assert getattr(mezzotint, name) is not None
        assert name in dir(mezzotint)


def test_the_main_verbs_are_public() -> None:
    verbs = {"load", "inspect", "quantize", "sample", "evaluate", "save_quantized", "load_quantized"}
    assert verbs <= set(mezzotint.__all__)
    assert all(callable(getattr(mezzotint, verb)) for verb in verbs)


def test_verbs_stay_callable_whatever_was_imported_before() -> None:
    """A submodule of the same name must not take the place of a function."""
    code = (
        "import importlib, pkgutil, mezzotint\n"
        "for module in pkgutil.iter_modules(mezzotint.__path__): importlib.import_module(f'mezzotint.{module.name}')\n"
        "for name in mezzotint.__all__: assert not hasattr(getattr(mezzotint, name), '__path__')\n"
        "import types\n"
        "bad = [n for n in mezzotint.__all__ if isinstance(getattr(mezzotint, n), types.ModuleType)]\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_optimization_finds_its_operators_when_nothing_was_imported_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import mezzotint.optimization"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        getattr(mezzotint, "nothing_of_the_kind")  # noqa: B009


def test_no_script_hides_a_package_that_a_dependency_looks_for() -> None:
    """`python benchmarks/x.py` puts that folder first on the path: a kernels.py there was taken for `kernels`."""
    script = SOURCE.parents[1] / "benchmarks" / "picture.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "same seeds" in done.stdout
