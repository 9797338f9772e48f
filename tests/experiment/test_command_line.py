from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro
import yaml

from experiment import command_line
from experiment.command_line import (
    HYPERPARAMS_FOLDER,
    apply_values,
    flag_of,
    load_preset,
    parse_command_line,
    parse_flags,
)
from experiment.errors import UserError

PRESETS = """
defaults:
  num_steps: 100
  optimiser: {rate: 0.5}
small:
  base: defaults
  num_steps: 3
sectioned:
  training: {num_steps: 8}
wrong:
  num_stepz: 3
"""


@dataclass(frozen=True)
class OptimiserConfig:
    rate: float = 0.1
    """Learning rate."""
    decay: float = 0.0
    """Weight decay."""


@dataclass(frozen=True)
class Config:
    param_name: str = "defaults"
    """Preset."""
    num_steps: int = 1
    """Steps to take."""
    optimiser: Annotated[OptimiserConfig, tyro.conf.arg(name="")] = field(
        default_factory=OptimiserConfig
    )
    report: Path | None = None
    """Report."""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    (tmp_path / "stage.yml").write_text(PRESETS)
    monkeypatch.setattr(command_line, "HYPERPARAMS_FOLDER", tmp_path)

    def run(*arguments: str, section: str | None = None) -> Config:
        return parse_command_line(
            Config, "Do it.", "param_name", "stage.yml", section, arguments=arguments
        )

    return run


def test_flags_override_presets_which_override_defaults(parse):
    assert parse() == Config("defaults", 100, OptimiserConfig(0.5, 0.0))
    assert parse("--decay", "2").optimiser == OptimiserConfig(0.5, 2.0)
    assert parse("--num_steps", "7").num_steps == 7
    assert parse("--report", "a.json").report == Path("a.json")


def test_a_preset_inherits_from_its_base(parse):
    assert parse("--param_name", "small") == Config("small", 3, OptimiserConfig(0.5, 0.0))


@pytest.mark.parametrize(
    "arguments", [("--param-name=small",), ("--param_name=small",), ("--param-name", "small")]
)
def test_flags_take_underscores_or_hyphens(parse, arguments):
    assert parse(*arguments, "--num-steps", "4") == Config("small", 4, OptimiserConfig(0.5))


def test_of_a_preset_given_twice_the_last_counts(parse):
    twice = parse("--param_name", "sectioned", "--param-name=small")
    assert (twice.param_name, twice.num_steps) == ("small", 3)


def test_a_section_of_a_preset(parse):
    assert parse("--param_name", "sectioned", section="training").num_steps == 8
    assert parse("--param_name", "small", section="training").num_steps == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--param_name", "huge"), "unknown preset 'huge': .*stage.yml has defaults, small"),
        (("--param_name", "wrong"), "unknown setting 'num_stepz' for Config"),
        (("--no_such_flag", "3"), "no.such.flag"),
        (("--num_steps", "many"), "many"),
    ],
)
def test_complaints_are_one_line(parse, arguments, expected):
    with pytest.raises(UserError, match=expected) as complaint:
        parse(*arguments)
    assert "\n" not in str(complaint.value)


def test_help_shows_docstrings_and_exits_cleanly(parse, capsys):
    with pytest.raises(SystemExit) as exit_request:
        parse("--help")
    assert exit_request.value.code == 0
    shown = capsys.readouterr().out
    assert "Steps to take." in shown
    assert "Learning rate." in shown
    assert "100" in shown


def test_values_build_nested_configs_and_tuples():
    @dataclass(frozen=True)
    class Sizes:
        sizes: tuple[int, ...] = ()
        optimiser: OptimiserConfig = OptimiserConfig()

    built = apply_values(Sizes, {"sizes": [1, 2], "optimiser": {"decay": 3.0}}, "a.yml")
    assert built == Sizes((1, 2), OptimiserConfig(0.1, 3.0))
    with pytest.raises(UserError, match=r"a\.yml: unknown setting 'momentum' for OptimiserConfig"):
        apply_values(Sizes, {"optimiser": {"momentum": 1}}, "a.yml")


def test_flags_without_presets():
    assert parse_flags(OptimiserConfig, "Tune.", arguments=["--rate", "3"]).rate == 3.0


@dataclass(frozen=True)
class Renamed:
    image: Annotated[float, tyro.conf.arg(name="loss_scale_obs")] = 1.0


def test_a_renamed_field_is_named_by_its_flag():
    assert flag_of(Renamed(), "image") == "--loss_scale_obs"
    assert flag_of(Config(), "optimiser") == "--optimiser"
    with pytest.raises(UserError, match=r"^--loss_scale_obs nan: expected a finite number"):
        parse_flags(Renamed, "Weigh.", arguments=["--loss_scale_obs", "nan"])


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_that_are_none_are_refused(number):
    @dataclass(frozen=True)
    class Nested:
        optimiser: OptimiserConfig = OptimiserConfig()
        amounts: tuple[float, ...] = ()

    for flag in ("--optimiser.rate", "--amounts"):
        with pytest.raises(
            UserError, match=f"{flag.rpartition('.')[2]} .*{number}: expected a fin"
        ):
            parse_flags(Nested, "Tune.", arguments=[f"{flag}={number}"])


def file_name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", sorted(HYPERPARAMS_FOLDER.glob("*.yml")), ids=file_name)
def test_every_preset_in_the_repository_loads(path):
    names = list(yaml.safe_load(path.read_text()))
    assert names
    for name in names:
        assert isinstance(load_preset(path.name, name), dict)
