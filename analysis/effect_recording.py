"""Records an intervention, its unmodified twin and its controls, in simulation and in reality.

Every *variant* begins at the same rows of real episodes: in the simulator as samples that these
rows set up, in the real environment as branches from them. Sample i and branch i are the same
start, and share their draws with all variants of their world; so variants differ by what is done
to the agent's state alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from agents.branching import BranchConfig, BranchPlan, check_branches, record_branches
from agents.checkpoint import LoadedAgent
from agents.intervening import UNTOUCHED, Intervening
from agents.intervention_choice import load_intervention
from agents.intervention_strength import InterventionStrength, write_strength
from agents.recording_config import RecordingConfig
from analysis.effect_names import RANDOM_PREFIX, SIGN_FLIP, TESTED, TWIN, WORLDS, World
from environments.factory import DEFAULT_NUM_THREADS
from experiment.counts import at_most_available
from experiment.errors import UserError, require_at_least
from experiment.randomness import keyed_permutation
from generative.checkpoint import LoadedSimulator
from generative.sample_starts import InformedStarts, Starts
from generative.sampling import SamplingConfig, SamplingPlan, missing_samples, record_samples
from generative.types import LatentChoice
from projections.directions import load_directions
from projections.intervention import MovableIntervention
from projections.intervention_flags import InterventionConfig, direction_choice
from rollouts.independent_units import levels_of_episodes
from rollouts.store import RolloutDataset


@dataclass(frozen=True)
class EffectRecordingConfig:
    """How much is recorded of every variant, and which controls there are."""

    num_starts: int = 128
    """Starts that all variants share: rows of recorded episodes, drawn at random."""
    num_sim_steps: int = 10
    """Simulated rows from each start; effects by row are measured over as many real ones."""
    real_steps: int = 64
    """Real decisions from each start, for returns; at least --num_sim_steps. An episode may end
    before."""
    num_random_controls: int = 4
    """Random directions, each a control of its own. With R of them, an effect without any meaning
    is larger than all of theirs once in R + 1 times."""
    sign_flip: bool = True
    """Whether the changes the other way round are a control too, where they make sense."""
    random_control: Literal["random", "random_like_states"] = "random_like_states"
    """How they are drawn: evenly, or as the hidden states vary."""
    control_components: int | None = None
    """Components that a random control may move, at most half of those that the intervention does
    not name: for each control others of them, in turn. All others keep their coordinates in that
    control, and can be compared with what the intervention does to them. None for no limit."""
    agent_actions: LatentChoice = "sample"
    """How the agent picks its actions, in both worlds: draws, which a variant shares with its
    twin, or the most probable action (mode)."""
    real: bool = True
    """Whether to record branches of the real environment too."""
    batch_size: int | None = None
    """Samples simulated together; changes the speed only."""
    num_envs: int = 64
    """Real environments stepped together; changes the speed only."""
    num_threads: int = DEFAULT_NUM_THREADS
    """Threads that step them."""

    def __post_init__(self) -> None:
        require_at_least(self, "num_starts", "num_sim_steps", "num_random_controls", "num_envs")
        if self.control_components is not None:
            require_at_least(self, "control_components", least=0)
        if self.real_steps < self.num_sim_steps:
            raise UserError(
                f"--real_steps {self.real_steps}: at least --num_sim_steps {self.num_sim_steps} "
                "are needed"
            )


@dataclass(frozen=True, eq=False)
class EffectInputs:
    """What is recorded, by whom, from where, and where to."""

    agent: LoadedAgent
    simulator: LoadedSimulator
    source: RolloutDataset
    """Real rollouts, whose rows are the starts."""
    intervention: InterventionConfig
    recording: EffectRecordingConfig
    folder: Path
    """The variants go to `folder/simulated/VARIANT` and `folder/real/VARIANT`."""
    seed: int
    """Decides starts and draws; random control r has the seed r."""
    device: torch.device

    def variant_folder(self, world: World, variant: str) -> Path:
        """Where a variant of a world is recorded."""
        return self.folder / world / variant

    @property
    def worlds(self) -> tuple[World, ...]:
        """Where variants are recorded."""
        return WORLDS if self.recording.real else WORLDS[:1]

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the controls."""
        randoms = (f"{RANDOM_PREFIX}{r}" for r in range(self.recording.num_random_controls))
        can_flip = self.recording.sign_flip and not reads_the_state(self.intervention)
        flip = (SIGN_FLIP,) if can_flip else ()
        return (*flip, *randoms)

    def _spared_by(self, number: int) -> tuple[int, ...]:
        """Components that a random control leaves alone; none without --control_components."""
        num_moved, config = self.recording.control_components, self.intervention
        if num_moved is None:
            return ()
        hidden = self.agent.policy.hidden_slice
        directions = load_directions(direction_choice(config), hidden.stop - (hidden.start or 0))
        count = directions.coordinates.num_directions
        return spared_by_control(named_directions(config), count, num_moved, number, self.seed)

    def make_variant(self, world: World, variant: str) -> MovableIntervention | None:
        """The intervention of a variant; None for the twin.

        Random controls get the mean norm that the tested intervention had in the same world, so
        that must be recorded before.
        """
        if variant == TWIN:
            return None
        config = self.intervention
        if variant == SIGN_FLIP:
            config = replace(config, intervention_control="sign_flip")
        elif variant.startswith(RANDOM_PREFIX):
            # A push is as large in every state; anything else must be measured, since states part.
            is_push = bool(config.add_directions) and not _follows_the_state(config)
            norm_of = None if is_push else self.variant_folder(world, TESTED)
            number = int(variant.removeprefix(RANDOM_PREFIX))
            config = replace(
                config,
                intervention_control=self.recording.random_control,
                control_seed=number,
                control_spares=self._spared_by(number),
                control_norm_of=norm_of,
            )
        return load_intervention(config, self.agent, self.device)


