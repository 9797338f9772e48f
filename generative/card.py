"""The card of a trained simulator: how it was made, and how far it can be trusted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import xarray as xr

from generative.fidelity import BASELINES

PROMISES = (("mse", "mean_of_samples"), ("policy_kl", "mean_of_samples"))
"""Scores, lower being better, in which a shipped simulator has to be better than every baseline."""
BESIDE = (
    ("mse", "mode"),
    ("mse", "single_sample"),
    ("policy_kl", "mode"),
    ("policy_kl", "single_sample"),
    ("greedy_agreement", "mode"),
    ("greedy_agreement", "last_frame"),
    ("ssim", "mode"),
    ("ssim", "last_frame"),
    ("value_error", "mode"),
    ("value_error", "last_frame"),
)
"""Scores told beside them."""


@dataclass(frozen=True)
class Advantage:
    """How a prediction does beside one baseline at horizons 1, 2, ..."""

    measure: str
    prediction: str
    baseline: str
    mean: tuple[float, ...]
    """Mean score of the prediction."""
    baseline_mean: tuple[float, ...]
    difference: tuple[float, ...]
    """Prediction minus baseline on the same rows; negative where the prediction is better."""
    low: tuple[float, ...]
    """Lower bound of the difference's 95% interval from resampling levels."""
    high: tuple[float, ...]
    """Upper bound."""

    @property
    def is_clear(self) -> bool:
        """Whether the prediction is better at every horizon, and no interval includes zero."""
        return max(self.high) < 0


@dataclass(frozen=True)
class SimulatorCard:
    """What is to be known of a trained simulator."""

    commands: tuple[str, ...]
    """That recorded the data, trained, and measured."""
    num_episodes: dict[str, int]
    """Episodes by folder of a dataset: a recording may have gone on under the same command with
    another limit, and its provenance tells how it began."""
    training_steps: int
    seed: int
    wall_hours: float
    machine: str
    """What the training ran on, in words."""
    environment: str
    """The game and its options, in words."""
    num_parameters: int
    agent_hash: str
    simulator_hash: str
    dataset_hashes: dict[str, str]
    num_windows: int
    """Windows of held-out levels that the scores are means over."""
    num_levels: int
    advantages: tuple[Advantage, ...]
    scores: dict[str, tuple[float, ...]]
    """By `measure of prediction`, at horizons 1, 2, ..."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def read_advantages(fidelity: xr.Dataset) -> tuple[Advantage, ...]:
    """Every promised score beside every baseline, from `simulator_fidelity.nc`."""
    ahead = fidelity.isel(horizon=slice(1, None))
    advantages = []
    for measure, prediction in PROMISES:
        for baseline in BASELINES:
            chosen = ahead.sel(measure=measure, prediction=prediction, baseline=baseline)
            advantages.append(
                Advantage(
                    measure,
                    prediction,
                    baseline,
                    _rounded(chosen["score"]),
                    _rounded(ahead["score"].sel(measure=measure, prediction=baseline)),
                    _rounded(chosen["difference"]),
                    _rounded(chosen["difference_interval"].sel(bound="lower")),
                    _rounded(chosen["difference_interval"].sel(bound="upper")),
                )
            )
    return tuple(advantages)


def read_scores(fidelity: xr.Dataset) -> dict[str, tuple[float, ...]]:
    """The scores told beside the promised ones, from `simulator_fidelity.nc`."""
    ahead = fidelity["score"].isel(horizon=slice(1, None))
    return {
        f"{measure} of {prediction}": _rounded(ahead.sel(measure=measure, prediction=prediction))
        for measure, prediction in BESIDE
    }


def _rounded(values: xr.DataArray) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values.to_numpy())


def _counts(num_episodes: dict[str, int]) -> str:
    return ", ".join(f"{number:,} in `{folder}`" for folder, number in num_episodes.items())


def render_card(name: str, card: SimulatorCard) -> str:
    """The card as Markdown; beside it lie the curves and the figures of its fidelity."""
    horizons = range(1, 1 + len(card.advantages[0].mean))
    head = [
        "| | " + " | ".join(f"h = {h}" for h in horizons) + " |",
        "| --- |" + " --- |" * len(horizons),
    ]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A simulator of {card.environment}, with agent `{card.agent_hash[:12]}` inside.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| command | `{command}` |" for command in card.commands),
            f"| episodes in the end | {_counts(card.num_episodes)} |",
            f"| training steps | {card.training_steps:,} |",
            f"| seed | {card.seed} |",
            f"| wall time | {card.wall_hours:.1f} h{card.machine and f', {card.machine}'} |",
            f"| parameters | {card.num_parameters:,} |",
            f"| hash | `{card.simulator_hash}` |",
            "",
            f"On {card.num_windows:,} windows of {card.num_levels:,} held-out levels, under the",
            "actions recorded, by horizon h: differences from the baselines on the same rows, with",
            "95% intervals from resampling levels. What each is: docs/simulator.md.",
            "",
            *head,
            *(_advantage_row(advantage) for advantage in card.advantages),
            "",
            "Beside them:",
            "",
            *head,
            *(_row(name, values) for name, values in card.scores.items()),
            "",
            "![Fidelity over the horizon](fidelity_summary.png)",
            "",
            "![Loss during training](curve.png)",
            "",
        ]
    )


def _advantage_row(advantage: Advantage) -> str:
    cells = [
        f"{difference:.3g} [{low:.3g}, {high:.3g}]"
        for difference, low, high in zip(
            advantage.difference, advantage.low, advantage.high, strict=True
        )
    ]
    label = f"{advantage.measure} of {advantage.prediction} − {advantage.baseline}"
    return f"| {label} | " + " | ".join(cells) + " |"


def _row(name: str, values: Sequence[float]) -> str:
    return f"| {name} | " + " | ".join(f"{value:.3g}" for value in values) + " |"
