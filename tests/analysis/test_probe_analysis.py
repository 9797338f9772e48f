"""The whole probe analysis on rollouts whose hidden states are planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.checkpoint import load_agent, save_agent
from agents.identity import hash_weights
from agents.networks import NetworkConfig, RecurrentPolicy, make_policy
from analysis.imitation_rows import read_imitations
from analysis.probe_analysis import ProbeAnalysisConfig, RowSettings, analyse_by_probes
from analysis.probe_figures import ProbePlottingConfig, draw_states, plot_probes
from analysis.probe_names import SIMULATOR_STATES
from analysis.probe_rows import Readers, block_means, untrained_agent, untrained_states
from analysis.probe_tables import ProbeSettings
from analysis.probes import PerceptronSettings
from analysis.results import read_results
from analysis.simulated_truth import follow
from environments.game_steps import CAMERA_COLUMNS
from environments.game_trace import ENTITY_COLUMNS, GameTables, GameTrace
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from experiment.report import StageReport
from projections.hidden import HiddenProjection
from rollouts.schema import DatasetMetadata, SimulatedDims
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout

HIDDEN_DIM, NUM_ACTIONS, NUM_EPISODES, NUM_STEPS = 8, 4, 24, 5
VARIABLES = ("step", "agent_x", "on_ground", "saw_dx", "saw_dy")
MIXING = np.random.default_rng(42).normal(size=(3, HIDDEN_DIM))


def plant(rng, variables):
    """Hidden states that hold agent_x and on_ground as directions, and nothing of the saw."""
    x, on_ground = variables[:, 1], variables[:, 2] - 0.5
    noise = 0.3 * rng.normal(size=len(x))
    code = np.stack([x, 4 * on_ground, noise], axis=1)
    return (code @ MIXING + 0.05 * rng.normal(size=(len(x), HIDDEN_DIM))).astype(np.float32)


def draw_variables(rng, length):
    on_ground = (rng.random(length) < 0.5).astype(float)
    saw = rng.uniform(-9, 9, size=(length, 2))
    return np.column_stack([np.arange(length), rng.normal(size=length), on_ground, saw])


def trace(variables):
    length = len(variables)
    return GameTrace(
        variables=variables.astype(np.float32),
        camera=np.zeros((length, len(CAMERA_COLUMNS)), np.float32),
        num_entities=np.ones(length, np.int32),
        entities=np.zeros((length, len(ENTITY_COLUMNS)), np.float32),
        num_grid_changes=np.zeros(length, np.int32),
        grid_changes=np.zeros((0, 3), np.int32),
        grid=np.zeros((4, 4), np.int32),
    )


def make_rollout(rng, hidden, action, info, **extra):
    length = len(hidden)
    done = np.arange(length) == length - 1
    return Rollout(
        obs=rng.integers(0, 256, (length, 16, 16, 3)).astype(np.uint8),
        agent_hidden=hidden,
        action_logits=np.zeros((length, NUM_ACTIONS), np.float32),
        value=np.zeros(length, np.float32),
        action=action.astype(np.int32),
        behaviour_log_prob=np.zeros(length, np.float32),
        reward=np.zeros(length, np.float32),
        done=done,
        info=info,
        **extra,
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder of an agent, its rollouts, samples that follow them, a projection."""
    folder = tmp_path_factory.mktemp("planted")
    torch.manual_seed(0)
    network = NetworkConfig(
        width=0.25, num_features=HIDDEN_DIM, obs_shape=(16, 16, 3), num_actions=NUM_ACTIONS
    )
    environment = EnvironmentSpec(
        adapter="fake",
        name="coinrun",
        obs_shape=(16, 16, 3),
        num_actions=NUM_ACTIONS,
        action_names=("left", "right", "up", "null"),
        null_action=3,
        time_limit=None,
    )
    save_agent(folder / "agent", make_policy(network), environment, {}, 0)
    agent_hash = load_agent(folder / "agent").hash
    metadata = DatasetMetadata(
        environment=environment,
        agent_hash=agent_hash,
        agent_file=str(folder / "agent"),
        state_dim=HIDDEN_DIM,
        hidden_slice=(0, HIDDEN_DIM),
        num_actions=NUM_ACTIONS,
        game=GameTables(VARIABLES),
    )
    with RolloutWriter(folder / "real", metadata) as writer:
        for number in range(NUM_EPISODES):
            rng = np.random.default_rng(number)
            variables = draw_variables(rng, 30)
            info = EpisodeInfo(100 + number, agent_hash, np.zeros(HIDDEN_DIM, np.float32), number)
            action = rng.integers(0, NUM_ACTIONS, 30)
            writer.write(
                make_rollout(rng, plant(rng, variables), action, info, game=trace(variables))
            )
    write_samples(folder / "followed", folder / "real", metadata)
    hidden = RolloutDataset(folder / "real").read_field("agent_hidden")
    HiddenProjection("ica", 3).fit(hidden).save(folder / "projection")
    return folder


