"""Joins the page's ES modules into one classic script.

A browser asks for one file in place of fifty, and runs it from a file as well: a page that was
opened from one has an origin of its own, so that its modules may import nothing.
Only what the page's modules use is understood: named imports from and named exports of the same
folder. Anything else is an error and not a guess.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_NAMES = r'\{([^{}]*)\} from "\./([\w.]+)";\n'
_IMPORT = re.compile(rf"^import {_NAMES}", re.MULTILINE)
_REEXPORT = re.compile(rf"^export {_NAMES}", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:const|function|class) (\w+))", re.MULTILINE)
_LEFT_OVER = re.compile(r"^\s*(?:import|export)\b.*$|\bimport\(.*$", re.MULTILINE)


class BundleError(ValueError):
    """A module has something in it that cannot be joined."""


def bundle_modules(
    folder: Path, entries: Sequence[str], replacements: Mapping[str, str] | None = None
) -> str:
    """The text of one script that runs the entries in order, each module once.

    Args:
        folder: where the modules lie.
        entries: file names of the modules to run.
        replacements: modules that take the place of others, by file name.

    Raises:
        BundleError: modules import each other in a circle, or by a form that is not understood.
    """
    bundle = _Bundle(folder, dict(replacements or {}))
    for entry in entries:
        bundle.add(entry)
    body = "\n".join(bundle.parts)
    return f'(() => {{\n"use strict";\n{body}}})();\n'


class _Bundle:
    """Modules in an order in which each comes after those it imports."""

    def __init__(self, folder: Path, replacements: dict[str, str]) -> None:
        self._folder = folder
        self._replacements = replacements
        self._open: list[str] = []
        self._done: set[str] = set()
        self.parts: list[str] = []

    def add(self, file: str) -> str:
        """Add a module with all that it imports, unless it is there; the variable that holds it."""
        file = self._replacements.get(file, file)
        if file in self._open:
            raise BundleError(f"{' imports '.join([*self._open, file])}: a circle")
        if file not in self._done:
            self._open.append(file)
            part = self._join(file, (self._folder / file).read_text(encoding="utf-8"))
            self._open.pop()
            self._done.add(file)
            self.parts.append(part)
        return _variable(file)

    def _join(self, file: str, text: str) -> str:
        exported = [*_EXPORT.findall(text)]

        def import_names(match: re.Match[str]) -> str:
            names = match[1].replace(" as ", ": ")
            return f"const {{{names}}} = {self.add(match[2])};\n"

        def reexport_names(match: re.Match[str]) -> str:
            source = self.add(match[2])
            names = [name.strip() for name in match[1].split(",") if name.strip()]
            exported.extend(f"{name}: {source}.{name}" for name in names)
            return ""

        text = _REEXPORT.sub(reexport_names, _IMPORT.sub(import_names, text))
        text = _EXPORT.sub("", text)
        if left_over := _LEFT_OVER.search(text):
            raise BundleError(f"{file}: {left_over[0].strip()!r} cannot be joined")
        own = f"{text}return {{ {', '.join(exported)} }};"
        return f"const {_variable(file)} = (() => {{\n{own}\n}})();\n"


def _variable(file: str) -> str:
    return "module_" + file.removesuffix(".js")
