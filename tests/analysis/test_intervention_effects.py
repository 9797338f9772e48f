"""Effects of interventions on an agent whose readout is known."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from agents.checkpoint import load_agent, save_agent
from agents.networks import NetworkConfig, make_policy
from agents.recorder import record_episodes
from agents.recording_config import RecordingConfig
from analysis import intervention_effects
from analysis.clustering import Clustering
from analysis.effect_figures import EffectPlottingConfig, draw_effects, plot_effects
from analysis.effect_names import POLICY_KL, World, intervention_in_words
from analysis.effect_predictions import differentiate
from analysis.effect_recording import (
    EffectInputs,
    EffectRecordingConfig,
    check_variants,
    levels_of_pairs,
    record_variants,
    sampling_plan,
)
from analysis.effect_verdict import find
from analysis.hidden_states import (
    ClusterSettings,
    EmbeddingSettings,
    HiddenAnalysisConfig,
    ProjectionSettings,
    analyse_hidden_states,
)
from analysis.intervention_effects import (
    BehaviourClusters,
    Measuring,
    WorldEffects,
    excess_in_size,
    false_discovery,
    measure_world,
    to_dataset,
)
from analysis.intervention_effects_precompute import load_clusters
from analysis.paired_rows import ActionGroups, MeasureNames, Outputs, read_pair_rows
from analysis.results import read_results, write_results
from environments.fake import fake_spec
from experiment.command_line import apply_values, load_preset
from experiment.errors import UserError
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from generative.checkpoint import load_simulator, save_simulator
from generative.level_bootstrap import LevelBootstrap, ResampledMeans
from generative.sampling import simulate_samples
from generative.simulator import SimulationNoise, Simulator, SimulatorConfig
from projections.hidden import HiddenProjection
from projections.intervention_flags import InterventionConfig
from rollouts.store import RolloutDataset

pytestmark = pytest.mark.medium

FAKE, HIDDEN_DIM = fake_spec(), 8
READ, UNREAD = 0, 7
"""The unit that the value is read from, and one that nothing reads."""
WEIGHT, AMOUNT = 2.0, 0.5


def planted_policy():
    """value = WEIGHT · h[READ]; h[UNREAD] reaches neither the heads nor another unit."""
    torch.manual_seed(0)
    policy = make_policy(NetworkConfig(width=0.1, num_features=HIDDEN_DIM))
    policy.value_head.weight.data.zero_()
    policy.value_head.bias.data.zero_()
    policy.value_head.weight.data[0, READ] = WEIGHT
    policy.policy_head.weight.data *= 100
    policy.policy_head.weight.data[:, UNREAD] = 0
    assert policy.gru is not None
    policy.gru.weight_hh.data[:, UNREAD] = 0
    return policy.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("effects")
    save_agent(folder / "agent", planted_policy(), FAKE, {}, 0)
    agent = load_agent(folder / "agent")
    recording = RecordingConfig(max_episodes=12, num_envs=4, num_threads=0)
    record_episodes(agent, FAKE, folder / "data", recording)
    source = RolloutDataset(folder / "data")
    sizes = load_preset("simulator.yml", "tiny")["training"]["simulator"]
    simulator = Simulator(apply_values(SimulatorConfig, sizes, "tiny"), agent.policy)
    # Untrained, it would predict an end at every first row, and effects of no other.
    nn.init.constant_(list(simulator.terminal_head.parameters())[-1], -20.0)
    save_simulator(folder / "simulator", simulator, FAKE, agent.hash, {}, 0)
    HiddenProjection("pca", 3).fit(source.read_field("agent_hidden")).save(folder / "projection")
    return SimpleNamespace(
        folder=folder,
        agent=agent,
        source=source,
        simulator=load_simulator(folder / "simulator", agent),
    )


def inputs_of(chain, name, **intervention):
    config = InterventionConfig(
        direction_type="unit", projection=chain.folder / "projection", **intervention
    )
    sizes = {**load_preset("intervention_effects.yml", "tiny")["recording"], "num_threads": 0}
    recording = apply_values(EffectRecordingConfig, sizes, "tiny")
    where = chain.folder / name
    device = torch.device("cpu")
    return EffectInputs(
        chain.agent, chain.simulator, chain.source, config, recording, where, 0, device
    )


def push(chain, name, unit):
    return inputs_of(
        chain,
        name,
        add_directions=(unit,),
        add_amounts=(AMOUNT,),
        amount_unit="coordinate",
        intervention_steps=("0",),
    )


def effects_of(inputs, clusters: BehaviourClusters | None = None) -> xr.Dataset:
    recordings = record_variants(inputs)
    projection = HiddenProjection.load(inputs.intervention.projection)
    num_clusters = 0 if clusters is None else clusters.clustering.num_clusters
    names = MeasureNames(ActionGroups.of(FAKE), 3, num_clusters)
    measuring = Measuring(inputs.agent.policy, projection, clusters, names, 4)
    levels = np.arange(inputs.recording.num_starts)
    bootstrap = LevelBootstrap(levels, 200, 0)
    plans = {"simulated": sampling_plan(inputs, "twin"), "real": None}
    effects: dict[World, WorldEffects] = {
        world: measure_world(found, measuring, bootstrap, world, plans[world])
        for world, found in recordings.items()
    }
    return to_dataset(effects, recordings, names, levels)


@pytest.fixture(scope="module")
def read_effects(chain):
    return effects_of(push(chain, "read", READ))


def test_effect_of_a_read_direction_is_what_its_weight_says(read_effects) -> None:
    assert np.isfinite(read_effects["row_effect"].sel(world="simulated")).all()
    first = read_effects.sel(row_measure="value").isel(step=0)
    for world in ("simulated", "real"):
        observed = first["row_effect"].sel(world=world, variant="tested")
        assert float(observed) == pytest.approx(WEIGHT * AMOUNT, rel=1e-4)
        flipped = first["row_effect"].sel(world=world, variant="sign_flip")
        assert float(flipped) == pytest.approx(-WEIGHT * AMOUNT, rel=1e-4)
        low, high = first["row_effect_interval"].sel(world=world, variant="tested").values
        assert high - low < 1e-3
    predicted = first["predicted_row"].sel(variant="tested").values
    np.testing.assert_allclose(predicted, WEIGHT * AMOUNT, rtol=1e-4)
    norms = read_effects["change_norm"].values
    np.testing.assert_allclose(norms, AMOUNT, rtol=1e-4)


def test_verdict_of_a_read_direction(read_effects) -> None:
    for world in ("simulated", "real"):
        finding = find(read_effects, world, "value")
        assert finding.is_seen
        assert finding.is_reversed_by_flip
        assert finding.num_random == 2


def test_direction_that_nothing_reads_has_no_effect(chain) -> None:
    results = effects_of(push(chain, "unread", UNREAD))
    for world in ("simulated", "real"):
        for measure in ("value", "return", "action:right"):
            finding = find(results, world, measure)
            assert finding.low - 1e-5 <= 0 <= finding.high + 1e-5
            assert finding.words == "no effect seen"
    assert (
        np.abs(results["row_effect"].sel(variant="tested", row_measure="component:0")).max() > 0.01
    )
    np.testing.assert_allclose(
        results["predicted"].sel(row_measure="value", variant="tested"), 0, atol=1e-6
    )


def test_forward_derivative_equals_reverse_mode(chain) -> None:
    inputs = inputs_of(chain, "none", swap_directions_from=(READ,), swap_directions_to=(2,))
    plan = sampling_plan(inputs, "twin")
    tested = inputs.make_variant("simulated", "tested")
    assert tested is not None
    tangents = differentiate(plan, tested)
    initial = simulate_samples(plan, np.arange(6)).initial
    strength = torch.zeros(6, 1, requires_grad=True)

    class Weak:
        def __call__(self, previous, proposed, step):
            return proposed + strength * (tested(previous, proposed, step) - proposed)

        def describe(self):
            return {}

    steps = plan.simulator.simulator.simulate(
        initial,
        4,
        agent_actions="sample",
        noise=SimulationNoise(0, torch.arange(6)),
        intervention=Weak(),
    )
    for k in range(4):
        (expected,) = torch.autograd.grad(steps.value[k].sum(), strength, retain_graph=True)
        np.testing.assert_allclose(
            tangents.d_value[:, k], expected[:, 0].numpy(), rtol=1e-3, atol=1e-5
        )


def test_pairs_without_a_difference_are_not_significant_and_noise_rarely_is() -> None:
    noise = np.random.default_rng(0).normal(size=(50, 200))
    bootstrap = LevelBootstrap(np.arange(200), 400, 0)
    resampled = bootstrap.resample(noise.T) / 200
    assert false_discovery(noise.mean(axis=1), resampled, 200).min() > 0.05
    planted = noise + np.r_[1.0, np.zeros(49)][:, None]
    q_value = false_discovery(planted.mean(axis=1), bootstrap.resample(planted.T) / 200, 200)
    assert q_value[0] < 1e-6
    assert q_value[1:].min() > 0.05
    assert false_discovery(np.zeros(3), np.zeros((10, 3)), 5).tolist() == [1.0, 1.0, 1.0]


def test_a_divergence_is_no_discovery_that_makes_room_for_others() -> None:
    """Value, divergence, return and share of ends, of which only the divergence differs from 0."""
    names = MeasureNames(ActionGroups((), np.zeros((0, 0))), num_components=0, num_clusters=0)
    mean = np.array([2.2, 9.0, 0.5, 0.5])
    resampled = np.stack([mean + 1.0, mean - 1.0])
    means = ResampledMeans(mean[None], resampled[:, None])
    found = WorldEffects(means, means, {}, {}, np.zeros(4), num_levels=100).q_value(names)
    assert np.isnan(found[names.by_pair.index(POLICY_KL)])
    others = [0, 2, 3]
    alone = false_discovery(mean[others], resampled[:, others], 100)
    np.testing.assert_allclose(found[others], alone)
    assert alone[0] > 0.05
    assert false_discovery(mean, resampled, 100)[0] < alone[0]


def test_a_control_that_points_the_other_way_is_compared_by_its_size() -> None:
    """Effects of one measure: tested, as large, half as large, and both with the sign reversed."""
    rng = np.random.default_rng(0)
    size = np.array([1.0, 0.99, 0.5, -0.99, -0.5])
    values = size[:, None] + np.sign(size)[:, None] * rng.normal(0, 1, (5, 100))
    values[3:] = -values[1:3]
    bootstrap = LevelBootstrap(np.arange(100), 500, 0)
    resampled = bootstrap.resample(values.T) / 100
    excess = excess_in_size(ResampledMeans(values.mean(axis=1)[:, None], resampled[..., None]))
    # Which way a control points changes nothing.
    np.testing.assert_allclose(excess.mean[2:], excess.mean[:2])
    np.testing.assert_allclose(excess.interval[:, 2:], excess.interval[:, :2])
    np.testing.assert_allclose(excess.mean[:2], (values[:1] - values[1:3]).mean(axis=1)[:, None])
    low, high = excess.interval[..., 0]
    assert (low[[0, 2]] < 0).all()
    assert (high[[0, 2]] > 0).all()
    assert (low[[1, 3]] > 0).all()
    # The tested effect may be the negative one.
    turned = excess_in_size(ResampledMeans(-values.mean(axis=1)[:, None], -resampled[..., None]))
    np.testing.assert_allclose(turned.interval, excess.interval)


def test_rows_are_read_by_id_and_end_with_their_episode(chain) -> None:
    rows = read_pair_rows(chain.source, 6)
    ids = np.argsort(chain.source.episodes["episode_id"].to_numpy())
    for position, index in enumerate(ids.tolist()):
        rollout = chain.source.read_episode(index)
        count = min(6, len(rollout))
        np.testing.assert_allclose(rows.outputs.value[position, :count], rollout.value[:count])
        assert np.isnan(rows.outputs.value[position, count:]).all()
        assert rows.episode_return[position] == pytest.approx(rollout.reward.sum())
        assert rows.is_done[position] == rollout.done.any()


def test_gradients_predict_no_row_that_the_twin_has_not(chain, read_effects, monkeypatch) -> None:
    """The first of them ends with its second row, the others later."""
    inputs = push(chain, "read", READ)
    num_pairs, num_rows = inputs.recording.num_starts, 4
    is_row = np.arange(num_rows) < np.where(np.arange(num_pairs) == 0, 2, num_rows)[:, None]

    def shortened(dataset, num_rows):
        rows = read_pair_rows(dataset, num_rows)
        outputs = [
            np.where(is_row.reshape(*is_row.shape, *[1] * (x.ndim - 2)), np.nan_to_num(x), np.nan)
            for x in (rows.outputs.log_probs, rows.outputs.value, rows.outputs.hidden)
        ]
        return replace(rows, outputs=Outputs(*outputs))

    monkeypatch.setattr(intervention_effects, "read_pair_rows", shortened)
    monkeypatch.setattr(
        intervention_effects,
        "gradient_effects",
        lambda tangents, groups, _: np.where(is_row, 1.0, 1000.0)[None].repeat(
            2 + len(groups.names) + 3, axis=0
        ),
    )
    at = effects_of(inputs).sel(variant="tested")
    predicted = at[["predicted", "predicted_row"]].sel(prediction="gradient_simulated")
    np.testing.assert_allclose(predicted["predicted"], 1.0)
    np.testing.assert_allclose(predicted["predicted_row"], 1.0)


@pytest.mark.parametrize("world", ["simulated", "real"])
def test_occupancy_of_clusters_is_compared_with_the_twins(chain, read_effects, world) -> None:
    """Two clusters, on either side of the twin's median along the first component."""
    inputs = push(chain, "read", READ)
    projection = HiddenProjection.load(chain.folder / "projection")

    def scores(variant) -> list[np.ndarray]:
        """Of the first four rows of each episode that no end comes before."""
        dataset = RolloutDataset(inputs.variant_folder(world, variant))
        rollouts = (dataset.read_episode(index) for index in range(dataset.num_episodes))
        rows = [r.agent_hidden[np.cumsum(r.done) - r.done == 0][:4] for r in rollouts]
        return [projection.principal_components(hidden)[:, 0] for hidden in rows]

    middle = np.median(np.concatenate(scores("twin")))
    centres = np.array([[middle - 1], [middle + 1]], np.float32)
    sides = Clustering(centres, np.array([0, 1], np.int32))
    results = effects_of(inputs, BehaviourClusters(sides, projection, num_features=1))
    above, above_of_twin = (
        np.mean([np.mean(found > middle) for found in scores(variant)])
        for variant in ("tested", "twin")
    )
    assert abs(above - above_of_twin) > 0.05
    effect = results["effect"].sel(world=world, variant="tested")
    assert float(effect.sel(measure="cluster:1")) == pytest.approx(above - above_of_twin)
    assert float(effect.sel(measure="cluster:0")) == pytest.approx(above_of_twin - above)


@pytest.mark.parametrize("num_pca", [2, 12])
def test_rows_are_in_the_clusters_of_the_hidden_analysis(
    planted_datasets, tmp_path: Path, num_pca
) -> None:
    """Two components are fewer than the clusters were found in, and tell the planted ones apart."""
    config = HiddenAnalysisConfig(
        data_dir=planted_datasets.real,
        generated=False,
        output_dir=tmp_path,
        projection=ProjectionSettings(num_pca=num_pca, num_ica=3, num_nmf=0),
        clusters=ClusterSettings(num_clusters=3, num_cluster_neighbours=8),
        layout=EmbeddingSettings("none"),
    )
    path = analyse_hidden_states(config, StageReport("hidden_analysis"))
    clusters = load_clusters(path, HiddenProjection.load(tmp_path / "projection"))
    assert clusters is not None
    with read_results(path) as results:
        assert num_pca == 12 or num_pca < results.attrs["num_components_95"]
        expected = results["cluster"].values
    hidden = RolloutDataset(planted_datasets.real).read_field("agent_hidden")
    np.testing.assert_array_equal(clusters.assign(hidden[None].astype(float))[0], expected)


def test_controls_of_a_clamp_have_its_measured_norm_and_no_flip(chain) -> None:
    inputs = inputs_of(
        chain, "clamp", clamp_directions=(1,), clamp_values=(1.0,), amount_unit="coordinate"
    )
    assert inputs.controls == ("random_0", "random_1")
    strengths = record_variants(replace(inputs, recording=replace(inputs.recording, real=False)))
    norms = [s.mean_change_norm for s in strengths["simulated"].strengths.values()]
    np.testing.assert_allclose(norms, norms[0], rtol=1e-3)