def write_samples(folder, real_folder, real_metadata, departs_at=None, **changes):
    """Samples from row 3 of every episode, whose states hold agent_x in `env_deter`."""
    real = RolloutDataset(real_folder)
    metadata = replace(
        real_metadata,
        game=None,
        simulated=SimulatedDims(4, 2, 3, 6),
        provenance={"inputs": {"dataset": real.hash}},
        **changes,
    )
    with RolloutWriter(folder, metadata) as writer:
        for number in range(NUM_EPISODES):
            rng, episode = np.random.default_rng(1000 + number), real.read_episode(number)
            rows = slice(3, 3 + NUM_STEPS)
            action = episode.action[rows].copy()
            if departs_at is not None:
                action[departs_at] = (action[departs_at] + 1) % NUM_ACTIONS
            deter = rng.normal(size=(NUM_STEPS, 4)).astype(np.float32)
            assert episode.game is not None
            deter[:, 0] = episode.game.variables[rows, 1]
            info = EpisodeInfo(
                number,
                metadata.agent_hash,
                np.zeros(HIDDEN_DIM, np.float32),
                initialisation="informed",
                source_episode_id=episode.info.episode_id,
                source_row=3,
                latent=rng.normal(size=6).astype(np.float32),
            )
            extra = {
                "env_deter": deter,
                "env_stoch": rng.integers(0, 3, (NUM_STEPS, 2)).astype(np.uint8),
                "terminal_prob": np.zeros(NUM_STEPS, np.float32),
            }
            writer.write(make_rollout(rng, episode.agent_hidden[rows], action, info, **extra))