def named_directions(config: InterventionConfig) -> set[int]:
    """Directions that the flags name."""
    pairs = (config.swap_directions_from, config.swap_directions_to, config.scale_directions)
    named = (*pairs, config.add_directions, config.clamp_directions)
    return {direction for flag in named for direction in flag if direction is not None}


def spared_by_control(
    named: set[int], num_directions: int, num_moved: int, number: int, seed: int
) -> tuple[int, ...]:
    """Directions that random control `number` leaves alone: the named ones, and most others.

    The others take turns in a random order: each control moves `num_moved` of them, or half of
    them where these are fewer.
    """
    others = [d for d in range(num_directions) if d not in named]
    num_moved = min(num_moved, len(others) // 2)
    if num_moved == 0:
        return tuple(range(num_directions))
    order = keyed_permutation(seed, "spared", np.arange(len(others)), len(others), min(named))
    turn = np.arange(number * num_moved, (number + 1) * num_moved) % len(others)
    moved = {others[i] for i in order[turn].tolist()}
    return tuple(d for d in range(num_directions) if d not in moved)


def reads_the_state(config: InterventionConfig) -> bool:
    """Whether the size of the change depends on where the state is, not on how it moves.

    The opposite change moves the state further from where the tested intervention would take it,
    which makes the next change larger: a sign-flipped control would run away, so there is none.
    """
    return bool(
        config.clamp_directions
        or (config.swap_directions_from and config.swap_on == "states")
        or (config.scale_directions and config.scale_on == "states")
    )


def _follows_the_state(config: InterventionConfig) -> bool:
    return bool(config.clamp_directions or config.swap_directions_from or config.scale_directions)


@dataclass(frozen=True, eq=False)
class WorldRecordings:
    """All variants that were recorded in one world."""

    datasets: Mapping[str, RolloutDataset]
    """By variant, the twin among them; each has the same episode ids."""
    interventions: Mapping[str, MovableIntervention]
    """By variant, without the twin."""
    strengths: Mapping[str, InterventionStrength]
    """By variant, without the twin."""


def sampling_plan(inputs: EffectInputs, variant: str) -> SamplingPlan:
    """How a variant is simulated: from as many starts as are asked for, or as there are."""
    recording = inputs.recording
    windows = InformedStarts(inputs.source, inputs.simulator, inputs.seed)
    assert windows.num_available is not None
    return SamplingPlan(
        inputs.simulator,
        inputs.agent,
        windows,
        SamplingConfig(
            max_samples=min(recording.num_starts, windows.num_available),
            num_sim_steps=recording.num_sim_steps,
            batch_size=recording.batch_size,
            agent_actions=recording.agent_actions,
            seed=inputs.seed,
        ),
        intervention=inputs.make_variant("simulated", variant),
        twin_dataset="" if variant == TWIN else TWIN,
    )


def branch_plan(inputs: EffectInputs, variant: str, starts: Starts) -> BranchPlan:
    """How a variant is recorded in the real environment, from the same starts."""
    recording = inputs.recording
    intervention = inputs.make_variant("real", variant)
    return BranchPlan(
        inputs.agent,
        inputs.source,
        BranchConfig(
            branch_from=inputs.source.folder,
            episode=tuple(starts.source_episode_id.tolist()),
            step=tuple(starts.source_row.tolist()),
            branch_steps=recording.real_steps,
        ),
        RecordingConfig(
            num_envs=recording.num_envs,
            num_threads=recording.num_threads,
            greedy=recording.agent_actions == "mode",
            with_state=False,
            seed=inputs.seed,
        ),
        UNTOUCHED if intervention is None else Intervening(intervention, TWIN),
    )


def check_variants(inputs: EffectInputs) -> None:
    """Raise `UserError` for what cannot be recorded, before anything is; say where there are fewer
    starts than asked for."""
    plans = {variant: sampling_plan(inputs, variant) for variant in (TWIN, TESTED)}
    at_most_available(inputs.recording.num_starts, plans[TWIN].num_samples, "--num_starts")
    for variant, plan in plans.items():
        missing_samples(plan, inputs.variant_folder("simulated", variant))
    if inputs.recording.real:
        starts = _starts(plans[TWIN])
        for variant in plans:
            folder = inputs.variant_folder("real", variant)
            check_branches(branch_plan(inputs, variant, starts), folder)


def record_variants(inputs: EffectInputs) -> dict[World, WorldRecordings]:
    """Record what `inputs.folder` lacks of all variants; the tested one before its controls."""
    variants = (TWIN, TESTED, *inputs.controls)
    starts = _starts(sampling_plan(inputs, TWIN))
    recordings: dict[World, WorldRecordings] = {}
    for world in inputs.worlds:
        for number, variant in enumerate(variants, start=1):
            print(f"{world}: {variant} ({number} of {len(variants)} recordings)", flush=True)
            folder = inputs.variant_folder(world, variant)
            if world == "simulated":
                record_samples(sampling_plan(inputs, variant), folder)
            else:
                record_branches(branch_plan(inputs, variant, starts), folder, inputs.device)
        recordings[world] = _open_world(inputs, world, variants)
    return recordings


def _starts(plan: SamplingPlan) -> Starts:
    with torch.no_grad():
        return plan.source.starts(plan.simulator.simulator, np.arange(plan.num_samples))


def _open_world(inputs: EffectInputs, world: World, variants: tuple[str, ...]) -> WorldRecordings:
    interventions, strengths = {}, {}
    for variant in variants:
        intervention = inputs.make_variant(world, variant)
        if intervention is not None:
            folder = inputs.variant_folder(world, variant)
            interventions[variant] = intervention
            strengths[variant] = write_strength(inputs.agent.policy, folder, inputs.device)
    datasets = {v: RolloutDataset(inputs.variant_folder(world, v)) for v in variants}
    return WorldRecordings(datasets, interventions, strengths)


def levels_of_pairs(twin: RolloutDataset, source: RolloutDataset) -> NDArray[np.int64]:
    """(N,) level of the episode that each pair began in, by ascending episode id; the episode's own
    id where the environment has no levels."""
    began_in = twin.episodes.sort_values("episode_id")["source_episode_id"]
    levels = pd.Series(levels_of_episodes(source), source.episodes["episode_id"].to_numpy())
    return levels.loc[began_in.to_numpy()].to_numpy(np.int64)
