"""Packages import only themselves and the packages left of them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "experiment",
    "environments",
    "rollouts",
    "projections",
    "agents",
    "generative",
    "analysis",
    "findings",
    "panel",
)
ENTRY_SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


def imported_top_level_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def forbidden_imports(package: str, names: set[str]) -> set[str]:
    to_the_right = set(PACKAGES[PACKAGES.index(package) + 1 :])
    return names & (to_the_right | ENTRY_SCRIPTS | {"benchmarks", "tests"})


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_what_stands_left_of_it(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    offences = {
        str(path.relative_to(ROOT)): forbidden
        for path in files
        if (forbidden := forbidden_imports(package, imported_top_level_names(path)))
    }
    assert not offences


def test_an_import_to_the_right_is_recognised() -> None:
    assert forbidden_imports("rollouts", {"agents", "numpy"}) == {"agents"}
    assert not forbidden_imports("agents", {"rollouts", "torch"})
    assert forbidden_imports("panel", {"train"}) == {"train"}


def test_every_package_on_disk_is_in_the_order() -> None:
    on_disk = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert on_disk - {"benchmarks", "tests"} == set(PACKAGES)


def test_no_benchmark_hides_a_package() -> None:
    """Python looks in a script's own folder first, so `benchmarks/panel.py` would be `panel`."""
    assert not {path.stem for path in (ROOT / "benchmarks").glob("*.py")} & set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_only_the_rollout_store_opens_rollout_shards(package: str) -> None:
    """h5py is the store's affair: every other package reads rollouts through it."""
    for path in (ROOT / package).rglob("*.py"):
        if path.parent.name != "rollouts":
            assert "h5py" not in imported_top_level_names(path), path