def test_random_controls_have_directions_of_their_own(chain) -> None:
    """Each as long as the push, and the same again when it is made again."""
    inputs = push(chain, "directions", READ)
    state = torch.zeros(1, HIDDEN_DIM)
    names = ("random_0", "random_1", "random_0")
    variants = [inputs.make_variant("real", name) for name in names]
    first, second, again = (v(state, state, 0)[0] for v in variants if v is not None)
    torch.testing.assert_close(first.norm(), torch.tensor(AMOUNT))
    torch.testing.assert_close(second.norm(), torch.tensor(AMOUNT))
    assert torch.cosine_similarity(first, second, dim=0).abs() < 0.9
    torch.testing.assert_close(again, first)


def test_levels_of_pairs_are_in_the_order_of_their_ids() -> None:
    twin = SimpleNamespace(
        episodes=pd.DataFrame({"episode_id": [2, 0, 1], "source_episode_id": [30, 10, 20]})
    )
    source = SimpleNamespace(
        episodes=pd.DataFrame({"episode_id": [20, 30, 10], "level_seed": [200, -1, 100]})
    )
    levels = levels_of_pairs(cast(RolloutDataset, twin), cast(RolloutDataset, source))
    assert levels.tolist() == [100, 200, 30]


def test_starts_are_as_many_as_there_are(chain, capsys) -> None:
    inputs = push(chain, "many", UNREAD)
    check_variants(inputs)
    assert "--num_starts" not in capsys.readouterr().out
    recording = replace(inputs.recording, num_starts=10_000, real=False)
    inputs = replace(inputs, recording=recording)
    check_variants(inputs)
    plan = sampling_plan(inputs, "twin")
    printed = capsys.readouterr().out
    assert f"--num_starts 10000: only {plan.source.num_available} exist" in printed
    assert plan.config.max_samples == plan.source.num_available


