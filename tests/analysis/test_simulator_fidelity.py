import numpy as np
import pytest

from analysis.fidelity_file import to_dataset
from analysis.results import read_results, write_results
from analysis.simulator_fidelity_precompute import FidelityCommand, precompute
from experiment.errors import UserError
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from generative.fidelity import METHODS, Fidelity, WindowScores, summarise
from generative.fidelity_windows import FidelityConfig
from generative.scores import SCORES


@pytest.fixture
def known_fidelity() -> Fidelity:
    scores = np.random.default_rng(0).uniform(size=(len(SCORES), len(METHODS), 6, 4))
    windows = WindowScores(scores, np.arange(6) // 2, np.arange(6), np.arange(6))
    return summarise(windows, FidelityConfig(num_resamples=50))


def test_figures_keep_their_labels_in_the_result_file(known_fidelity, tmp_path):
    path = tmp_path / "simulator_fidelity.nc"
    write_results(path, to_dataset(known_fidelity), collect_provenance({}, 0, {"agent": "a"}))
    with read_results(path) as result:
        for method in METHODS:
            for name in SCORES:
                np.testing.assert_array_equal(
                    result["score"].sel(prediction=method, measure=name),
                    known_fidelity.mean_of(name, method),
                )
        chosen = result["difference"].sel(
            measure="policy_kl", prediction="mode", baseline="last_frame", horizon=2
        )
        own, other = (known_fidelity.mean_of("policy_kl", m)[2] for m in ("mode", "last_frame"))
        assert float(chosen) == pytest.approx(own - other)
        low, high = (result["score_interval"].sel(bound=b) for b in ("lower", "upper"))
        assert bool((low <= result["score"]).all() and (result["score"] <= high).all())


def test_a_missing_dataset_is_refused_before_anything_is_written(tmp_path):
    command = FidelityCommand(data_dir=tmp_path / "nowhere", output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="nowhere"):
        precompute(command, StageReport("simulator_fidelity"))
    assert not (tmp_path / "out").exists()


def test_a_horizon_of_zero_is_refused(tmp_path):
    command = FidelityCommand(fidelity=FidelityConfig(horizon=0), output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="--horizon 0"):
        precompute(command, StageReport("simulator_fidelity"))
