"""Summaries of saliency where paths, methods and what integrals miss are planted."""

import numpy as np
import pytest
import xarray as xr

from analysis.attribution_figures import (
    AttributionPlottingConfig,
    draw_convergence,
    draw_paths,
    draw_shares,
    plot_attributions,
)
from analysis.attribution_summary import (
    convergence,
    mean_over_samples,
    method_agreement,
    path_norms,
)
from analysis.results import write_results
from experiment.errors import UserError
from experiment.provenance import collect_provenance
from experiment.report import StageReport

PATHS = ("passed", "cut", "only", "neither", "mixed")
SIZES = {"passed": 4.0, "cut": 3.0, "only": 2.0, "neither": 0.5, "mixed": 1.0}
TARGETS = ("value", "action")
NUM_SAMPLES, NUM_STEPS, TARGET_STEP, SIDE = 3, 4, 2, 4
BASELINES = ("black", "mean")


def gradient_dims(*of_source):
    return ("sample", "environment_gradient", "target", "target_step", "step", *of_source)


def planted(paths, rng):
    """Gradients whose every number is plus or minus the size of its path; none after the target."""
    is_before = np.arange(NUM_STEPS) <= TARGET_STEP
    size = np.array([SIZES[path] for path in paths])[:, None, None, None] * is_before

    def of(*source):
        # The same signs on every path, which differ between samples.
        signs = rng.choice([-1.0, 1.0], (NUM_SAMPLES, 1, len(TARGETS), 1, NUM_STEPS, *source))
        return (signs * size.reshape(*size.shape, *[1] * len(source))).astype(np.float32)

    frame = ("height", "width", "channel")
    return xr.Dataset(
        {
            "gradient_frame": (gradient_dims(*frame), of(SIDE, SIDE, 3)),
            "gradient_agent_state": (gradient_dims("state_unit"), of(5)),
            "gradient_env_deter": (gradient_dims("deter_unit"), of(6)),
            "frame": (
                ("sample", "step", *frame),
                np.full((NUM_SAMPLES, NUM_STEPS, SIDE, SIDE, 3), 51, np.uint8),
            ),
        },
        coords={
            "environment_gradient": list(paths),
            "target": list(TARGETS),
            "target_step": [TARGET_STEP],
        },
    )


@pytest.fixture
def by_path():
    return planted(PATHS, np.random.default_rng(0))


@pytest.fixture
def integrated():
    """Integrals that equal a third of the gradient, and miss 2% over frames, 0.5% over latents."""
    results = planted(("cut",), np.random.default_rng(1))
    gradient = results["gradient_frame"].isel(environment_gradient=0)
    integral = (gradient / 3.0).expand_dims(baseline=list(BASELINES))
    results["integrated_frame"] = integral.transpose("sample", "baseline", ...)
    table = (NUM_SAMPLES, len(BASELINES), len(TARGETS), 1)
    dims = ("sample", "baseline", "target", "target_step")
    results["integrated_frame_difference"] = (dims, np.full(table, -2.0))
    results["integrated_frame_delta"] = (dims, np.full(table, 0.04))
    latent = ("sample", "target", "target_step")
    results["integrated_latent_difference"] = (latent, np.full((NUM_SAMPLES, 2, 1), 1.0))
    results["integrated_latent_delta"] = (latent, np.full((NUM_SAMPLES, 2, 1), -0.005))
    return results


def test_norms_and_shares_are_those_of_the_planted_paths(by_path):
    norms = path_norms(by_path)
    assert norms.norm.shape == (NUM_SAMPLES, 3, len(PATHS), len(TARGETS), TARGET_STEP + 1)
    for index, path in enumerate(norms.paths):
        np.testing.assert_allclose(norms.norm[:, :, index], SIZES[path])
        np.testing.assert_allclose(norms.shares()[:, :, index], SIZES[path] / SIZES["passed"])


