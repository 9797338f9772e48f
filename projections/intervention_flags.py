"""The flags by which a command intervenes in the agent's hidden state."""

from dataclasses import dataclass, replace
from pathlib import Path

from experiment.errors import UserError
from projections.controls import ControlType, MeasuredNorm, RandomDirections, SignFlip, Spared
from projections.directions import DirectionChoice, Directions, DirectionType, load_directions
from projections.intervention import InterventionChain, MovableIntervention
from projections.interventions import (
    ActsOn,
    Add,
    AmountUnit,
    Clamp,
    DirectionIntervention,
    Rule,
    Scale,
    Swap,
)
from projections.steps import StepList, Steps, parse_steps

DEFAULT_PROJECTIONS = Path("analysis/hx_analysis_precomp")
NAMES_OF_FLAGS = "swap_directions_from/to, --scale_directions, --add_directions, --clamp_directions"
"""For messages on interventions as a whole."""
_FIRST_FLAGS = ("swap_directions_from", "scale_directions", "add_directions", "clamp_directions")
_SECOND_FLAGS = ("swap_directions_to", "scale_factors", "add_amounts", "clamp_values")


@dataclass(frozen=True)
class InterventionConfig:
    """What to do to directions of the agent's hidden state.

    What is asked for happens in this order: swap, scale, add, clamp. The unmodified twin of the
    recording is written beside it, to a folder of the same name with `_twin` added.
    """

    swap_directions_from: tuple[int, ...] = ()
    """Directions to redirect or drop, e.g. `10 5`."""
    swap_directions_to: tuple[int | None, ...] = ()
    """For each of them the direction that receives what it loses, or None to drop it, e.g.
    `12 None`. An exchange of two directions needs both pairs."""
    swap_on: ActsOn = "updates"
    """Redirect what each step adds to the state (updates), or the state itself (states)."""
    scale_directions: tuple[int, ...] = ()
    """Directions to strengthen or weaken."""
    scale_factors: tuple[float, ...] = ()
    """Factor of each; 0 drops it, −1 turns it round."""
    scale_on: ActsOn = "updates"
    """Multiply what each step adds to the state (updates), or the state's coordinate (states)."""
    add_directions: tuple[int, ...] = ()
    """Directions to push along."""
    add_amounts: tuple[float, ...] = ()
    """How far each, at every chosen step."""
    add_once: bool = False
    """Push at the first chosen step only."""
    clamp_directions: tuple[int, ...] = ()
    """Directions to hold."""
    clamp_values: tuple[float, ...] = ()
    """At which coordinate each; in standard deviations, so many of them from its mean."""
    amount_unit: AmountUnit = "deviation"
    """Unit of --add_amounts and --clamp_values: standard deviations of the coordinate over the
    states that the projection was fitted on, or the coordinate's own unit."""
    intervention_steps: tuple[str, ...] = ()
    """When to intervene, by row of the recording, counted from 0: steps, e.g. `2 5`, or a range
    that excludes its end, e.g. `2 to 5` or `2 to end`. By default always. In a branch, row 0 is
    the branch point."""
    direction_type: DirectionType = "ica"
    """What a direction is: a component of the projection (ica, nmf), one of its standardised
    principal components (pca), a single hidden unit (unit), a row of a file (file)."""
    projection: Path | None = None
    """Fitted projection that defines the directions, made by hidden_analysis_precompute.py; by
    default analysis/hx_analysis_precomp/projection, or projection_nmf for --direction_type nmf.
    With unit and file it is needed for standard deviations only."""
    directions_file: Path | None = None
    """`.npy` of (num_directions, hidden_dim) for --direction_type file, one direction in each row;
    a coordinate counts multiples of its row."""
    intervention_control: ControlType = "none"
    """Record a control in place of the intervention described by the other flags: its changes
    with the sign reversed (sign_flip), or changes as large along random directions, drawn evenly
    (random) or as the hidden states vary (random_like_states)."""
    control_seed: int = 0
    """Which random directions."""
    control_spares: tuple[int, ...] = ()
    """Directions whose coordinates random controls leave as they are."""
    control_norm_of: Path | None = None
    """Recording of the intervention that is controlled: each change of a random control gets the
    mean norm of the changes there. By default it gets the norm of the change that the intervention
    would make to the control's state, which is the same for --add_directions."""

    @property
    def is_asked_for(self) -> bool:
        """Whether any direction is named."""
        return any(getattr(self, name) for name in (*_FIRST_FLAGS, *_SECOND_FLAGS))


def make_intervention(
    config: InterventionConfig, hidden_slice: slice
) -> MovableIntervention | None:
    """The intervention that the flags describe, before any control; None when they ask for none.

    Args:
        config: the flags.
        hidden_slice: the part of the agent's flat state that holds its hidden state.

    Raises:
        UserError: flags that do not go together, directions that cannot be loaded, or unusable
            numbers.
    """
    if not config.is_asked_for:
        _require_nothing_else(config)
        return None
    steps = parse_steps(config.intervention_steps, "--intervention_steps")
    _require_a_use(config)
    rules = _rules(config)
    directions = load_directions(direction_choice(config), _hidden_dim(hidden_slice))
    links = [
        DirectionIntervention(rule, directions, hidden_slice, _steps_of(rule, config, steps))
        for rule in rules
    ]
    return links[0] if len(links) == 1 else InterventionChain(links)


