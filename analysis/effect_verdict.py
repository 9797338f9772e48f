"""Says in words what the figures of an intervention's effects support, and no more."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from analysis.effect_names import (
    ACTION_PREFIX,
    CLUSTER_PREFIX,
    COMPONENT_PREFIX,
    DONE,
    POLICY_KL,
    RANDOM_PREFIX,
    RETURN,
    SIGN_FLIP,
    TESTED,
    UNSIGNED,
    VALUE,
)

SIGNIFICANT = 0.05
"""Largest q-value of an effect that is called one."""
MAX_LISTED = 8
"""Other findings that the page names."""
LARGEST_RATIO = 2.0
"""Between the mean changes of the hidden state in the two worlds, above which the page warns."""
MEANINGS = {
    VALUE: "value",
    POLICY_KL: "KL(twin's policy ‖ its own), nats",
    RETURN: "return",
    DONE: "share of episodes that end",
}
VERDICT_COLUMNS = (
    *("measure", "predicted: heads", "predicted: gradient"),
    *("observed, 95% interval", "random controls", "verdict"),
)
FOUND_IN = ("effect", "effect_interval", "excess_interval", "q_value")
"""Variables of the result file that a finding is told from."""
_WORDS = {ACTION_PREFIX: "probability of", COMPONENT_PREFIX: "component", CLUSTER_PREFIX: "cluster"}


@dataclass(frozen=True)
class Finding:
    """What one measure says in one world."""

    measure: str
    world: str
    effect: float
    low: float
    high: float
    """Bounds of the 95% interval."""
    q_value: float
    num_random: int
    """Random controls."""
    num_exceeded: int
    """Random controls whose effect is smaller in size, by more than the error of the difference."""
    flip: float
    """Effect of the sign-flipped control; NaN where there is none."""

    @property
    def is_seen(self) -> bool:
        """Whether the effect differs from zero; what cannot be negative always does, so no."""
        return self.measure not in UNSIGNED and self.q_value < SIGNIFICANT

    @property
    def is_beyond_controls(self) -> bool:
        """Whether no random control comes near."""
        return self.num_exceeded == self.num_random

    @property
    def is_reversed_by_flip(self) -> bool:
        """Whether the opposite change has the opposite effect."""
        return bool(self.effect * self.flip < 0)

    @property
    def words(self) -> str:
        """The verdict."""
        if self.measure not in UNSIGNED and not self.is_seen:
            return "no effect seen"
        said = f"not special: beyond {self.num_exceeded} of {self.num_random} random directions"
        if self.is_beyond_controls:
            said = f"beyond all {self.num_random} random directions"
        if self.measure in UNSIGNED or not np.isfinite(self.flip):
            return said
        reverses = "reverses it" if self.is_reversed_by_flip else "does not reverse it"
        return f"{said}; sign flip {reverses}"


def find(results: xr.Dataset, world: str, measure: str) -> Finding:
    """The finding of one measure in one world of an open result file."""
    # A selection takes a tenth of a millisecond for every variable that it carries along.
    at = results[list(FOUND_IN)].sel(world=world, measure=measure)
    effects = dict(zip(at["variant"].values.tolist(), at["effect"].values.tolist(), strict=True))
    excess = at["excess_interval"].transpose("control", "bound").values.tolist()
    excess_of = dict(zip(at["control"].values.tolist(), excess, strict=True))
    effect = effects[TESTED]
    low, high = at["effect_interval"].sel(variant=TESTED).values.tolist()
    randoms = random_controls(results)
    exceeded = sum(
        abs(effect) > abs(effects[control])
        and not excess_of[control][0] <= 0 <= excess_of[control][1]
        for control in randoms
    )
    flip = effects[SIGN_FLIP] if SIGN_FLIP in excess_of else np.nan
    return Finding(
        measure, world, effect, low, high, float(at["q_value"]), len(randoms), exceeded, flip
    )


def random_controls(results: xr.Dataset) -> list[str]:
    """Names of the controls that are random directions."""
    return [name for name in results["control"].values if name.startswith(RANDOM_PREFIX)]


def meaning(measure: str) -> str:
    """What a measure is, in words."""
    for prefix, words in _WORDS.items():
        if measure.startswith(prefix):
            return f"{words} {measure.removeprefix(prefix)}"
    return MEANINGS[measure]


def main_measures(results: xr.Dataset, num_actions: int = 2) -> list[str]:
    """What the page shows in full: value, policy, the actions that move most, and the return.

    The actions are chosen by the mean size of their effects in all worlds, so their intervals are
    those of chosen ones; q-values count every measure.
    """
    actions = [m for m in results["measure"].values if m.startswith(ACTION_PREFIX)]
    effects = results["effect"].sel(variant=TESTED, measure=actions).transpose("world", "measure")
    size = np.abs(effects.values).mean(axis=0)
    largest = [actions[i] for i in np.argsort(-size)[:num_actions]]
    return [VALUE, POLICY_KL, *largest, RETURN]


def describe(results: xr.Dataset) -> str:
    """The verdict as lines of Markdown."""
    worlds = results["world"].values.tolist()
    lines = [
        "| " + " | ".join(VERDICT_COLUMNS) + " |",
        "| --- " * len(VERDICT_COLUMNS) + "|",
    ]
    lines += [
        "| " + " | ".join(row_of(results, world, measure)) + " |"
        for measure in main_measures(results)
        for world in worlds
    ]
    return "\n".join([*lines, "", *strength_lines(results), *_other_findings(results)])


def strength_lines(results: xr.Dataset) -> list[str]:
    """How large the changes of the hidden state were, and whether alike in both worlds."""
    worlds, randoms = results["world"].values.tolist(), random_controls(results)
    norm, outside = results["change_norm"], results["share_outside"]
    lines = []
    for world in worlds:
        tested = float(norm.sel(world=world, variant=TESTED))
        controls = norm.sel(world=world, variant=randoms).values
        share = float(outside.sel(world=world, variant=TESTED))
        lines.append(
            f"{world}: mean change of the hidden state {tested:.3g}, of random controls "
            f"{controls.min():.3g} to {controls.max():.3g}; {share:.0%} of rows have a unit "
            "outside [−1, 1]"
        )
    tested = norm.sel(variant=TESTED).values
    if tested.max() > LARGEST_RATIO * tested.min():
        lines.append(
            "caution: the changes in the two worlds differ in size by more than "
            f"{LARGEST_RATIO:g} times, so the simulated effects are no forecast of the real ones"
        )
    return lines


def row_of(results: xr.Dataset, world: str, measure: str) -> list[str]:
    """One line of the verdict: measure, two predictions, observed, controls, words."""
    finding = find(results, world, measure)
    controls = results["effect"].sel(world=world, measure=measure, variant=random_controls(results))
    observed = f"{finding.effect:+.3g} [{finding.low:+.3g}, {finding.high:+.3g}]"
    return [
        f"{meaning(measure)}, {world}",
        _predicted(results, f"readout_{world}", measure),
        _predicted(results, f"gradient_{world}", measure),
        observed,
        f"{float(controls.min()):+.3g} to {float(controls.max()):+.3g}",
        finding.words,
    ]


def _predicted(results: xr.Dataset, prediction: str, measure: str) -> str:
    known = prediction in results["prediction"].values and measure in results["row_measure"].values
    if not known:
        return "–"
    value = float(
        results["predicted"].sel(prediction=prediction, row_measure=measure, variant=TESTED)
    )
    return f"{value:+.3g}"


def _other_findings(results: xr.Dataset) -> list[str]:
    """Components, clusters and actions with an effect beyond all controls, one line per world."""
    main, lines = main_measures(results), []
    for world in results["world"].values.tolist():
        rest = [m for m in results["measure"].values if m not in (*MEANINGS, *main)]
        found = (find(results, world, measure) for measure in rest)
        kept = [f for f in found if f.is_seen and f.is_beyond_controls]
        kept.sort(key=lambda f: f.q_value)
        shown = kept[:MAX_LISTED]
        listed = ", ".join(f"{meaning(f.measure)} {f.effect:+.3g}" for f in shown) or "none"
        if len(kept) > len(shown):
            listed += f" and {len(kept) - len(shown)} more"
        lines.append(f"{world}: beyond all controls, of {len(rest)} other measures: {listed}")
    return lines