def test_steps_that_a_target_reads_itself_are_in_no_share(by_path):
    """A change of value reads two steps; what it reads needs no path, and is as large on each."""
    results = by_path.assign_coords(target=["value", "value_delta"])
    for variable in ("gradient_frame", "gradient_agent_state", "gradient_env_deter"):
        results[variable].loc[{"target": "value_delta", "step": TARGET_STEP - 1}] = 100.0
        results[variable].loc[{"step": TARGET_STEP}] = 100.0
    norms = path_norms(results)
    for index, path in enumerate(norms.paths):
        np.testing.assert_allclose(norms.shares()[:, :, index], SIZES[path] / SIZES["passed"])


def test_a_change_of_value_at_the_second_step_has_no_shares(by_path):
    norms = path_norms(by_path.assign_coords(target=["value", "value_delta"], target_step=[1]))
    shares = norms.shares()
    assert np.isfinite(shares[..., 0]).all()
    assert np.isnan(shares[..., 1]).all()
    axis = draw_shares(norms, AttributionPlottingConfig(num_resamples=5)).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(norms.targets)


def test_a_path_without_a_gradient_is_not_drawn_and_all_of_it_is_seen_beneath(by_path):
    results = by_path.copy(deep=True)
    results["gradient_frame"].loc[{"environment_gradient": "neither", "step": [0, 1]}] = 1e-9
    norms = path_norms(results)
    axis = draw_paths(norms, 0, "frame", AttributionPlottingConfig(num_resamples=5)).axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    control = np.asarray(lines["control: no recurrence of the agent"].get_ydata(), float)
    np.testing.assert_array_equal(np.isnan(control), [True, True, False])
    assert lines["all"].get_linewidth() > lines["agent's memory alone"].get_linewidth()
    # The axis ends where lines do.
    assert 0.1 < axis.get_ylim()[0] < 0.5


def test_methods_that_are_multiples_agree_and_other_samples_do_not(integrated):
    agreement = method_agreement(integrated)
    assert agreement.methods == (
        "gradient",
        "gradient × input",
        "integrated, black",
        "integrated, mean",
    )
    # All frames are of one grey, so gradient times input is a multiple of the gradient too.
    np.testing.assert_allclose(agreement.same, 1.0, atol=1e-6)
    assert np.abs(agreement.other).max() < 0.6


def test_what_integrals_miss_is_a_share_of_the_difference(integrated):
    missed = {kind.name: kind.missed for kind in convergence(integrated)}
    assert set(missed) == {"frames, black", "frames, mean", "latent, mean"}
    np.testing.assert_allclose(missed["frames, black"], 0.02)
    np.testing.assert_allclose(missed["latent, mean"], 0.005)


def test_integrals_without_a_change_do_not_count(integrated):
    results = integrated.copy(deep=True)
    for what in ("difference", "delta"):
        results[f"integrated_frame_{what}"][:, 0] = np.nan
        results[f"integrated_latent_{what}"][:, 1] = 0.0
    kinds = {kind.name: kind for kind in convergence(results)}
    # The latent's second target never changes; what is missed is 0.5% of the first, 2% over frames.
    assert np.isnan(kinds["latent, mean"].missed[:, 1]).all()
    assert kinds["latent, mean"].share_within(0.01) == 1.0
    assert kinds["latent, mean"].share_within(0.001) == 0.0
    assert kinds["frames, mean"].share_within(0.01) == 0.0
    assert np.isnan(kinds["frames, black"].share_within(0.01))
    titles = [axis.get_title() for axis in draw_convergence(results).axes]
    assert titles == [
        "over frames, black\nwithin 1%: no change to share out",
        "over frames, mean\nwithin 1%: 0%",
        "over latent, mean\nwithin 1%: 100%",
    ]


def test_what_is_attributed_without_a_change_is_missed(integrated):
    results = integrated.copy(deep=True)
    results["integrated_latent_difference"][0, 0] = 0.0
    latent = convergence(results)[-1]
    assert np.isinf(latent.missed[0, 0])
    assert latent.share_within(0.01) == pytest.approx(5 / 6)


