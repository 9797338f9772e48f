"""Agents of the user's own code go through every command, found again by what datasets record."""

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import xarray as xr

import agents.__main__
import plot_value_and_action_weights
import record
import record_gen_samples
import render
import saliency_experiments
import train
import train_gen_model
import xcorr_and_xcaus_plots
from agents.checkpoint import load_agent
from agents.images import to_float_observations
from analysis import (
    combined_agent_env_hx_analysis_precompute,
    dynamics_grads_consistency_plots,
    hidden_analysis_precompute,
    intervention_effects_precompute,
    jacobian_analysis_precompute,
    probe_analysis_precompute,
    saliency_trust_precompute,
    sample_trust_precompute,
    simulator_fidelity_precompute,
    statement_effects_precompute,
    target_functions_precompute,
)
from analysis.results import read_results
from environments.fake import fake_spec
from experiment.errors import UserError
from projections.hidden import load_fitting_projection
from rollouts.store import RolloutDataset

pytestmark = pytest.mark.medium

DOCUMENT = Path(__file__).parents[1] / "docs/agents.md"
GLANCE = '''
class Glance(nn.Module):
    """No memory: a state of no numbers, and a step alone."""

    state_dim, hidden_slice = 0, slice(0, 0)

    def __init__(self, num_actions):
        super().__init__()
        self.num_actions = num_actions
        self.heads = nn.Linear(3 * 8 * 8, num_actions + 1)

    def initial_state(self, batch_size):
        return self.heads.weight.new_zeros(batch_size, 0)

    def step(self, images, state, first=None):
        heads = self.heads(avg_pool2d(images, 8).flatten(1))
        return AgentOutput(state, heads[:, :-1], heads[:, -1])


def make_glance(environment):
    torch.manual_seed(1)
    return Glance(environment.num_actions)
'''
TINY = ("--interpreting_params_name", "tiny")
CPU = (*TINY, "--device", "cpu")
SEEDED = ("--seed", 0)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Iterator[Path]:
    """A working folder with the document's module, to which an agent without memory is added."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "my_agents.py" in block]
    (tmp_path / "my_agents.py").write_text(code + GLANCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    save_recurrent_ppo(tmp_path / "lstm.zip")
    yield tmp_path
    sys.modules.pop("my_agents", None)


def save_recurrent_ppo(file: Path) -> None:
    """An archive of sb3-contrib; `tests/agents/test_sb3.py` has a trained one."""
    with redirect_stderr(io.StringIO()):  # sb3 imports gym, which prints an appeal
        from sb3_contrib import RecurrentPPO
    sizes = {"features_extractor_kwargs": {"features_dim": 8}, "lstm_hidden_size": 8}
    RecurrentPPO(
        "CnnLstmPolicy",
        FakeSpaces(),
        policy_kwargs=sizes,
        device="cpu",
        seed=0,
    ).save(file)


class FakeSpaces(gymnasium.Env):
    """What the fake world shows and takes."""

    observation_space = gymnasium.spaces.Box(0, 255, fake_spec().obs_shape, np.uint8)
    action_space = gymnasium.spaces.Discrete(fake_spec().num_actions)


@pytest.fixture
def run(monkeypatch):
    def run(command, *arguments: object) -> None:
        monkeypatch.setattr("sys.argv", [command.__name__, *map(str, arguments)])
        command.main()

    return run


@pytest.mark.parametrize(
    ("reference", "state_dim", "hidden"),
    [
        ("my_agents:make_agent?width=8", 16, (0, 8)),
        ("my_agents:make_glance", 16, (0, 15)),
        ("sb3:lstm.zip", 32, (0, 8)),
    ],
    ids=["lstm", "without memory", "sb3"],
)
def test_commands_take_the_agent(workplace, run, reference, state_dim, hidden):
    run(record, "--model_file", reference, "--env_name", "fake", *CPU)
    metadata = RolloutDataset("data").metadata
    if reference.startswith("sb3:"):  # Datasets name files by their place.
        reference = str(workplace / reference.removeprefix("sb3:"))
    assert (metadata.agent_file, metadata.state_dim) == (reference, state_dim)
    assert metadata.hidden_slice == hidden
    assert_replays(RolloutDataset("data"), reference)

    run(train_gen_model, *SEEDED, "--run_dir", "run", "--export_dir", "simulator", *CPU)
    simulator = ("--model_file", "simulator")
    run(record_gen_samples, *simulator, "--data_save_dir", "samples", *CPU)
    assert RolloutDataset("samples").metadata.agent_file == reference
    assert_replays(RolloutDataset("samples"), reference)
    samples = ("--generated_data_dir", "samples")
    run(hidden_analysis_precompute, *samples, "--output_dir", "hidden", *TINY)
    projection = ("--projection", "hidden/projection")
    run(saliency_experiments, *simulator, *samples, *projection, *CPU)
    run(
        jacobian_analysis_precompute,
        *simulator,
        *samples,
        *projection,
        "--output_dir",
        "jacobians",
        *CPU,
    )
    run(sample_trust_precompute, *samples, "--data_dir", "data", "--device", "cpu")
    run(plot_value_and_action_weights, *projection, "--data_dir", "data", "--device", "cpu")
    points = ("--branch_from", "data", "--episode", 0, 1, "--step", 1, "--branches", 2)
    run(record, *points, "--swap_directions_from", 0, "--swap_directions_to", "None", *projection)
    assert_branches(RolloutDataset("branches_twin"), RolloutDataset("data"), reference)
    fidelity = ("--data_dir", "data", "--train_data_dir", "data")
    run(simulator_fidelity_precompute, *simulator, *fidelity, *CPU)
    video = ("--num_eps", 1, "--env_name", "fake", "--device", "cpu")
    run(render, "--model_file", reference, *video)
    assert Path("logs/rendered/episode_00000.mp4").exists()
    explain_dynamics(run)
    check_statements(run, reference)
    hold_a_component(run, hidden)
    climb_and_judge(run, reference)


SAMPLES = ("--generated_data_dir", "samples")
PROJECTION = ("--projection", "hidden/projection")
BOTH = ("--model_file", "simulator", "--data_dir", "data", *PROJECTION)


def explain_dynamics(run) -> None:
    """Behaviours, cross-dynamics and consistency, from samples and Jacobians."""
    run(combined_agent_env_hx_analysis_precompute, *SAMPLES, "--output_dir", "behaviour", *TINY)
    with results_of_agent("behaviour/behaviour_clusters.nc") as found:
        assert found.attrs["action_names"].split() == list(fake_spec().action_names)
        assert found.sizes["sample"] == RolloutDataset("samples").num_episodes
    analysed = ("--jacobians", "jacobians", "--behaviour", "behaviour", "--dpi", 20)
    run(
        *(xcorr_and_xcaus_plots, *SAMPLES, *PROJECTION, *analysed, *TINY),
        *("--drawn_lags", 1, "--output_dir", "cross"),
    )
    run(
        *(dynamics_grads_consistency_plots, "--cross", "cross", *analysed, *TINY),
        *("--num_drawn_statements", 1, "--output_dir", "consistency"),
    )
    with (
        results_of_agent("cross/xcorr_and_xcaus.nc") as cross,
        results_of_agent("jacobians/jacobians.nc") as jacobians,
        results_of_agent("consistency/consistency.nc") as consistency,
    ):
        np.testing.assert_allclose(np.diagonal(cross["correlation"].sel(group="all", lag=0)), 1)
        passed = jacobians["jacobian"].sel(environment_gradient="passed")
        # A component's derivative by itself at the same step; at the first, nothing is before.
        same_step = passed.isel(target_step=1, source_step=1)
        np.testing.assert_allclose(same_step, np.tile(np.eye(3), (len(same_step), 1, 1)), atol=1e-4)
        one_later = passed.isel(target_step=[1, 2, 3], source_step=[0, 1, 2])
        assert np.abs(one_later).sum() > 0
        pairs = consistency[["statement_source", "statement_target"]].to_dataframe()
        assert pairs.isin(range(3)).all(axis=None)


def check_statements(run, reference) -> None:
    """A push, a swap and a collapse, each in both worlds."""
    found = ("--cross", "cross", "--consistency", "consistency")
    run(statement_effects_precompute, *BOTH, *found, "--output_dir", "effects", *CPU)
    with results_of_agent("effects/statement_effects.nc") as effects:
        assert effects["world"].values.tolist() == ["simulated", "real"]
        assert np.isfinite(effects["effect"]).all()
    (push,) = Path("effects").glob("push_*")
    for world in ("simulated", "real"):
        assert_replays(RolloutDataset(push / world / "twin"), reference)


def hold_a_component(run, hidden) -> None:
    clamp = ("--clamp_directions", 0, "--clamp_values", 1)
    run(intervention_effects_precompute, *BOTH, *clamp, "--output_dir", "held", *CPU)
    projection = load_fitting_projection("hidden/projection", slice(*hidden))
    for world in ("simulated", "real"):
        held, twin = (
            projection.transform(
                RolloutDataset(folder).read_field("agent_hidden")[:, slice(*hidden)]
            )
            for folder in (f"held/{world}/tested", f"held/{world}/twin")
        )
        np.testing.assert_allclose(held[:, 0], 1, atol=1e-4)
        assert np.abs(twin[:, 0] - 1).max() > 0.1
    with results_of_agent("held/intervention_effects.nc") as effects:
        actions = [name for name in effects["row_measure"].values if name.startswith("action:")]
        # Actions 9 to 14 do what the null action does, and count as it.
        moves = list(fake_spec().action_names[:9])
        assert [name.removeprefix("action:") for name in actions] == moves
        assert np.isfinite(effects["predicted"].sel(prediction="gradient_simulated")).all()


def climb_and_judge(run, reference) -> None:
    """Latents that drive the agent; and whether its saliency is right."""
    run(target_functions_precompute, *BOTH, "--output_dir", "targets", *CPU)
    with results_of_agent("targets/target_functions.nc") as targets:
        assert (targets["best_score"] >= targets["score"].isel(iteration=0)).all()
    (simulated,) = Path("targets/increase_value").glob("samples-*")
    assert_replays(RolloutDataset(simulated), reference)
    few = ("--sample_ids", 0, 1, "--saliency_batch_size", 3, "--num_directions", 2)
    trusted = ("--model_file", "simulator", *SAMPLES, *few, "--target_step", 2)
    run(saliency_trust_precompute, *trusted, "--output_dir", "trust", "--device", "cpu")
    with results_of_agent("trust/saliency_trust.nc") as trust:
        assert np.isfinite(trust["area"]).all()
        # At smaller steps the rounding of a value hides its change; at larger ones it bends.
        step = trust.sel(step_size=0.3)
        frozen, predicted = step["frozen_change"], step["predicted_change"]
        np.testing.assert_allclose(frozen, predicted, rtol=0.2, atol=1e-6)
        assert np.abs(predicted).max() > 2e-6


@contextmanager
def results_of_agent(path: str) -> Iterator[xr.Dataset]:
    """A result file, which must name the agent that recorded the data."""
    with read_results(Path(path)) as results:
        agent = json.loads(results.attrs["input_hashes"])["agent"]
        assert agent == RolloutDataset("data").metadata.agent_hash
        yield results


def test_probes_take_the_agent(workplace, run):
    """They ask what the game itself knows, so that it has to be a game that tells."""
    run(
        *(record, "--model_file", "my_agents:make_agent?width=8", "--env_name", "fruitbot", *CPU),
        *("--max_episodes", 8),
    )
    run(train_gen_model, *SEEDED, "--run_dir", "run", "--export_dir", "simulator", *CPU)
    follow = ("--recorded_actions", "--max_samples", 24, "--num_sim_steps", 3)
    simulator = ("--model_file", "simulator")
    run(record_gen_samples, *simulator, *follow, "--data_save_dir", "samples", *CPU)
    run(hidden_analysis_precompute, *SAMPLES, "--output_dir", "hidden", *TINY)
    run(probe_analysis_precompute, *SAMPLES, *PROJECTION, "--output_dir", "probes", *CPU)
    data = RolloutDataset("data")
    assert data.metadata.game is not None
    with results_of_agent("probes/probe_analysis.nc") as probes:
        own, in_sight = np.split(probes["variable"].values, [len(data.metadata.game.variables)])
        assert own.tolist() == list(data.metadata.game.variables)
        assert all(name.endswith("_in_sight") for name in in_sight)
        assert probes["representation"].values.tolist() == ["hidden", "components", "pixels"]
        step = probes.sel(variable="step")
        assert step["num_rows"] == data.episodes["length"].sum()
        assert step["num_levels"] == 8
        # The partial correlation holds nothing fixed but what the other components say.
        assert np.abs(probes["partial_correlation"]).max() <= 1
        assert np.isfinite(step["simulator_score"]).all()


def assert_replays(dataset: RolloutDataset, reference: str) -> None:
    """The agent, made again, says of the stored frames what was stored."""
    agent = load_agent(reference, environment=fake_spec()).policy
    for rollout in map(dataset.read_episode, range(dataset.num_episodes)):
        state = torch.from_numpy(rollout.agent_hidden[:1])
        for t in range(1, len(rollout)):
            with torch.no_grad():
                output = agent.step(to_float_observations(rollout.obs[t : t + 1]), state)
            state = output.state
            np.testing.assert_allclose(rollout.agent_hidden[t], state[0], atol=1e-5)
            np.testing.assert_allclose(rollout.value[t], output.value[0], atol=1e-5)


def assert_branches(branches: RolloutDataset, source: RolloutDataset, reference: str) -> None:
    """Untouched branches begin with the recorded state, and replay."""
    assert branches.num_episodes == 4
    for branch in map(branches.read_episode, range(branches.num_episodes)):
        recorded = source.read_episode(source.index_of(branch.info.source_episode_id))
        np.testing.assert_array_equal(branch.info.agent_initial_state, recorded.agent_hidden[0])
        np.testing.assert_allclose(branch.agent_hidden[0], recorded.agent_hidden[1], atol=1e-5)
    assert_replays(branches, reference)


def test_another_agent_is_refused_by_dataset_and_simulator(workplace, run):
    reference, other = "my_agents:make_agent?width=8", "my_agents:make_agent?width=6"
    run(record, "--model_file", reference, "--env_name", "fake", *CPU)
    with pytest.raises(
        UserError, match=r"--data_dir data: recorded by agent .* but my_agents:make"
    ):
        run(train_gen_model, "--agent_file", other, "--run_dir", "run", *CPU)
    run(train_gen_model, *SEEDED, "--run_dir", "run", "--export_dir", "simulator", *CPU)
    simulator = ("--model_file", "simulator", "--data_save_dir", "samples")
    with pytest.raises(UserError, match="this simulator belongs to agent"):
        run(record_gen_samples, *simulator, "--agent_file", other, *CPU)
    with pytest.raises(UserError, match="agent"):
        run(record, "--model_file", other, "--env_name", "fake", *CPU)
    # The same name, but the code behind it has changed.
    code = Path("my_agents.py").read_text()
    Path("my_agents.py").write_text(code.replace("manual_seed(0)", "manual_seed(5)"))
    shutil.rmtree("__pycache__", ignore_errors=True)
    sys.modules.pop("my_agents")
    with pytest.raises(UserError, match="this simulator belongs to agent"):
        run(record_gen_samples, *simulator, *CPU)


def test_an_agent_elsewhere_has_to_be_named(workplace, run, monkeypatch):
    run(record, "--model_file", "my_agents:make_glance", "--env_name", "fake", *CPU)
    sys.modules.pop("my_agents")
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(workplace)])
    data = ("--data_dir", "../data", "--run_dir", "run")
    with pytest.raises(UserError, match="name it: --agent_file 'my_agents:make_glance'"):
        run(train_gen_model, *data, *CPU)
    assert not Path("run").exists()
    run(train_gen_model, *data, "--agent_file", "../my_agents.py:make_glance", *CPU)
    assert Path("run/log.csv").exists()


def test_training_cannot_begin_with_it(workplace, run):
    with pytest.raises(UserError, match="its network, LstmAgent, is not one of ours"):
        run(train, "--model_file", "my_agents:make_agent", "--env_name", "fake", "--run_dir", "run")
    assert not Path("run").exists()


def test_info_tells_what_the_agent_is(workplace, run, capsys):
    run(agents.__main__, "info", "my_agents:make_agent", "--env_name", "fake")
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["network"] == "LstmAgent"
    assert facts["state"] == "64 numbers, of which analyses look at 0 to 31"
    agent = load_agent("my_agents:make_agent", environment=fake_spec())
    assert facts["hash"] == agent.hash
