"""What is said of effects that are known."""

import numpy as np
import xarray as xr

from analysis.effect_verdict import describe, find

CONTROLS = {
    "sign_flip": (-1.0, (-0.1, 0.1)),
    "random_0": (0.5, (0.2, 0.8)),
    "random_1": (0.9, (-0.1, 0.3)),
    "random_2": (-2.0, (-1.5, -0.5)),
}
"""Effect on the value, and the interval of the difference in size from an effect of 1."""
MEASURES = ("value", "policy_kl", "return")


def results_with(controls, effect: float = 1.0, q_value: float = 0.01) -> xr.Dataset:
    """One world; policy and return are as the value is."""
    effects = np.array([effect, *(CONTROLS[name][0] for name in controls)])
    excess = np.array([CONTROLS[name][1] for name in controls])
    same = np.ones(len(MEASURES))
    by_variant = ("world", "variant", "measure")
    return xr.Dataset(
        {
            "effect": (by_variant, np.multiply.outer(effects, same)[None]),
            "effect_interval": (
                ("bound", *by_variant),
                np.multiply.outer([effects - 0.1, effects + 0.1], same)[:, None],
            ),
            "excess_interval": (
                ("bound", "world", "control", "measure"),
                np.multiply.outer(excess.T, same)[:, None],
            ),
            "q_value": (("world", "measure"), np.array([[q_value, np.nan, q_value]])),
            "change_norm": (("world", "variant"), np.full((1, len(effects)), 0.5)),
            "share_outside": (("world", "variant"), np.zeros((1, len(effects)))),
            "predicted": (
                ("prediction", "variant", "row_measure"),
                np.full((1, len(effects), 1), 0.7),
            ),
        },
        {
            "world": ["real"],
            "variant": ["tested", *controls],
            "control": list(controls),
            "measure": list(MEASURES),
            "row_measure": ["value"],
            "prediction": ["readout_real"],
            "bound": ["lower", "upper"],
        },
    )


def test_a_random_direction_is_exceeded_where_the_difference_in_size_is_certain() -> None:
    """Of three, one is smaller for certain, one perhaps, and one is larger for certain."""
    finding = find(results_with(CONTROLS), "real", "value")
    assert (finding.num_random, finding.num_exceeded) == (3, 1)
    assert (finding.effect, finding.flip) == (1.0, -1.0)
    assert finding.words == "not special: beyond 1 of 3 random directions; sign flip reverses it"


def test_an_effect_beyond_all_controls_is_called_so() -> None:
    finding = find(results_with(["random_0"]), "real", "value")
    assert finding.words == "beyond all 1 random directions"
    assert find(results_with(["random_0"], q_value=0.06), "real", "value").words == "no effect seen"


def test_a_flip_that_has_the_same_effect_does_not_reverse_it() -> None:
    finding = find(results_with(["sign_flip", "random_0"], effect=-1.0), "real", "value")
    assert finding.words == "beyond all 1 random directions; sign flip does not reverse it"


def test_a_divergence_is_judged_by_its_controls_alone() -> None:
    finding = find(results_with(CONTROLS), "real", "policy_kl")
    assert finding.words == "not special: beyond 1 of 3 random directions"


def test_the_table_tells_prediction_observation_and_controls() -> None:
    first = next(line for line in describe(results_with(CONTROLS)).split("\n") if "value" in line)
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        "value, real",
        "+0.7",
        "–",
        "+1 [+0.9, +1.1]",
        "-2 to +0.9",
        "not special: beyond 1 of 3 random directions; sign flip reverses it",
    ]