def test_means_leave_out_what_is_not_known_and_lie_in_their_intervals():
    values = np.random.default_rng(0).normal(3.0, 1.0, (200, 2))
    values[5:, 1] = np.nan
    mean = mean_over_samples(values, np.arange(200), 500, 0)
    np.testing.assert_allclose(mean.value, np.nanmean(values, axis=0))
    assert (mean.lower < mean.value).all()
    assert (mean.value < mean.upper).all()
    # The standard error of 200 draws is about 0.07.
    assert mean.upper[0] - mean.lower[0] == pytest.approx(4 * 0.07, rel=0.2)


def test_samples_of_one_episode_are_drawn_together_and_are_no_control(by_path, integrated):
    values = np.random.default_rng(0).normal(3.0, 1.0, 100)
    alone = mean_over_samples(values, np.arange(100), 500, 0)
    together = mean_over_samples(np.repeat(values, 4), np.repeat(np.arange(100), 4), 500, 0)
    # What is said four times is not better known.
    for name in ("value", "lower", "upper"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name))
    np.testing.assert_array_equal(path_norms(by_path).unit, np.arange(NUM_SAMPLES))
    tells = by_path.assign(unit=("sample", [8, 4, 8]))
    np.testing.assert_array_equal(path_norms(tells).unit, [8, 4, 8])
    # The first two samples are alike, and of one episode: the control is the third.
    alike = integrated.copy(deep=True)
    for name in ("gradient_frame", "integrated_frame"):
        alike[name][1] = alike[name][0]
    assert np.nanmax(method_agreement(alike).other[0]) > 0.99
    found = method_agreement(alike.assign(unit=("sample", [8, 8, 4])))
    assert np.abs(found.other).max() < 0.6


def test_files_that_lack_what_is_compared_are_refused(by_path, integrated):
    with pytest.raises(UserError, match=r"expected all of .*; make them with: .* --split_paths"):
        path_norms(by_path.sel(environment_gradient=["passed", "cut"]))
    with pytest.raises(UserError, match="target step is 0"):
        path_norms(by_path.assign_coords(target_step=[0]))
    with pytest.raises(UserError, match="no integrated gradients over frames"):
        method_agreement(by_path)
    with pytest.raises(UserError, match="add --no-env_grads"):
        method_agreement(integrated.assign_coords(environment_gradient=["passed"]))
    with pytest.raises(UserError, match="samples of one source episode; at least 2"):
        method_agreement(integrated.isel(sample=[0]))


@pytest.mark.medium
def test_figures_are_drawn_from_the_files_alone(by_path, integrated, tmp_path):
    for name, results in (("paths", by_path), ("integrated", integrated)):
        provenance = collect_provenance({}, 0, {})
        write_results(tmp_path / name / "saliency.nc", results, provenance)
    config = AttributionPlottingConfig(
        tmp_path / "paths", tmp_path / "integrated", tmp_path / "figures", 50, dpi=40
    )
    pictures = plot_attributions(config, StageReport("attribution_figures"))
    assert {path.stem for path in pictures} == {
        *("paths_frame", "paths_agent_state", "paths_environment_state", "path_shares"),
        *("convergence", "method_agreement"),
    }
    assert (tmp_path / "figures" / "contact_sheet.png").is_file()


def test_a_file_without_integrals_is_refused_before_anything_is_drawn(by_path, tmp_path):
    write_results(tmp_path / "paths" / "saliency.nc", by_path, collect_provenance({}, 0, {}))
    config = AttributionPlottingConfig(
        tmp_path / "paths", tmp_path / "paths", tmp_path / "figures", 50, dpi=40
    )
    with pytest.raises(UserError, match="--integrated: no integrated gradients over frames"):
        plot_attributions(config, StageReport("attribution_figures"))
    assert not list((tmp_path / "figures").glob("*"))
