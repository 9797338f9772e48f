"""The smallest whole chain, run once for all tests that need its artefacts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ChainCommand = Callable[[Path], list[str]]


@pytest.fixture(scope="session")
def chain_command() -> ChainCommand:
    """The command that runs the `tiny` chain into FOLDER/results, as `make demo` runs the demo."""

    def command(folder: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
            *("--directory", str(folder), "--cores", "1", "--nolock", "--rerun-incomplete"),
            *("--config", "preset=tiny", "out=results"),
        ]

    return command


@pytest.fixture(scope="session")
def finished_chain(tmp_path_factory: pytest.TempPathFactory, chain_command: ChainCommand) -> Path:
    """Folder whose `results` hold every artefact of the tiny chain on real CoinRun."""
    folder = tmp_path_factory.mktemp("chain")
    result = subprocess.run(chain_command(folder), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder
