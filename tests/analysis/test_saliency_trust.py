"""Trust in saliency: planted maps that are right or wrong, and the commands on a small chain."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from analysis import saliency_trust
from analysis.results import read_results
from analysis.saliency import CopySettings
from analysis.saliency_plan import make_plan
from analysis.saliency_recording import batches_of_plan
from analysis.saliency_trust import (
    FRACTIONS,
    MAPS,
    MODES,
    NOISE_SCALES,
    STEP_SIZES,
    FiniteChanges,
    RealRow,
    TrustSettings,
    finite_changes,
    map_stability,
    perturbation_curves,
    real_row,
)
from analysis.saliency_trust_figures import SaliencyTrustPlottingConfig, plot_saliency_trust
from analysis.saliency_trust_file import (
    AGREEMENTS,
    SIMULATORS,
    TrustMeasurement,
    curve_areas,
    sample_agreements,
    to_dataset,
)
from analysis.saliency_trust_precompute import SaliencyTrustCommand, precompute
from analysis.sample_trust_precompute import SampleTrustCommand
from analysis.sample_trust_precompute import precompute as measure_sample_trust
from experiment.errors import UserError
from experiment.report import StageReport
from generative.bottleneck import SphereBottleneck
from rollouts.store import RolloutDataset

SIZE = 32
PATCH = (slice(4, 12), slice(4, 12))
SETTINGS = TrustSettings(num_random_maps=8)


class PatchAgent:
    """Its value is the sum of the pixels of a patch, plus its state."""

    def embed(self, images):
        return images[(slice(None), slice(None), *PATCH)].sum(dim=(1, 2, 3))[:, None]

    def advance(self, embedding, state, first=None):
        return embedding + state

    def read_out(self, state):
        return SimpleNamespace(value=state[:, 0])


def patch_row():
    generator = torch.Generator().manual_seed(0)
    frame = torch.rand(3, SIZE, SIZE, generator=generator)
    frame[(slice(None), *PATCH)] = 1.0
    return RealRow(frame, torch.tensor([5.0]), step=2, intervention=None)


def planted_map(patch):
    gradient = np.zeros((SIZE, SIZE, 3))
    gradient[patch] = -1.0
    return gradient


def curves_of(patch):
    agent = cast("Any", PatchAgent())
    found = perturbation_curves(agent, patch_row(), planted_map(patch), 3, SETTINGS)
    return {
        (name, mode): found[i, j] for i, name in enumerate(MAPS) for j, mode in enumerate(MODES)
    }


def test_a_map_that_is_right_beats_noise_and_one_that_is_wrong_does_not():
    right, wrong = (
        {key: curve_areas(curve) for key, curve in curves_of(patch).items()}
        for patch in (PATCH, (slice(20, 28), slice(20, 28)))
    )
    assert right["simulator", "deletion"] > 1.3 * right["random", "deletion"]
    assert wrong["simulator", "deletion"] < right["random", "deletion"]
    assert right["simulator", "insertion"] < 0.7 * right["random", "insertion"]
    assert wrong["simulator", "insertion"] > right["random", "insertion"]
    # The gradient on the real frame is the planted map.
    assert right["real_gradient", "deletion"] == pytest.approx(
        right["simulator", "deletion"], rel=1e-3
    )


def test_deletion_and_insertion_begin_and_end_where_they_must():
    curves = curves_of(PATCH)
    everything = curves["simulator", "deletion"][-1]
    assert everything > 1.0
    for name in MAPS:
        deletion, insertion = curves[name, "deletion"], curves[name, "insertion"]
        assert deletion[0] == pytest.approx(0, abs=1e-4)
        assert insertion[-1] == pytest.approx(0, abs=1e-4)
        assert deletion[-1] == pytest.approx(everything)
        assert insertion[0] == pytest.approx(everything)
    # A fifth of the pixels hold the whole patch and what blurring put around it.
    assert curves["simulator", "deletion"][FRACTIONS.index(0.2)] == pytest.approx(everything)


def test_interventions_act_on_the_real_agent_too():
    row = replace(patch_row(), intervention=cast("Any", lambda before, after, step: step * after))
    agent = cast("Any", PatchAgent())
    doubled = perturbation_curves(agent, row, planted_map(PATCH), 3, SETTINGS)
    plain = perturbation_curves(agent, patch_row(), planted_map(PATCH), 3, SETTINGS)
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-4, atol=1e-3)


class GatedAgent(PatchAgent):
    """Its value is the sum of the patch times its state."""

    def advance(self, embedding, state, first=None):
        return embedding * state


def test_what_the_agent_remembers_counts_beside_the_frame():
    agent, row = cast("Any", GatedAgent()), patch_row()
    curves, tripled, forgotten = (
        perturbation_curves(
            agent, replace(row, state_before=before), planted_map(PATCH), 3, SETTINGS
        )
        for before in (row.state_before, 3 * row.state_before, torch.zeros(1))
    )
    assert curves.max() > 100.0
    np.testing.assert_allclose(tripled, 3 * curves, rtol=1e-3, atol=1.0)
    assert not forgotten.any()


def test_a_real_row_is_a_frame_and_the_state_before_it():
    replay = SimpleNamespace(
        obs=np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
        agent_hidden=np.array([[1.0], [2.0], [3.0]], np.float32),
        info=SimpleNamespace(agent_initial_state=np.array([-1.0], np.float32)),
    )
    rows = [real_row(cast("Any", replay), k, None, torch.device("cpu")) for k in range(3)]
    assert [row.state_before.item() for row in rows] == [-1.0, 1.0, 2.0]
    assert [row.step for row in rows] == [0, 1, 2]
    for k, row in enumerate(rows):
        torch.testing.assert_close(row.frame, torch.full((3, 2, 2), k / 255))


def test_only_the_simulators_curve_depends_on_its_map_and_noise_on_the_sample():
    agent, row = cast("Any", PatchAgent()), patch_row()
    right, wrong, other_sample = (
        perturbation_curves(agent, row, planted_map(patch), sample, SETTINGS)
        for patch, sample in ((PATCH, 3), ((slice(20, 28), slice(20, 28)), 3), (PATCH, 4))
    )
    names = list(MAPS)
    for name in MAPS:
        i = names.index(name)
        assert np.allclose(right[i], wrong[i]) == (name != "simulator")
        assert np.allclose(right[i], other_sample[i]) == (name != "random")


def test_edges_of_the_frame_are_where_it_changes():
    """A bright patch on black: its edges are deleted and inserted before all else."""
    frame = torch.zeros(3, SIZE, SIZE)
    frame[(slice(None), *PATCH)] = 1.0
    row = replace(patch_row(), frame=frame)
    found = perturbation_curves(
        cast("Any", PatchAgent()), row, planted_map((slice(20, 28), slice(20, 28))), 3, SETTINGS
    )
    areas = dict(zip(MAPS, curve_areas(found), strict=True))
    deletion, insertion = MODES.index("deletion"), MODES.index("insertion")
    assert areas["edges"][deletion] > 1.3 * areas["random"][deletion]
    assert areas["edges"][insertion] < 0.7 * areas["random"][insertion]


def test_random_maps_are_averaged():
    """The mean over two maps is of the first, which is that of one map alone, and another."""
    agent, row = cast("Any", PatchAgent()), patch_row()
    alone, both = (
        perturbation_curves(
            agent, row, planted_map(PATCH), 3, replace(SETTINGS, num_random_maps=count)
        )[-1]
        for count in (1, 2)
    )
    other = 2 * both - alone
    assert not np.allclose(other, alone)
    np.testing.assert_allclose(other[0, [0, -1]], alone[0, [0, -1]], rtol=1e-4, atol=1e-3)


def planted_changes(num_samples=6, num_directions=200):
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(num_samples, len(STEP_SIZES), num_directions))
    return FiniteChanges(predicted, -2.0 * predicted, predicted)


def test_agreement_of_changes_is_known():
    found = sample_agreements(planted_changes()).mean(axis=(0, 3))
    table = {
        (measure, simulator): found[i, j]
        for i, measure in enumerate(AGREEMENTS)
        for j, simulator in enumerate(SIMULATORS)
    }
    assert table["correlation", "frozen"] == pytest.approx(1.0)
    assert table["sign_agreement", "frozen"] == 1.0
    assert table["relative_error", "frozen"] == 0.0
    assert table["correlation", "discrete"] == pytest.approx(-1.0)
    assert table["sign_agreement", "discrete"] == 0.0
    assert table["relative_error", "discrete"] == pytest.approx(1.5)
    assert abs(table["correlation", "shuffled"]) < 0.1
    assert table["sign_agreement", "shuffled"] == pytest.approx(0.5, abs=0.05)


def test_the_control_is_what_other_directions_do():
    """Of two directions, each is told what the other does in the simulator as it is."""
    found = sample_agreements(planted_changes(num_directions=2))
    correlation = found[:, list(AGREEMENTS).index("correlation")]
    np.testing.assert_allclose(correlation[:, list(SIMULATORS).index("discrete")], -1.0)
    np.testing.assert_allclose(correlation[:, list(SIMULATORS).index("shuffled")], 1.0)


def plan_of(bottleneck):
    return cast(
        "Any",
        SimpleNamespace(
            source=SimpleNamespace(
                simulator=SimpleNamespace(simulator=SimpleNamespace(bottleneck=bottleneck))
            )
        ),
    )


def test_changes_are_predicted_for_the_step_that_is_taken(monkeypatch):
    """Where the value is linear in the latent they come out exactly, however far the step leads
    over the sphere of latents."""
    weight = torch.tensor([1.0, -2.0, 0.5])

    def simulate(plan, batch, latent, num_steps):
        return SimpleNamespace(value=[latent @ weight * (step + 1) for step in range(num_steps)])

    monkeypatch.setattr(saliency_trust, "simulate_batch", simulate)
    bottleneck = SphereBottleneck(3)
    latent = bottleneck.project(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))
    batch = cast("Any", SimpleNamespace(latent=latent, ids=np.array([4, 7])))
    found = finite_changes(plan_of(bottleneck), batch, replace(SETTINGS, num_directions=5))
    assert found.predicted.shape == (2, len(STEP_SIZES), 5)
    np.testing.assert_allclose(found.discrete, found.predicted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.frozen, found.predicted, rtol=1e-3, atol=1e-5)
    # No latent of the sphere is further from another than its diameter.
    largest = 2.0 * float(weight.norm()) * (SETTINGS.target_step + 1)
    assert 1.0 < np.abs(found.predicted).max() <= largest


def test_stability_compares_perturbed_copies_with_the_clean_one_and_each_other(monkeypatch):
    """One sample of five copies, two steps, frames of one channel and 1 × 2 pixels."""
    copies = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    later = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [2.0, 4.0]])
    scales = []

    def gradients(plan, batch, settings, _):
        scales.append(settings.perturbation_scale)
        steps = (copies, 0.0 * later) if len(scales) > 1 else (copies, later)
        return torch.stack(steps, dim=1)[None, :, :, None, None]

    monkeypatch.setattr(saliency_trust, "_frame_gradients", gradients)
    batch = cast("Any", None)
    found = map_stability(plan_of(None), batch, CopySettings(5, 0.25), SETTINGS)
    assert scales == [0.25, *NOISE_SCALES]
    np.testing.assert_allclose(found.averaged[0, 0, :, 0], [1.0, 2.0])
    np.testing.assert_array_equal(found.clean, [[1.0, 1.0, 3.0, 0.0]])
    np.testing.assert_allclose(found.to_clean, np.full((1, len(NOISE_SCALES)), np.sqrt(0.5)))
    np.testing.assert_allclose(found.halves, np.zeros((1, len(NOISE_SCALES))))


def test_changes_that_never_come_are_not_predicted():
    changes = planted_changes()
    nothing = replace(changes, discrete=np.zeros_like(changes.discrete))
    found = sample_agreements(nothing)[:, :, list(SIMULATORS).index("discrete")]
    assert (found[:, :2] == 0).all()
    assert np.isnan(found[:, 2]).all()


@dataclass(frozen=True)
class Planted:
    """Samples of which the trusted have good maps and the poor have bad ones."""

    trust = np.array([0.9, 0.8, 0.7, 0.2, 0.1, np.nan], np.float32)

    def measurement(self):
        count = len(self.trust)
        curves = np.ones((count, len(MAPS), len(MODES), len(FRACTIONS)))
        curves[:3, 0, 0], curves[3:5, 0, 0] = 3.0, 0.5
        curves[5] = np.nan
        likeness = np.full((count, len(NOISE_SCALES)), 0.75)
        return TrustMeasurement(
            sample_id=np.arange(count),
            unit=np.array([0, 0, 1, 2, 3, -6]),
            trust=self.trust,
            changes=planted_changes(count, 4),
            # Those of one episode are alike, and all others differ.
            clean_maps=np.eye(count, dtype=np.float32)[[0, 0, 2, 3, 4, 5]],
            to_clean=likeness,
            halves=likeness,
            curves=curves,
        )


def test_the_file_tells_trusted_samples_from_poor_ones():
    results = to_dataset(Planted().measurement(), num_resamples=100, seed=0)
    assert results["group_size"].values.tolist() == [5, 3, 2]
    difference = results["area_difference"].sel(map="simulator", baseline="random", mode="deletion")
    assert float(difference.sel(group="trusted")) == pytest.approx(2.0)
    assert float(difference.sel(group="poor")) == pytest.approx(-0.5)
    assert float(difference.sel(group="all")) == pytest.approx((3 * 2.0 - 2 * 0.5) / 5)
    bounds = results["area_difference_interval"].sel(
        map="simulator", baseline="random", mode="deletion", group="all"
    )
    assert float(bounds.sel(bound="lower")) < 1.0 < float(bounds.sel(bound="upper"))
    assert np.allclose(results["likeness"].sel(compared="other_sample"), 0.0)
    assert np.isnan(results["area"].isel(sample=5)).all()
    assert results.attrs["num_episodes"] == 5


def test_a_sample_of_unknown_trust_is_neither_trusted_nor_poor():
    measured = Planted().measurement()
    curves = np.where(np.isnan(measured.curves), 7.0, measured.curves)
    results = to_dataset(replace(measured, curves=curves), num_resamples=100, seed=0)
    assert results["group_size"].values.tolist() == [6, 3, 2]


@pytest.fixture(scope="module")
def trust_command(fake_chain, tmp_path_factory):
    samples = fake_chain.record("saliency_trust", max_samples=4)
    command = SampleTrustCommand(
        generated_data_dir=samples,
        data_dir=fake_chain.data,
        num_envs=2,
        num_threads=0,
        num_resamples=20,
        device="cpu",
    )
    measure_sample_trust(command, StageReport("sample_trust"))
    return SaliencyTrustCommand(
        model_file=fake_chain.folder / "simulator",
        generated_data_dir=samples,
        output_dir=tmp_path_factory.mktemp("saliency_trust"),
        sample_ids=("0", "to", "4"),
        target_step=1,
        saliency_batch_size=3,
        num_directions=8,
        num_random_maps=2,
        num_resamples=20,
        device="cpu",
    )


@pytest.mark.medium
def test_the_commands_measure_and_draw(trust_command, tmp_path):
    report = StageReport("saliency_trust")
    path = precompute(trust_command, report)
    with read_results(path) as results:
        assert results.sizes["sample"] == 4
        curve = results["curve"]
        assert np.allclose(curve.sel(mode="deletion", fraction=0.0), 0.0, atol=1e-5)
        agreement = results["agreement"].sel(measure="correlation", simulator="frozen")
        assert float(agreement.sel(step_size=0.01)) > 0.95
        likeness = results["likeness"].sel(compared="to_clean")
        assert float(likeness.isel(noise_scale=0)) > 0.9
        assert np.isfinite(results["simulator_trust"]).any()
    assert report.metrics["samples_with_a_real_row"] >= 2
    config = SaliencyTrustPlottingConfig(path, tmp_path, dpi=50)
    pictures = plot_saliency_trust(config, StageReport("saliency_trust_figures"))
    assert [picture.name for picture in pictures] == [
        "saliency_finite_changes.png",
        "saliency_stability.png",
        "saliency_reality.png",
    ]


@pytest.mark.medium
def test_each_samples_map_is_held_against_its_own_real_row(trust_command, tmp_path):
    command = replace(trust_command, output_dir=tmp_path)
    plan, settings = make_plan(command.saliency), command.settings
    (batch,) = batches_of_plan(plan)
    maps = map_stability(plan, batch, plan.config.copies, settings).averaged
    replays = RolloutDataset(command.generated_data_dir / "replays")
    replayed = replays.episodes["episode_id"].tolist()
    judged = 0
    with read_results(precompute(command, StageReport("saliency_trust"))) as results:
        for index, sample in enumerate(batch.ids.tolist()):
            found = results["area"].sel(sample=sample)
            if sample not in replayed:
                assert np.isnan(found).all()
                continue
            replay = replays.read_episode(replays.index_of(sample))
            if len(replay) <= settings.target_step:
                assert np.isnan(found).all()
                continue
            judged += 1
            row = real_row(replay, settings.target_step, None, torch.device("cpu"))
            curves = perturbation_curves(
                plan.source.agent.policy, row, maps[index], sample, settings
            )
            np.testing.assert_allclose(found, curve_areas(curves), rtol=1e-3, atol=1e-6)
    assert judged >= 2


@pytest.mark.medium
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saliency_batch_size": 2}, r"--saliency_batch_size 2: must be at least 3"),
        ({"num_directions": 1}, r"--num_directions 1: must be at least 2"),
        ({"target_step": -1}, r"--target_step -1: must be at least 0"),
        ({"sample_ids": ("77",)}, r"--sample_ids 77"),
    ],
)
def test_bad_input_is_refused_before_work(trust_command, changes, message):
    with pytest.raises(UserError, match=message):
        precompute(replace(trust_command, **changes), StageReport("saliency_trust"))


@pytest.mark.medium
def test_missing_replays_name_the_command(trust_command, tmp_path):
    with pytest.raises(UserError, match=r"--replay_dir .*sample_trust_precompute\.py"):
        precompute(replace(trust_command, replay_dir=tmp_path), StageReport("saliency_trust"))


def test_the_target_step_has_its_own_name_here(simulated_chain, told_samples, tmp_path):
    command = SaliencyTrustCommand(
        model_file=simulated_chain / "simulator",
        agent_file=str(simulated_chain / "agent"),
        generated_data_dir=told_samples,
        output_dir=tmp_path,
        target_step=7,
        device="cpu",
    )
    message = r"--target_step 7: expected steps from 0 to 4 \(.*actions end with step 4\)"
    with pytest.raises(UserError, match=message):
        precompute(command, StageReport("saliency_trust"))
