"""Agents that the user's code makes: `module:factory`, `FILE.py:factory`, with `?key=value`.

Importing the module runs its code. What a person types is therefore run; what a dataset names is
run only where it is a module in the working folder (`require_own_code`).
"""

import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from agents.identity import hash_weights
from agents.probe import require_agent
from agents.protocol import Agent
from agents.step_only import StepOnlyAgent, SteppingAgent
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from experiment.files import hash_bytes

DEFAULT_OBS_SHAPE = (64, 64, 3)
LEAST = ("state_dim", "hidden_slice", "num_actions", "initial_state", "step")
PARTS = ("embed", "advance", "read_out")
_REFERENCE = re.compile(
    r"(?P<module>[A-Za-z_]\w*(?:\.\w+)*|[^?]+\.py):(?P<factory>[A-Za-z_]\w*)(?:\?(?P<query>.*))?"
)
_PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class FactoryReference:
    """`module:factory?key=value`, taken apart."""

    module: str
    """Dotted name, or path of a `.py` file."""
    factory: str
    arguments: dict[str, Any]
    query: str

    @property
    def lasting(self) -> str:
        """The same reference; a file is named by its absolute path."""
        module = str(Path(self.module).resolve()) if self.is_file else self.module
        return f"{module}:{self.factory}" + (f"?{self.query}" if self.query else "")

    @property
    def is_file(self) -> bool:
        """Whether `module` is the path of a file."""
        return self.module.endswith(".py")


@dataclass(frozen=True)
class ForeignAgent:
    """An agent that is none of ours, checked and placed."""

    policy: Agent
    hash: str
    env_steps: int
    """Environment steps it was trained for; 0 where it does not say."""


