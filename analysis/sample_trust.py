"""The trust scores of simulated samples: what their file holds, and how it is read.

`generative.trust` says what trust is. The file lies in the samples' own folder, so that whoever has
the samples has it too.
"""

from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.fidelity_file import BOUNDS, with_interval
from analysis.results import SAMPLE_TRUST_NAME, input_hashes, read_results
from experiment.errors import UserError
from generative.level_bootstrap import ResampledMeans
from generative.recording_identity import recording_identity
from generative.scores import SCORES
from generative.trust import COMPARED, AverageErrors, RealityScores
from rollouts.store import RolloutDataset

POOR_TRUST = 0.5
"""Below it, a sample is further from reality than the averages of the real rollouts are."""
BASELINES = tuple(name for name in COMPARED if name != "sample")


def read_sample_trust(samples: RolloutDataset, path: Path | None = None) -> NDArray[np.float64]:
    """(num_episodes,) trust of each sample, in the order of `samples.episodes`.

    NaN for samples without a real counterpart, for those recorded after trust was measured, and
    everywhere where it has not been measured.

    Args:
        samples: simulated rollouts.
        path: its file; by default the one in the samples' folder.

    Raises:
        UserError: the file is of other samples, or not readable.
    """
    found = samples.folder / SAMPLE_TRUST_NAME if path is None else path
    ids = samples.episodes["episode_id"].to_numpy(np.int64)
    if path is None and not found.is_file():
        return np.full(len(ids), np.nan)
    with read_results(found) as results:
        if input_hashes(results)["samples"] != recording_identity(samples.metadata):
            raise UserError(
                f"{found}: trust of other samples than those in {samples.folder}; make it again "
                "with: python analysis/sample_trust_precompute.py"
            )
        trust = results["trust"].to_series()
    return trust.reindex(ids).to_numpy()


def to_dataset(
    scores: RealityScores,
    trust: NDArray[np.float64],
    means: ResampledMeans | None,
    averages: AverageErrors | None,
) -> xr.Dataset:
    """Label the figures; without a sample that has a counterpart there are neither means nor
    averages."""
    labelled = xr.Dataset(
        {
            "trust": (
                "sample",
                trust,
                {"long_name": "trust in a sample, 0 to 1; NaN without a real counterpart"},
            ),
            "num_compared_rows": (
                "sample",
                scores.num_compared_rows,
                {"long_name": "rows from 1 on that sample and reality share"},
            ),
            "level": (
                "sample",
                scores.level,
                {"long_name": "level seed of the real counterpart; -1 without one"},
            ),
            "row_score": (
                ("measure", "compared", "sample", "horizon"),
                scores.scores,
                {"long_name": "score of one row against reality; NaN where reality has none"},
            ),
            "measure_meaning": ("measure", list(SCORES.values())),
            "compared_meaning": ("compared", list(COMPARED.values())),
        },
        coords={
            "sample": scores.sample_id,
            "measure": list(SCORES),
            "compared": list(COMPARED),
            "horizon": np.arange(scores.scores.shape[-1]),
        },
    )
    if means is None or averages is None:
        return labelled
    differences = means.differences([list(COMPARED).index(name) for name in BASELINES])
    dims, what = ("measure", "compared", "horizon"), "mean over samples"
    figures = xr.Dataset(
        {
            **with_interval("score", dims, means.mean, means.interval, what),
            **with_interval(
                "difference",
                ("measure", "compared", "baseline", "horizon"),
                differences.mean,
                differences.interval,
                "mean over samples, minus the baseline's on the same rows",
            ),
        },
        coords={"baseline": list(BASELINES), "bound": list(BOUNDS)},
        attrs={"image_scale": averages.image, "policy_scale": averages.policy},
    )
    return labelled.merge(figures).assign_attrs(figures.attrs)
