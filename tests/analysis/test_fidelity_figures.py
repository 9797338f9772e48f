import numpy as np
import pytest
from PIL import Image

from analysis.fidelity_figures import (
    LINES,
    FidelityPlottingConfig,
    draw_differences,
    draw_scores,
    plot_fidelity,
    strongest_baseline,
)
from analysis.fidelity_file import to_dataset
from analysis.results import write_results
from experiment.errors import UserError
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from generative.fidelity import BASELINES, METHODS, WindowScores, summarise
from generative.fidelity_windows import FidelityConfig
from generative.scores import SCORES

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
