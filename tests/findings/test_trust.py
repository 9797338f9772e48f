"""What the report says of the simulator's fidelity follows from the intervals in its file."""

import numpy as np
import xarray as xr

from findings.trust import BASELINES, MEASURES, beaten_sentence, fidelity_table

HORIZONS = (0, 1, 2, 3, 4, 5)


def fidelity(signs: dict[tuple[str, str], str]) -> xr.Dataset:
    """A file whose interval at each horizon lies above 0 (`+`), below (`-`) or around it (`0`)."""
    ends = {"+": (0.1, 0.3), "-": (-0.3, -0.1), "0": (-0.1, 0.1)}
    shape = (2, len(MEASURES), 1, len(BASELINES), len(HORIZONS))
    interval = xr.DataArray(
        np.full(shape, np.nan),
        dims=("bound", "measure", "prediction", "baseline", "horizon"),
        coords={
            "bound": ["lower", "upper"],
            "measure": list(MEASURES),
            "prediction": ["mode"],
            "baseline": list(BASELINES),
            "horizon": list(HORIZONS),
        },
    )
    for (measure, baseline), of_horizons in signs.items():
        for horizon, sign in zip(HORIZONS, of_horizons, strict=True):
            place = {"measure": measure, "baseline": baseline, "horizon": horizon}
            interval.loc[place] = np.array(ends[sign])[:, None]
    return xr.Dataset({"difference_interval": interval})


def test_a_baseline_that_is_better_is_told_by_the_scores_own_direction() -> None:
    signs = {
        # Squared error: smaller is better.
        ("mse", "shuffled_actions"): "0-----",
        ("mse", "last_frame"): "+0-0--",
        ("mse", "mean_frame"): "-+++++",
        # Structural similarity: larger is better.
        ("ssim", "shuffled_actions"): "000000",
        ("ssim", "last_frame"): "----0-",
        ("ssim", "mean_frame"): "+0+0-+",
    }
    results = fidelity(signs)
    how = "(95% interval of the paired difference), as follows."
    assert beaten_sentence(results, "mse") == (
        f"By squared error of pixels the simulator is better than baselines, or worse {how} "
        "control: other actions: at horizons 1 to 5; last frame repeated: at horizons 2, 4 to 5; "
        "mean frame: nowhere, worse at horizons 1 to 5."
    )
    assert beaten_sentence(results, "ssim") == (
        f"By structural similarity the simulator is better than baselines, or worse {how} "
        "control: other actions: nowhere; last frame repeated: nowhere, worse at horizons 1 to 3, "
        "5; mean frame: at horizons 2, 5, worse at horizon 4."
    )


def test_structural_similarity_is_among_the_scores_of_the_table() -> None:
    predictions = ("mode", "observed", "shuffled_actions", "last_frame", "mean_frame")
    dims = ("measure", "prediction", "horizon")
    score = np.zeros((len(MEASURES), len(predictions), 2))
    score[MEASURES.index("ssim"), 3] = 0.75, 0.5
    results = xr.Dataset(
        {
            "score": (dims, score),
            "score_interval": (("bound", *dims), np.stack([score - 0.25, score + 0.25])),
            "level": ("window", [7, 7, 8]),
        },
        {"measure": list(MEASURES), "prediction": list(predictions), "horizon": [1, 2]},
    )
    table = fidelity_table(results)
    assert "3 windows of 2 held-out levels" in table.caption
    row = ("structural similarity", "last frame repeated")
    assert (*row, "0.750 [0.500, 1.000]", "0.500 [0.250, 0.750]") in table.rows