def test_another_intervention_in_the_same_folder_is_refused(chain, read_effects) -> None:
    with pytest.raises(UserError, match="--swap_directions_from/to"):
        check_variants(push(chain, "read", UNREAD))


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({"kind": "swap", "sources": [3, 5], "targets": [5, None], "acts_on": "updates",
          "steps": {"start": 1, "stop": None}},
         "Swap 3 → 5, 5 → nothing, of updates, from row 1 on"),
        ({"kind": "scale", "directions": [2], "factors": [0.5], "acts_on": "states",
          "steps": {"start": 2, "stop": 6}}, "Scale 2 by 0.5, of states, from row 2 to 5"),
        ({"kind": "add", "directions": [1], "amounts": [-2.0], "unit": "deviation",
          "steps": [0, 4]}, "Add -2 standard deviations to 1, at rows 0, 4"),
        ({"kind": "clamp", "directions": [0, 15], "values": [1.0, -1.5], "unit": "coordinate",
          "steps": {"start": 0, "stop": None}}, "Hold 0 at 1, hold 15 at -1.5"),
    ],
)  # fmt: skip
def test_an_intervention_is_told_in_words(description, words) -> None:
    assert intervention_in_words([description]) == words


def test_the_page_names_the_intervention_and_shows_each_component_by_row(read_effects) -> None:
    figure = draw_effects(read_effects)
    told = read_effects.attrs["intervention"]
    assert told.startswith(f"Add {AMOUNT:g} to ")
    assert figure.get_suptitle().startswith(f"{told}: against its unmodified twin")
    panels = [axis for axis in figure.axes if axis.get_title().startswith("components by row")]
    assert len(panels) == read_effects.sizes["world"]
    for panel, world in zip(panels, read_effects["world"].values, strict=True):
        members = [name for name in read_effects["row_measure"].values if "component:" in name]
        expected = read_effects["row_effect"].sel(
            world=world, variant="tested", row_measure=members
        )
        drawn = np.ma.filled(panel.images[0].get_array(), np.nan)
        np.testing.assert_array_equal(drawn, expected.transpose("row_measure", "step"))