def direction_choice(config: InterventionConfig) -> DirectionChoice:
    """Where the flags let directions come from."""
    projection, file = config.projection, config.directions_file
    if projection is None and config.direction_type in ("ica", "pca", "nmf"):
        name = "projection_nmf" if config.direction_type == "nmf" else "projection"
        projection = DEFAULT_PROJECTIONS / name
    return DirectionChoice(
        config.direction_type,
        None if projection is None else str(projection),
        None if file is None else str(file),
    )


def make_control(
    config: InterventionConfig,
    tested: MovableIntervention,
    hidden_slice: slice,
    norm: MeasuredNorm | None = None,
) -> MovableIntervention:
    """What the flags put in place of the tested intervention: a control, or that itself.

    Args:
        config: the flags.
        tested: what `make_intervention` made of them.
        hidden_slice: the part of the agent's flat state that holds its hidden state.
        norm: of the tested intervention's changes, where it was measured.

    Raises:
        UserError: no projection tells how the hidden states vary, or --control_spares names a
            direction that does not exist.
    """
    if config.intervention_control == "none":
        return tested
    if config.intervention_control == "sign_flip":
        return SignFlip(tested)
    components = None
    if config.intervention_control == "random_like_states":
        components = _principal_components(config, hidden_slice)
    spared = _spared(config, hidden_slice)
    return RandomDirections(tested, hidden_slice, config.control_seed, components, norm, spared)


def require_steps_within(config: InterventionConfig, num_rows: int | None, limit: str) -> None:
    """Raise `UserError` where a recording of `num_rows` rows ends before any chosen step.

    Args:
        config: the flags.
        num_rows: None where it is not known beforehand.
        limit: the flag that limits the rows, with its value.
    """
    steps = parse_steps(config.intervention_steps, "--intervention_steps")
    named = steps.steps if isinstance(steps, StepList) else (steps.first,)
    if num_rows is not None and max(named) >= num_rows:
        raise UserError(
            f"--intervention_steps {' '.join(config.intervention_steps)}: step {max(named)} does "
            f"not exist, rows are 0 to {num_rows - 1} ({limit})"
        )


def twin_folder(folder: Path) -> Path:
    """Where the unmodified twin of an intervened recording goes: beside it."""
    if folder.name in ("", ".."):
        folder = folder.resolve()
    return folder.with_name(f"{folder.name}_twin")


def _rules(config: InterventionConfig) -> list[Rule]:
    """Those asked for, in the order in which they act."""
    unit = config.amount_unit
    rules = (
        Swap(config.swap_directions_from, config.swap_directions_to, config.swap_on),
        Scale(config.scale_directions, config.scale_factors, config.scale_on),
        Add(config.add_directions, config.add_amounts, unit),
        Clamp(config.clamp_directions, config.clamp_values, unit),
    )
    flags = zip(rules, _FIRST_FLAGS, _SECOND_FLAGS, strict=True)
    return [rule for rule, *names in flags if any(getattr(config, name) for name in names)]


def _steps_of(rule: Rule, config: InterventionConfig, steps: Steps) -> Steps:
    if isinstance(rule, Add) and config.add_once:
        return StepList((steps.first,))
    return steps


def _require_nothing_else(config: InterventionConfig) -> None:
    for name, field in InterventionConfig.__dataclass_fields__.items():
        if getattr(config, name) != field.default:
            raise UserError(f"--{name}: no intervention is asked for (--{NAMES_OF_FLAGS})")


def _require_a_use(config: InterventionConfig) -> None:
    if config.add_once and not config.add_directions:
        raise UserError("--add_once: goes with --add_directions, which is not given")
    is_random = config.intervention_control.startswith("random")
    for name in ("control_norm_of", "control_spares"):
        if getattr(config, name) and not is_random:
            raise UserError(
                f"--{name}: goes with --intervention_control random or random_like_states, "
                f"found {config.intervention_control}"
            )


def _spared(config: InterventionConfig, hidden_slice: slice) -> Spared | None:
    if not config.control_spares:
        return None
    directions = load_directions(direction_choice(config), _hidden_dim(hidden_slice))
    count = directions.coordinates.num_directions
    for direction in config.control_spares:
        if not 0 <= direction < count:
            raise UserError(
                f"--control_spares {direction}: expected a direction from 0 to {count - 1}"
            )
    return Spared(directions, config.control_spares)


def _principal_components(config: InterventionConfig, hidden_slice: slice) -> Directions:
    choice = direction_choice(config)
    if choice.projection is None:
        raise UserError(
            "--intervention_control random_like_states: needs a --projection, which tells how the "
            "hidden states vary"
        )
    choice = replace(choice, direction_type="pca", directions_file=None)
    return load_directions(choice, _hidden_dim(hidden_slice))


def _hidden_dim(hidden_slice: slice) -> int:
    return hidden_slice.stop - (hidden_slice.start or 0)