def make_config(planted, output_dir, **changes):
    config = ProbeAnalysisConfig(
        data_dir=planted / "real",
        generated_data_dir=planted / "followed",
        projection=planted / "projection",
        output_dir=output_dir,
        rows=RowSettings(pixel_block=8),
        probes=ProbeSettings(
            num_folds=3,
            num_shuffles=3,
            num_resamples=100,
            perceptron=PerceptronSettings(mlp_units=8, mlp_epochs=3),
        ),
        device="cpu",
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def analysed(planted, tmp_path_factory):
    report = StageReport("probe_analysis")
    folder = tmp_path_factory.mktemp("probes")
    path = analyse_by_probes(make_config(planted, folder), report)
    with read_results(path, "probe_analysis") as dataset:
        return dataset.load(), report, folder


def test_what_is_planted_is_found_and_the_rest_is_not(analysed):
    dataset, report, _ = analysed
    linear = dataset.score.sel(probe="linear")
    assert float(linear.sel(representation="hidden", variable="agent_x")) > 0.95
    assert float(linear.sel(representation="components", variable="on_ground")) > 0.9
    for variable in ("saw_dx", "saw_dy", "saw_in_sight", "step"):
        assert float(linear.sel(representation="hidden", variable=variable)) < 0.05
    assert (linear.sel(representation="pixels") < 0.05).all()
    # A recurrent network tells time without having learnt anything; noise tells it nothing else.
    untrained = linear.sel(representation="untrained")
    assert float(untrained.sel(variable="step")) > 0.2
    assert (untrained.drop_sel(variable="step") < 0.05).all()
    assert (dataset.shuffled_score < 0.05).all()
    difference = dataset.difference_interval.sel(
        bound="lower", representation="hidden", variable="agent_x"
    )
    assert (difference > 0.8).all()
    assert report.metrics["levels"] == NUM_EPISODES


def test_each_planted_variable_has_its_component(analysed):
    dataset, _, _ = analysed
    strength = np.abs(dataset.partial_correlation)
    carriers = [int(strength.sel(variable=v).values.argmax()) for v in ("agent_x", "on_ground")]
    assert carriers[0] != carriers[1]
    for variable, component in zip(("agent_x", "on_ground"), carriers, strict=True):
        assert float(strength.sel(variable=variable, component=component)) > 0.8
        assert float(dataset.q_value.sel(variable=variable, component=component)) < 1e-6
    assert (dataset.q_value.sel(variable="saw_dx") > 0.05).all()


def test_simulated_states_are_read_and_probed(analysed):
    dataset, _, _ = analysed
    reading = dataset.reading_score.sel(read_representation="hidden", variable="agent_x")
    # The samples have the hidden states of the decisions that they imitate.
    np.testing.assert_allclose(
        reading.sel(read_source="real"), reading.sel(read_source="simulated"), atol=1e-6
    )
    assert (reading > 0.9).all()
    assert dataset.sizes["step"] == NUM_STEPS
    linear = dataset.simulator_score.sel(probe="linear", variable="agent_x")
    assert float(linear.sel(simulator_representation="env_state")) > 0.95
    assert float(linear.sel(simulator_representation="latent")) < 0.3


def test_every_state_of_the_simulator_has_pixels_and_an_untrained_agent_beside_it(analysed):
    dataset, _, _ = analysed
    at = dataset.sel(variable="agent_x")
    for state, baselines in SIMULATOR_STATES.items():
        for baseline in baselines:
            score = at.simulator_score.sel(probe="linear")
            # Frames are noise, and whoever looks at them knows nothing of the game.
            assert float(score.sel(simulator_representation=baseline)) < 0.2
            chosen = {"simulator_representation": state, "simulator_baseline": baseline}
            expected = score.sel(simulator_representation=state) - score.sel(
                simulator_representation=baseline
            )
            assert float(at.simulator_difference.sel(chosen)) == pytest.approx(float(expected))
    lower = at.simulator_difference_interval.sel(
        bound="lower", simulator_representation="env_state"
    )
    assert (lower.sel(simulator_baseline=list(SIMULATOR_STATES["env_state"])) > 0.5).all()
    # The untrained agent's probes are read on simulated frames as well.
    reading = dataset.reading_score.sel(read_representation="untrained", variable="agent_x")
    assert (reading < 0.3).all()


@pytest.fixture(scope="module")
def imitations(planted):
    """The followed rows as representations, and what read them."""
    real, simulated = (RolloutDataset(planted / name) for name in ("real", "followed"))
    policy = load_agent(planted / "agent").policy
    assert isinstance(policy, RecurrentPolicy)
    readers = Readers(
        HiddenProjection.load(planted / "projection"),
        8,
        untrained_agent(policy.config, 0, torch.device("cpu")),
    )
    followed = follow(simulated, real, "--generated_data_dir")
    return read_imitations(real, simulated, followed, readers, 6.5), followed, readers


def test_baselines_are_of_the_frames_that_a_state_belongs_to(imitations, planted):
    found, followed, _ = imitations
    frames = {
        "real": RolloutDataset(planted / "real").read_field("obs")[followed.real_row],
        "simulated": RolloutDataset(planted / "followed").read_field("obs")[followed.simulated_row],
    }
    for name, of_rows in frames.items():
        np.testing.assert_array_equal(found.states[f"{name}_pixels"], block_means(of_rows, 8))
    # What a window ends with is the same at all steps of its sample: the real row of step 0.
    for what in ("pixels", "untrained"):
        real, window = (found.states[f"{of}_{what}"] for of in ("real", "window"))
        np.testing.assert_array_equal(
            window.reshape(NUM_EPISODES, NUM_STEPS, -1),
            np.repeat(real[::NUM_STEPS, None], NUM_STEPS, axis=1),
        )


def test_the_untrained_agent_goes_on_from_the_real_past_of_a_sample(imitations, planted):
    found, _, readers = imitations
    agent = readers.untrained
    episode, sample = 2, RolloutDataset(planted / "followed").read_episode(2)
    past = RolloutDataset(planted / "real").read_episode(episode).obs
    rows = slice(episode * NUM_STEPS, (episode + 1) * NUM_STEPS)
    expected = untrained_states(agent, np.concatenate([past[:3], sample.obs]))[3:]
    np.testing.assert_allclose(found.states["simulated_untrained"][rows], expected, atol=1e-5)
    np.testing.assert_allclose(
        found.states["real_untrained"][rows], untrained_states(agent, past)[3:8], atol=1e-5
    )
    assert np.abs(found.states["simulated_untrained"] - found.states["real_untrained"]).max() > 0.01


@pytest.mark.medium
def test_the_same_seed_gives_the_same_result(analysed, planted, tmp_path):
    dataset, _, _ = analysed
    path = analyse_by_probes(make_config(planted, tmp_path), StageReport("again"))
    with read_results(path, "probe_analysis") as again:
        for name in dataset.variables:
            np.testing.assert_array_equal(again[name], dataset[name])


def test_without_simulated_rollouts_and_untrained_agent(planted, tmp_path):
    rows = RowSettings(pixel_block=8, untrained=False, num_episodes=20, max_rows=300)
    path = analyse_by_probes(
        make_config(planted, tmp_path, generated=False, rows=rows), StageReport("again")
    )
    with read_results(path, "probe_analysis") as dataset:
        assert "untrained" not in dataset.representation
        assert "reading_score" not in dataset
        assert int(dataset.num_rows.sel(variable="agent_x")) == pytest.approx(300, abs=20)


def test_without_an_untrained_agent_pixels_are_left(planted, tmp_path):
    rows = RowSettings(pixel_block=8, untrained=False, num_episodes=20, max_rows=300)
    path = analyse_by_probes(make_config(planted, tmp_path, rows=rows), StageReport("again"))
    with read_results(path, "probe_analysis") as dataset:
        assert dataset.simulator_baseline.values.tolist() == [
            *("real_hidden", "simulated_pixels", "window_pixels", "real_pixels")
        ]
        assert "untrained" not in dataset.read_representation
        titles = [axis.get_title() for axis in draw_states(dataset.load()).axes]
    assert titles[:2] == ["environment state", "bottleneck vector"]


def test_a_sample_is_followed_up_to_its_first_own_action(planted, tmp_path):
    real = RolloutDataset(planted / "real")
    write_samples(tmp_path / "own", planted / "real", real.metadata, departs_at=2)
    rows = follow(RolloutDataset(tmp_path / "own"), real, "--generated_data_dir")
    assert len(rows.step) == 3 * NUM_EPISODES
    assert rows.step[:4].tolist() == [0, 1, 2, 0]
    assert rows.real_row[:3].tolist() == [3, 4, 5]
    assert rows.simulated_row[3:6].tolist() == [NUM_STEPS, NUM_STEPS + 1, NUM_STEPS + 2]
    assert rows.real_row[3:6].tolist() == [33, 34, 35]


def test_block_means_equal_a_plain_mean():
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3)).astype(np.uint8)
    means = block_means(frames, 4).reshape(3, 2, 3, 3)
    expected = frames[1, 4:8, 8:12, 2].mean() / 255
    assert means[1, 1, 2, 2] == pytest.approx(expected, rel=1e-6)


@pytest.mark.medium
def test_figures_are_drawn_from_the_result_alone(analysed, tmp_path):
    _, _, folder = analysed
    pictures = plot_probes(
        ProbePlottingConfig(input_dir=folder, output_dir=tmp_path / "figures", dpi=40),
        StageReport("probe_figures"),
    )
    assert [p.stem for p in pictures] == [
        "probe_scores",
        "component_variables",
        "simulated_reading",
        "simulator_scores",
    ]
    assert all(picture.with_suffix(".pdf").stat().st_size > 1000 for picture in pictures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": RowSettings(pixel_block=5)}, r"--pixel_block 5: .*16 × 16"),
        ({"rows": RowSettings(num_episodes=0)}, r"--num_episodes 0: must be at least 1"),
        ({"probes": ProbeSettings(num_folds=2)}, r"--num_folds 2: must be at least 3"),
        ({"probes": ProbeSettings(min_levels=25)}, r"--min_levels 25: .* the 24 levels"),
        (
            {"rows": RowSettings(pixel_block=8, untrained=False, num_episodes=2)},
            r"--data_dir .*: 2 levels are read, expected at least 3",
        ),
    ],
)
def test_senseless_numbers_are_refused(planted, tmp_path, changes, message):
    rows = changes.get("rows", RowSettings(pixel_block=8, untrained=False))
    with pytest.raises(UserError, match=message):
        analyse_by_probes(
            make_config(planted, tmp_path / "out", **{"rows": rows, **changes}), StageReport("x")
        )


