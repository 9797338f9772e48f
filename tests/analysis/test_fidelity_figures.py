import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from analysis.fidelity_curves import LINES
from analysis.fidelity_figures import (
    FidelityPlottingConfig,
    draw_differences,
    draw_scores,
    plot_fidelity,
    strongest_baseline,
)
from analysis.fidelity_file import to_dataset
from analysis.fidelity_summary import draw_summary
from analysis.results import write_results
from analysis.sample_trust import to_dataset as trust_dataset
from experiment.errors import UserError
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from generative.calibration import calibrate
from generative.component_fit import ComponentErrors
from generative.event_forecasts import EVENTS, FORECASTS, EventForecasts
from generative.fidelity import BASELINES, METHODS, WindowScores, summarise
from generative.fidelity_windows import FidelityConfig
from generative.scores import SCORES
from generative.trust import COMPARED, RealityScores

PREDICTIONS, MEASURES = list(METHODS), list(SCORES)


@pytest.fixture
def results():
    """Scores of 1, except that the last frame is best in squared error at horizon 1, worst at 2."""
    scores = np.random.default_rng(0).uniform(0.9, 1.1, (len(SCORES), len(METHODS), 8, 3))
    scores[0, PREDICTIONS.index("last_frame")] = [0.0, 0.1, 5.0]
    scores[0, PREDICTIONS.index("mode")] = 0.5
    windows = WindowScores(scores, np.arange(8) // 2, np.arange(8), np.arange(8))
    return to_dataset(summarise(windows, FidelityConfig(num_resamples=50)))


def test_the_strongest_baseline_is_chosen_at_each_horizon(results):
    squared_error = strongest_baseline(results, "mse").values
    assert squared_error[1] == "last_frame"
    assert squared_error[2] != "last_frame"
    similarity = strongest_baseline(results, "ssim").values
    means = results["score"].sel(measure="ssim", prediction=list(BASELINES)).values
    assert list(similarity) == [BASELINES[i] for i in means.argmax(0)]


def test_every_prediction_has_a_line_that_shows_its_scores(results):
    assert sorted(line.prediction for line in LINES) == sorted(METHODS)
    panels = dict(zip(MEASURES, draw_scores(results).axes, strict=True))
    for measure, axis in panels.items():
        for line, drawn in zip(LINES, axis.get_lines(), strict=True):
            expected = results["score"].sel(measure=measure, prediction=line.prediction)
            np.testing.assert_array_equal(drawn.get_ydata(), expected)


def test_differences_are_from_the_strongest_baseline(results):
    axis = draw_differences(results).axes[MEASURES.index("mse")]
    mode = np.asarray(axis.get_lines()[0].get_ydata())
    assert mode[1] == pytest.approx(0.4)
    assert -0.7 < mode[2] < -0.3
    squares = {line.get_label(): line for line in axis.get_lines() if line.get_marker() == "s"}
    of_last_frame = squares["baseline: last frame repeated"]
    assert list(np.asarray(of_last_frame.get_xdata())) == [0, 1]
    assert sum(len(np.asarray(line.get_xdata())) for line in squares.values()) == 3


@pytest.mark.parametrize("decibels", [-20.0, 20.0])
def test_differences_in_decibels_are_seen_beside_zero_from_horizon_1_on(results, decibels):
    """However much better or worse than every baseline the simulator is."""
    results["difference"].loc[{"measure": "psnr", "horizon": 0}] = -90.0
    results["difference"].loc[{"measure": "psnr", "horizon": [1, 2]}] = decibels
    bottom, top = draw_differences(results).axes[MEASURES.index("psnr")].get_ylim()
    assert bottom < min(0.0, decibels) < max(0.0, decibels) < top
    assert bottom > -30.0


@pytest.fixture
def full_results(results):
    """With components and events, too."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(8, 3, 4))
    errors = ComponentErrors(rng.uniform(size=(len(METHODS), 8, 3, 4)), truth)
    scores = np.ones((len(SCORES), len(METHODS), 8, 3))
    windows = WindowScores(scores, np.arange(8) // 2, np.arange(8), np.arange(8), errors)
    forecasts = EventForecasts(
        rng.uniform(size=(len(EVENTS), len(FORECASTS), 40, 3)),
        rng.uniform(size=(len(EVENTS), 40, 3)) < 0.3,
        np.arange(40) // 4,
        np.array([True, True]),
    )
    config = FidelityConfig(num_resamples=50)
    return to_dataset(summarise(windows, config, calibrate(forecasts, config)))


@pytest.fixture
def known_trust():
    scores = RealityScores(
        np.arange(5),
        np.ones((len(SCORES), len(COMPARED), 5, 3)),
        np.array([10**9, 10**9, 10**9 + 4, 10**9 + 4, 10**9 + 5]),
    )
    trust = np.array([0.2, 0.4, 0.4, 0.9, np.nan])
    return trust_dataset(scores, trust, means=None, averages=None)


def panels_of(figure):
    # A colour bar has no title.
    axes = [axis for axis in figure.axes if axis.get_title()]
    return {axis.get_title().splitlines()[0]: axis for axis in axes}


def test_the_summary_shows_what_was_measured(full_results, known_trust):
    panels = panels_of(draw_summary(full_results, known_trust))
    mode = panels["squared error of pixels"].get_lines()[0].get_ydata()
    expected = full_results["score"].sel(measure="mse", prediction="mode")
    np.testing.assert_array_equal(mode, expected)
    (control, _) = panels["squared error, true less other actions"].get_lines()
    expected = full_results["difference"].sel(
        measure="mse", prediction="mode", baseline="shuffled_actions"
    )
    np.testing.assert_array_equal(control.get_ydata(), expected)
    image = panels["R² of hidden components, most probable"].images[0].get_array()
    assert image is not None
    expected = full_results["component_r2"].sel(prediction="mode").values.T
    np.testing.assert_allclose(image, expected)
    reward = panels["AUROC of events (dotted: upper bound)"].get_lines()[0].get_ydata()
    expected = full_results["auroc"].sel(event="reward", forecast="mode")[:-1]
    np.testing.assert_array_equal(reward, expected)
    (legend,) = [
        axis.get_legend() for title, axis in panels.items() if title.startswith("reliability")
    ]
    events, rows = (int(full_results[name][..., -1].max()) for name in ("num_events", "num_rows"))
    assert legend is not None
    words = " ".join(text.get_text() for text in legend.get_texts())
    assert f"{events} in {rows} rows" in words
    (trust,) = [axis for title, axis in panels.items() if title.startswith("against reality")]
    assert "4 samples, 2 held-out levels" in trust.get_title()
    bars = [bar for bar in trust.patches if isinstance(bar, Rectangle)]
    assert sum(bar.get_height() for bar in bars) == 4


def test_the_summary_leaves_out_what_was_not_measured(results):
    titles = panels_of(draw_summary(results))
    assert len(titles) == len(SCORES) + 1


def test_figures_are_written_as_png_and_pdf(results, tmp_path):
    path = tmp_path / "in" / "simulator_fidelity.nc"
    path.parent.mkdir()
    write_results(path, results, collect_provenance({}, 0, {}))
    config = FidelityPlottingConfig(input_dir=path.parent, output_dir=tmp_path / "out", dpi=60)
    pictures = plot_fidelity(config, StageReport("fidelity_figures"))
    for picture in pictures:
        assert np.asarray(Image.open(picture).convert("L")).std() > 5
        assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_a_missing_result_names_the_command_that_makes_it(tmp_path):
    config = FidelityPlottingConfig(input_dir=tmp_path, output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="simulator_fidelity_precompute"):
        plot_fidelity(config, StageReport("fidelity_figures"))