def parse_reference(reference: str) -> FactoryReference | None:
    """Take a reference apart; None when it has not the form of one.

    Raises:
        UserError: what follows the question mark is not `key=value&...`.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return None
    query = match["query"] or ""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise UserError(f"{reference}: after the ? key=value&key=value is expected") from None
    arguments = {key: _parse_value(value) for key, value in pairs}
    return FactoryReference(match["module"], match["factory"], arguments, query)


def names_code(reference: str) -> bool:
    """Whether `reference` is `module:factory`, and no file has that name."""
    return not Path(reference).exists() and parse_reference(reference) is not None


def make_agent(reference: FactoryReference, environment: EnvironmentSpec | None) -> Any:
    """Import the module and call the factory; `environment` is passed where a parameter asks.

    Raises:
        UserError: no such module or factory, or arguments that the factory does not take.
    """
    module = _import_file(reference) if reference.is_file else _import_module(reference)
    factory = getattr(module, reference.factory, None)
    if not callable(factory):
        raise UserError(f"{reference.lasting}: {module.__name__} has no function of that name")
    if not _is_defined_in(factory, module):
        raise UserError(f"{reference.lasting}: the function is defined elsewhere; name it there")
    return _call(factory, reference, environment)


def finish_agent(
    made: Any,
    name: str,
    environment: EnvironmentSpec | None,
    device: torch.device | str = "cpu",
) -> ForeignAgent:
    """Complete, place, freeze and check what a factory made.

    Args:
        made: an `Agent` or a `SteppingAgent`.
        name: what the user called it, for complaints.
        environment: what it is to play in; its frames are those of the check.
        device: where it is to compute.

    Raises:
        UserError: it lacks something, breaks a promise of the protocol, or has no identity.
    """
    missing = [attribute for attribute in LEAST if not hasattr(made, attribute)]
    if missing:
        raise UserError(
            f"{name}: not an agent; the {type(made).__name__} that the factory made lacks "
            f"{', '.join(missing)} (docs/agents.md shows an example)"
        )
    if not isinstance(made.hidden_slice, slice):
        raise UserError(f"{name}: hidden_slice is {made.hidden_slice!r}; a slice is expected")
    _place(made, device, name)
    is_whole = all(hasattr(made, part) for part in PARTS)
    policy = cast(Agent, made) if is_whole else StepOnlyAgent(cast(SteppingAgent, made))
    shape = getattr(made, "obs_shape", None) or (
        environment.obs_shape if environment is not None else DEFAULT_OBS_SHAPE
    )
    require_agent(policy, tuple(shape), name, device)
    return ForeignAgent(policy, _identity(made, name), int(getattr(made, "env_steps", 0)))


def require_own_code(reference: FactoryReference, source: str, flag: str = "--agent_file") -> None:
    """Refuse to run code that a dataset names, unless it is a module in the working folder.

    A dataset may come from anywhere. The user's own modules may be run; libraries, whose functions
    can do anything when somebody else chooses their arguments, and files elsewhere may not.

    Raises:
        UserError: naming `source`, the dataset as the user named it, and `flag`, by which the user
            may name the agent.
    """
    file, here = _source_of(reference), Path.cwd().resolve()
    project_packages = {init.parent for init in _PROJECT.glob("*/__init__.py")}
    is_ours = file is not None and any(map(file.is_relative_to, project_packages))
    # `pkg/__init__.py` for a package, `module.py` for a module.
    is_here = file is not None and here in (file.parent, file.parent.parent)
    if is_ours or not is_here:
        raise UserError(
            f"{source}: names an agent made by code outside the working folder, which is not run "
            f"on its word; if you trust it, name it: {flag} '{reference.lasting}'"
        )


def _source_of(reference: FactoryReference) -> Path | None:
    """File that defines a module's top-level package, found without running anything."""
    if reference.is_file:
        return Path(reference.module).resolve()
    _add_to_path(Path.cwd())
    spec = importlib.util.find_spec(reference.module.split(".")[0])
    return Path(spec.origin).resolve() if spec and spec.has_location and spec.origin else None


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _import_module(reference: FactoryReference) -> ModuleType:
    _add_to_path(Path.cwd())
    try:
        return importlib.import_module(reference.module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if reference.module == missing or reference.module.startswith(f"{missing}."):
            raise UserError(
                f"{reference.lasting}: no agent file of that name, and no module {missing} in "
                f"{Path.cwd()} or among the installed ones"
            ) from None
        raise UserError(f"{reference.lasting}: it imports {missing}, which is missing") from None


def _import_file(reference: FactoryReference) -> ModuleType:
    file = Path(reference.module).resolve()
    if not file.is_file():
        raise UserError(f"{reference.module}: no such file")
    _add_to_path(file.parent)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    earlier = sys.modules.get(spec.name)
    if earlier is not None and getattr(earlier, "__file__", None) != str(file):
        raise UserError(f"{reference.module}: rename it; there is a module {file.stem} already")
    # Dataclasses and the like look their module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{reference.lasting}: it imports {error.name}, which is missing") from None
    return module


def _add_to_path(folder: Path) -> None:
    """At the end, so that no file of the user's hides an installed module."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _is_defined_in(factory: Callable[..., Any], module: ModuleType) -> bool:
    origin = getattr(factory, "__module__", None) or ""
    return origin.split(".")[0] == module.__name__.split(".")[0]


def _call(
    factory: Callable[..., Any], reference: FactoryReference, environment: EnvironmentSpec | None
) -> Any:
    arguments = dict(reference.arguments)
    signature = inspect.signature(factory)
    if "environment" in signature.parameters:
        if environment is None:
            raise UserError(
                f"{reference.lasting}: it asks for an environment; name one by --env_name"
            )
        arguments["environment"] = environment
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"{reference.lasting}: {reference.factory}{signature} {error}; arguments are given as "
            "module:factory?key=value"
        ) from None
    return factory(**arguments)


def _place(agent: Any, device: torch.device | str, name: str) -> None:
    if isinstance(agent, nn.Module):
        agent.to(device).requires_grad_(False).eval()
    elif hasattr(agent, "to"):
        agent.to(device)
    elif torch.device(device).type != "cpu":
        raise UserError(f"{name}: it has no method to(device); use --device cpu")


def _identity(agent: Any, name: str) -> str:
    """The declared hash, else one over class, dimensions and `state_dict()`."""
    declared = getattr(agent, "hash", None)
    if isinstance(declared, str) and declared:
        return hash_bytes(b"declared ", declared.encode())
    weights = agent.state_dict() if hasattr(agent, "state_dict") else {}
    if not weights or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise UserError(
            f"{name}: it has no identity; a state_dict() of tensors, or an attribute `hash` (a "
            "string that changes whenever the agent does) is expected"
        )
    hidden = agent.hidden_slice
    shape = {
        "class": type(agent).__qualname__,
        "state_dim": agent.state_dim,
        "hidden_slice": [hidden.start, hidden.stop],
        "num_actions": agent.num_actions,
    }
    return hash_weights(shape, weights)