@pytest.mark.medium
def test_counts_of_episodes_and_folds_use_what_exists(planted, tmp_path, capsys):
    def analyse(name, num_episodes, num_folds):
        config = make_config(planted, tmp_path / name, generated=False)
        rows = RowSettings(pixel_block=8, untrained=False, num_episodes=num_episodes)
        probes = replace(config.probes, num_folds=num_folds, min_levels=3)
        path = analyse_by_probes(replace(config, rows=rows, probes=probes), StageReport("x"))
        with read_results(path, "probe_analysis") as dataset:
            return dataset.load().drop_attrs(), capsys.readouterr().out

    fitting, printed = analyse("fitting", NUM_EPISODES, NUM_EPISODES)
    assert "are used" not in printed
    found, printed = analyse("above", NUM_EPISODES + 6, NUM_EPISODES + 1)
    for line in ("--num_episodes 30: only 24 exist", "--num_folds 25: only 24 exist"):
        assert f"{line}, all of them are used" in printed
    assert found.identical(fitting)


def test_what_does_not_fit_is_refused(planted, planted_datasets, tmp_path):
    real = RolloutDataset(planted / "real")

    def refuse(message, **changes):
        config = make_config(planted, tmp_path / "out", **changes)
        with pytest.raises(UserError, match=message):
            analyse_by_probes(config, StageReport("x"))
        assert not (tmp_path / "out").exists()

    refuse("recorded without game variables", data_dir=planted_datasets.real)
    refuse("expected simulated ones", generated_data_dir=planted / "real")
    refuse("recorded with agent", generated_data_dir=planted_datasets.simulated)
    HiddenProjection("pca", 2).fit(np.random.default_rng(0).normal(size=(50, 5))).save(
        tmp_path / "narrow"
    )
    refuse("of 5 hidden units, the agent of .* has 8", projection=tmp_path / "narrow")
    with RolloutWriter(
        tmp_path / "elsewhere",
        replace(
            real.metadata,
            game=None,
            simulated=SimulatedDims(4, 2, 3, 6),
            provenance={"inputs": {"dataset": hash_weights({}, {})}},
        ),
    ) as writer:
        sample = RolloutDataset(planted / "followed").read_episode(0)
        writer.write(sample)
    refuse("their windows have no truth there", generated_data_dir=tmp_path / "elsewhere")
