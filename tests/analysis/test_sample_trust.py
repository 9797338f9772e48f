"""The command that stores trust with samples, and what reads it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.results import SAMPLE_TRUST_NAME, input_hashes, read_results
from analysis.sample_trust import read_sample_trust
from analysis.sample_trust_precompute import SampleTrustCommand, precompute
from analysis.trust_figures import TrustPlottingConfig, plot_trust
from experiment.errors import UserError
from experiment.report import StageReport
from generative.scores import SCORES
from rollouts.store import RolloutDataset


def measure(fake_chain, samples: Path, **changes) -> StageReport:
    settings = {"num_envs": 4, "num_threads": 0, "num_resamples": 50, "device": "cpu", **changes}
    report = StageReport("sample_trust")
    command = SampleTrustCommand(generated_data_dir=samples, data_dir=fake_chain.data, **settings)
    precompute(command, report)
    return report


def test_trust_is_stored_with_the_samples_and_read_in_their_order(fake_chain, tmp_path):
    samples = RolloutDataset(fake_chain.record("trusted"))
    assert np.isnan(read_sample_trust(samples)).all()
    report = measure(fake_chain, samples.folder)
    trust = read_sample_trust(samples)
    known = np.isfinite(trust)
    assert report.metrics["samples"] == 8
    assert report.metrics["samples_with_trust"] == known.sum() >= 5
    assert report.metrics["median_trust"] == pytest.approx(np.median(trust[known]), abs=1e-4)
    with read_results(samples.folder / SAMPLE_TRUST_NAME) as results:
        hashes = input_hashes(results)
        assert hashes["dataset"] == RolloutDataset(fake_chain.data).hash
        assert hashes["replays"] == RolloutDataset(samples.folder / "replays").hash
        for row, sample_id in enumerate(samples.episodes["episode_id"]):
            assert float(results["trust"].sel(sample=sample_id)) == pytest.approx(
                trust[row], nan_ok=True
            )
        rows = results["row_score"].sel(measure="mse", compared="sample").values
        np.testing.assert_allclose(
            results["score"].sel(measure="mse", compared="sample"), np.nanmean(rows, axis=0)
        )
        for baseline in ("last_frame", "mean_frame"):
            difference = results["difference"].sel(compared="sample", baseline=baseline)
            score, other = (results["score"].sel(compared=n) for n in ("sample", baseline))
            np.testing.assert_allclose(difference, score - other, atol=1e-12)
        assert list(results["measure"].values) == list(SCORES)
        # Samples are found by their ids, in whatever order the file has them.
        results.isel(sample=slice(None, None, -1)).to_netcdf(tmp_path / SAMPLE_TRUST_NAME)
    np.testing.assert_array_equal(read_sample_trust(samples, tmp_path / SAMPLE_TRUST_NAME), trust)
    # The samples are still the dataset that they were.
    assert RolloutDataset(samples.folder).hash == samples.hash


def test_samples_recorded_later_have_no_trust_until_it_is_measured_again(fake_chain):
    folder = fake_chain.record("extended", max_samples=3)
    measure(fake_chain, folder)
    first = read_sample_trust(RolloutDataset(folder))
    fake_chain.record("extended", max_samples=6)
    extended = read_sample_trust(RolloutDataset(folder))
    assert extended.shape == (6,)
    np.testing.assert_array_equal(extended[:3], first)
    assert np.isnan(extended[3:]).all()
    measure(fake_chain, folder)
    again = read_sample_trust(RolloutDataset(folder))
    np.testing.assert_allclose(again[:3], first, rtol=1e-5)
    assert np.isfinite(again[3:]).any()


def test_trust_of_other_samples_is_refused(fake_chain):
    folder = fake_chain.record("one", max_samples=2)
    measure(fake_chain, folder)
    other = RolloutDataset(fake_chain.record("another", max_samples=2, seed=9))
    with pytest.raises(UserError, match=r"other samples .*sample_trust_precompute"):
        read_sample_trust(other, folder / SAMPLE_TRUST_NAME)


def test_random_latents_have_no_trust_and_need_no_rollouts(fake_chain, tmp_path):
    folder = fake_chain.record("latents_alone", initialisation="random", max_samples=2)
    command = SampleTrustCommand(generated_data_dir=folder, data_dir=tmp_path / "nowhere")
    report = StageReport("sample_trust")
    precompute(command, report)
    assert np.isnan(read_sample_trust(RolloutDataset(folder))).all()
    assert report.metrics == {"samples": 2, "samples_with_trust": 0}
    assert not (folder / "replays").exists()
    with pytest.raises(UserError, match="no sample has a trust score"):
        plot_trust(
            TrustPlottingConfig(generated_data_dir=folder, output_dir=tmp_path / "plots"),
            StageReport("trust_figures"),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": "samples"}, r"--data_dir .*windows of rollouts"),
        ({"generated_data_dir": "data"}, r"--generated_data_dir .*real rollouts"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"agent_file": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(fake_chain, changes, message):
    samples = fake_chain.record("samples", max_samples=2)
    places = {"samples": samples, "data": fake_chain.data}
    changed = {name: places.get(value, value) for name, value in changes.items()}
    command = SampleTrustCommand(
        **{"generated_data_dir": samples, "data_dir": fake_chain.data, **changed}
    )
    with pytest.raises(UserError, match=message):
        precompute(command, StageReport("sample_trust"))
    assert not (samples / SAMPLE_TRUST_NAME).exists()
    assert not (samples / "replays").exists()


@pytest.mark.medium
def test_the_figure_is_drawn_from_the_file_alone(fake_chain, tmp_path):
    folder = fake_chain.record("drawn")
    measure(fake_chain, folder)
    config = TrustPlottingConfig(generated_data_dir=folder, output_dir=tmp_path, dpi=50)
    picture = plot_trust(config, StageReport("trust_figures"))
    assert np.asarray(Image.open(picture).convert("L")).std() > 5
    assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