def test_rounding_gets_no_dot(read_effects) -> None:
    rounded = read_effects.copy(deep=True)
    is_component = np.char.startswith(rounded["row_measure"].values.astype(str), "component:")
    component = int(np.flatnonzero(is_component)[0])
    world = {"world": "real", "variant": "tested"}
    largest = float(np.abs(rounded["row_effect"][..., is_component, :]).max())
    for size, is_dotted in ((1e-6 * largest, False), (0.5 * largest, True)):
        chosen = {**world, "row_measure": rounded["row_measure"].values[component]}
        rounded["row_effect"].loc[chosen] = size
        rounded["row_effect_interval"].loc[{**chosen, "bound": "lower"}] = 0.9 * size
        rounded["row_effect_interval"].loc[{**chosen, "bound": "upper"}] = 1.1 * size
        (panel,) = (
            axis
            for axis in draw_effects(rounded).axes
            if axis.get_title().startswith("components by row, real")
        )
        (dots,) = panel.lines
        rows = np.asarray(dots.get_xdata())[np.asarray(dots.get_ydata()) == 0]
        assert len(rows) == is_dotted * rounded.sizes["step"]


def test_page_is_drawn_from_the_file(chain, read_effects, tmp_path: Path) -> None:
    provenance = collect_provenance({}, 0, {})
    write_results(tmp_path / "intervention_effects.nc", read_effects, provenance)
    picture = plot_effects(EffectPlottingConfig(results_dir=tmp_path, dpi=40), StageReport("x"))
    assert picture.stat().st_size > 10_000
    text = (picture.parent / "verdict.md").read_text()
    assert "value, real" in text
    # No cell of the table runs over the next one, or over the edge of the page.
    figure = draw_effects(read_effects)
    FigureCanvasAgg(figure).draw()
    (table,) = (t for axis in figure.axes for t in axis.tables)
    for cell in table.get_celld().values():
        room, words = cell.get_window_extent(), cell.get_text().get_window_extent()
        assert words.x1 <= room.x1
        assert words.x0 >= room.x0
