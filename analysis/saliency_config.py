"""Flags of `saliency_experiments.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from analysis.integrated_gradients import IntegrationSettings
from analysis.saliency import MIXED, PATHS, CopySettings, GradientMethod, GradientPrecision
from analysis.saliency_integration import FRAME_BASELINES
from experiment.errors import UserError
from generative.reference_flags import ReferenceFlags

ENVIRONMENT_GRADIENTS = ("passed", "cut")
INTEGRATED = ("frames", "latent")
SPLIT_PATHS = (*PATHS, MIXED)


DrawnAttribution = Literal["gradient", "gradient_times_input"]


@dataclass(frozen=True)
class TargetSettings:
    """What to take gradients of, and where."""

    saliency_func_type: tuple[str, ...] = ("value", "action", "hx_direction")
    """Targets: value; action (log-probability of the most probable action); leftwards,
    jumping_up, jumping_right (mean log-probability of those actions); value_delta (change of the
    value since the step before); hx_direction (every direction in SALIENCY_DIRECTION_IDS);
    logit_ACTION (logit of one action, by its name or index); hidden_unit_I (unit I of the hidden
    state)."""
    saliency_direction_ids: tuple[str, ...] = ("0", "to", "16")
    """Directions of the hidden state: a list, or FIRST to END without END."""
    target_steps: Annotated[tuple[int, ...], tyro.conf.arg(aliases=("--common_timesteps",))] = (4,)
    """Simulated steps at which targets are read."""
    num_sim_steps: int = 10
    """Steps to simulate."""
    env_grads: bool = True
    """Whether gradients pass from an action to the environment that it changes."""
    both_env_grads: bool = False
    """Compute both, with and without passing gradients through the environment."""
    split_paths: bool = False
    """Split gradients by path: through both recurrences (passed), the agent's own alone (cut), the
    environment's alone (only), neither, and mixed = passed − cut − only."""


@dataclass(frozen=True)
class IntegrationFlags:
    """Integrated gradients, beside the plain ones."""

    integrate: tuple[str, ...] = ()
    """Integrated gradients over what the agent saw (frames), the environment not answering, or over
    the latent, through the whole simulator (latent), or both. Many times the work of gradients."""
    integration_baselines: tuple[str, ...] = FRAME_BASELINES
    """Frames that the integration over frames begins at: black, the samples' mean, blurred."""
    integration_tolerance: float = 0.01
    """Refine the integration until attributions miss their sum by no more than this share."""
    max_integration_nodes: int = 1024
    """Do not refine beyond so many points. A line tells of attributions that miss their sum then,
    and the file marks them."""

    @property
    def settings(self) -> IntegrationSettings:
        """What the integration itself needs."""
        return IntegrationSettings(self.integration_tolerance, self.max_integration_nodes)


@dataclass(frozen=True)
class DrawingSettings:
    """Which pictures to draw; they can be drawn from saliency.nc at any time."""

    num_drawn_samples: int = 20
    """Draw a strip, as PNG and PDF, and an MP4 per target for so many samples."""
    drawn_attribution: DrawnAttribution = "gradient"
    """What to draw: the gradient, or the gradient times the frame."""
    fps: float = 4.0
    """Frames per second of the videos."""


@dataclass(frozen=True)
class SaliencyReferenceFlags(ReferenceFlags):
    """Flags of the reference system's saliency experiments without effect here."""

    recording_rand_init: bool = False
    """Without effect: GENERATED_DATA_DIR says how its samples began."""


@dataclass(frozen=True)
class SaliencyConfig:
    """Flags of `saliency_experiments.py`."""

    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/saliency.yml: defaults (full size), demo, tiny."""
    gen_mod_exp_name: str = "test_tgm"
    """Name of the training whose newest simulator is taken when no --model_file is given."""
    model_file: Path | None = None
    """The simulator's folder; by default the newest of generative/results/GEN_MOD_EXP_NAME/."""
    agent_file: str | None = None
    """The agent that the simulator was trained with, as record.py's --model_file takes it; by
    default the one named in GENERATED_DATA_DIR."""
    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Simulated rollouts, made by record_gen_samples.py."""
    projection: Path | None = Path("analysis/hx_analysis_precomp/projection")
    """Fitted projection that defines hidden directions, made by hidden_analysis_precompute.py; None
    to do without."""
    output_dir: Path = Path("analysis/saliency_results")
    """Folder for saliency.nc, strips and videos."""
    sample_ids: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--saliency_sample_ids",))] = (
        "0",
        "to",
        "4000",
    )
    """Samples: a list, e.g. `33 39 56 84`, or `FIRST to END`, e.g. `0 to 100`, without END."""
    combine_samples_not_iterate: bool = False
    """Combine the samples into one, by the mean of their latents, instead of iterating."""
    targets: Annotated[TargetSettings, tyro.conf.arg(name="")] = field(
        default_factory=TargetSettings
    )
    integration: Annotated[IntegrationFlags, tyro.conf.arg(name="")] = field(
        default_factory=IntegrationFlags
    )
    saliency_batch_size: int = 9
    """Copies of each sample whose gradients are averaged: the clean one and perturbed ones."""
    perturbation_scale: float = 1.25e-4
    """Standard deviation of the noise on the latents of the perturbed copies."""
    batch_size: int | None = None
    """Samples computed together; changes the speed only. Default: 8; on a GPU, which takes more of
    them in the same time, up to 64, as its free memory allows."""
    gradient_method: GradientMethod = "loop"
    """Backward passes: one per target (loop), or all at once (batched), which takes more memory;
    changes the speed only."""
    gradient_precision: GradientPrecision = "tf32"
    """Precision of backward passes on a GPU: float32, or tf32, which rounds the factors of products
    to ten bits and is faster. Samples are simulated in full float32 either way, and a CPU takes
    float32 always."""
    drawing: Annotated[DrawingSettings, tyro.conf.arg(name="")] = field(
        default_factory=DrawingSettings
    )
    seed: int = 0
    """Seed of the noise on the copies."""
    env_name: str | None = None
    """Refuse a simulator of another game; by default the simulator's own is taken."""
    device: str = "auto"
    """Where to compute: auto, cpu, gpu, cuda or cuda:N."""
    gpu_device: int = 0
    """Index of the device that --device gpu means."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""
    unused: Annotated[SaliencyReferenceFlags, tyro.conf.arg(name="")] = field(
        default_factory=SaliencyReferenceFlags
    )

    @property
    def environment_gradients(self) -> tuple[str, ...]:
        """Variants to compute."""
        if self.targets.split_paths:
            return SPLIT_PATHS
        if self.targets.both_env_grads:
            return ENVIRONMENT_GRADIENTS
        return ENVIRONMENT_GRADIENTS[:1] if self.targets.env_grads else ENVIRONMENT_GRADIENTS[1:]

    @property
    def copies(self) -> CopySettings:
        """Perturbed copies of each sample."""
        return CopySettings(self.saliency_batch_size, self.perturbation_scale)


def parse_ids(words: Sequence[str], flag: str) -> list[int]:
    """Ids from `33 39 56` or `0 to 100`, which excludes 100.

    Raises:
        UserError: anything else.
    """
    try:
        if len(words) == 3 and words[1] == "to":
            return list(range(int(words[0]), int(words[2])))
        return [int(word) for word in words]
    except ValueError:
        raise UserError(
            f"{flag} {' '.join(words)}: expected ids, e.g. 33 39 56, or a range, e.g. 0 to 100"
        ) from None
