import numpy as np
import pytest

from analysis.results import read_results, write_results
from analysis.simulator_fidelity_precompute import FidelityCommand, precompute, to_dataset
from experiment.errors import UserError
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from generative.fidelity import METHODS, Fidelity, FidelityConfig, WindowErrors, summarise


@pytest.fixture
def known_fidelity() -> Fidelity:
    errors = np.random.default_rng(0).uniform(size=(len(METHODS), 6, 4))
    windows = WindowErrors(errors, np.arange(6) // 2, np.arange(6), np.arange(6))
    return summarise(windows, FidelityConfig(num_resamples=50))


def test_figures_keep_their_labels_in_the_result_file(known_fidelity, tmp_path):
    path = tmp_path / "simulator_fidelity.nc"
    write_results(path, to_dataset(known_fidelity), collect_provenance({}, 0, {"agent": "a"}))
    with read_results(path) as result:
        for method in METHODS:
            np.testing.assert_array_equal(
                result["mse"].sel(prediction=method), known_fidelity.mse_of(method)
            )
        chosen = result["difference"].sel(prediction="mode", baseline="last_frame", horizon=2)
        expected = known_fidelity.mse_of("mode")[2] - known_fidelity.mse_of("last_frame")[2]
        assert float(chosen) == pytest.approx(expected)
        low, high = (result["mse_interval"].sel(bound=b) for b in ("lower", "upper"))
        assert bool((low <= result["mse"]).all() and (result["mse"] <= high).all())


def test_a_missing_dataset_is_refused_before_anything_is_written(tmp_path):
    command = FidelityCommand(data_dir=tmp_path / "nowhere", output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="nowhere"):
        precompute(command, StageReport("simulator_fidelity"))
    assert not (tmp_path / "out").exists()


def test_a_horizon_of_zero_is_refused(tmp_path):
    command = FidelityCommand(fidelity=FidelityConfig(horizon=0), output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="--horizon 0"):
        precompute(command, StageReport("simulator_fidelity"))
