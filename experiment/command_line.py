"""Typed command lines: presets from YAML as defaults, flags on top, one-line errors."""

import contextlib
import dataclasses
import io
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import tyro
import yaml

from experiment.errors import USER_ERROR_EXIT_CODE, UserError

PROJECT_ROOT = Path(__file__).parent.parent
HYPERPARAMS_FOLDER = PROJECT_ROOT / "hyperparams"

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def parse_command_line(
    config_class: type[Config],
    description: str,
    preset_flag: str,
    preset_file: str,
    preset_section: str | None = None,
    arguments: Sequence[str] | None = None,
) -> Config:
    """Parse flags into `config_class`, with the defaults taken from a named preset.

    The preset's name is the value of `--<preset_flag>`, a field of `config_class`. Flags may be
    written with underscores or hyphens. Precedence: dataclass defaults, preset, flags.

    Args:
        config_class: frozen dataclass; nested dataclasses are allowed.
        description: first paragraph of `--help`.
        preset_flag: name of the field that names the preset.
        preset_file: YAML file in `hyperparams/`: preset name to values, nested as the dataclass.
        preset_section: key inside the preset that holds this command's values, if any.
        arguments: command line without the program name; `sys.argv[1:]` by default.

    Raises:
        UserError: unknown preset or flag, or a value of the wrong type.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    fallback = next(
        f.default
        for f in dataclasses.fields(config_class)
        if f.name == preset_flag  # type: ignore[arg-type]
    )
    preset_name = _find_flag(arguments, preset_flag) or fallback
    values = load_preset(preset_file, str(preset_name))
    if preset_section is not None:
        values = values.get(preset_section) or {}
    default = apply_values(config_class, {**values, preset_flag: preset_name}, preset_file)
    return parse_flags(config_class, description, default, arguments)


def parse_flags(
    config_class: type[Config],
    description: str,
    default: Config | None = None,
    arguments: Sequence[str] | None = None,
) -> Config:
    """Parse flags into `config_class`; tyro's multi-line complaints become one `UserError` line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config = (
                tyro.cli(config_class, description=description, args=arguments)
                if default is None
                else tyro.cli(
                    config_class, description=description, default=default, args=arguments
                )
            )
    except SystemExit as exit_request:
        if exit_request.code != USER_ERROR_EXIT_CODE:
            raise
        words = re.sub(
            r"[^\x20-\x7e]|-{3,}", " ", re.sub(r"\x1b\[[0-9;]*m", "", complaint.getvalue())
        )
        raise UserError(" ".join(words.split())) from None
    _require_finite(config)
    return config


def _require_finite(config: "DataclassInstance") -> None:
    """Raise `UserError` naming the flag where a number is none, or infinite."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            _require_finite(value)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                flag = flag_of(config, field.name)
                raise UserError(f"{flag} {number}: expected a finite number")


def flag_of(config: "DataclassInstance", name: str) -> str:
    """The flag that sets the field `name`, which an annotation may call otherwise."""
    hint = get_type_hints(type(config), include_extras=True)[name]
    named = (getattr(annotation, "name", None) for annotation in getattr(hint, "__metadata__", ()))
    return f"--{next(filter(None, named), name)}"


def load_preset(preset_file: str, preset_name: str) -> dict[str, Any]:
    """Values of one preset from a YAML file in `hyperparams/`.

    A preset may name another as its `base`, whose values it overrides.

    Raises:
        UserError: the file has no preset of that name.
    """
    presets = yaml.safe_load((HYPERPARAMS_FOLDER / preset_file).read_text())
    if preset_name not in presets:
        known = ", ".join(presets)
        raise UserError(f"unknown preset {preset_name!r}: hyperparams/{preset_file} has {known}")
    values = dict(presets[preset_name] or {})
    base = values.pop("base", None)
    return _merge(load_preset(preset_file, base), values) if base else values


def apply_values(config_class: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Build `config_class` from nested `values`; raises `UserError` for an unknown name."""
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{source}: unknown setting {name!r} for {config_class.__name__}")
        nested = _nested_dataclass(fields[name])
        if nested is not None and isinstance(value, Mapping):
            value = apply_values(nested, value, source)
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return config_class(**arguments)


def _nested_dataclass(field: dataclasses.Field[Any]) -> type | None:
    if field.default_factory is not dataclasses.MISSING and isinstance(field.default_factory, type):
        factory = field.default_factory
        return factory if dataclasses.is_dataclass(factory) else None
    default = field.default
    return type(default) if dataclasses.is_dataclass(default) else None


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in override.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            value = _merge(merged[name], value)
        merged[name] = value
    return merged


def _find_flag(arguments: Sequence[str], name: str) -> str | None:
    """Value of a flag; of one given twice the last, as everywhere on the command line."""
    spellings = (f"--{name}", f"--{name.replace('_', '-')}")
    found = None
    for position, argument in enumerate(arguments):
        flag, separator, value = argument.partition("=")
        if flag in spellings:
            if separator:
                found = value
            elif position + 1 < len(arguments):
                found = arguments[position + 1]
    return found
