"""The commands that users of the reference system type, as typed, one after the other.

Only flags that make things small are added. Everything runs in an empty folder, so that each
command finds what the one before it left in the default folders.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.results import read_results
from experiment.command_line import load_preset
from rollouts.store import RolloutDataset

pytestmark = [pytest.mark.medium, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parent.parent
NUM_SAMPLES = load_preset("sampling.yml", "tiny")["sampling"]["max_samples"]
TINY = ("--interpreting_params_name", "tiny")
AGENT = "agent.pth"
NUM_FEATURES = 16
CHANNELS = (4, 8, 8)


@dataclass(frozen=True)
class Session:
    """An empty folder in which commands are typed."""

    folder: Path

    def run(self, command: str, *small: str) -> "subprocess.CompletedProcess[str]":
        """Type `python <command>`, with flags added that make it small."""
        script, *flags = command.split()
        arguments = [flag.replace('"', "") for flag in flags]
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments, *small],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            capture_output=True,
            text=True,
            check=False,
        )

    def type(self, command: str, *small: str) -> str:
        """Type a command that must succeed; what it printed."""
        result = self.run(command, *small)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout


def _reference_checkpoint() -> dict[str, dict[str, torch.Tensor]]:
    """A small untrained agent in the layout of the reference system."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"init_hx": (NUM_FEATURES,)}
    channels_before = 3
    for block, channels in enumerate(CHANNELS, start=1):
        prefix = f"embedder.block{block}"
        shapes[f"{prefix}.conv.weight"] = (channels, channels_before, 3, 3)
        shapes[f"{prefix}.conv.bias"] = (channels,)
        for layer in ("res1.conv1", "res1.conv2", "res2.conv1", "res2.conv2"):
            shapes[f"{prefix}.{layer}.weight"] = (channels, channels, 3, 3)
            shapes[f"{prefix}.{layer}.bias"] = (channels,)
        channels_before = channels
    for layer, num_outputs, num_inputs in (
        ("embedder.fc", NUM_FEATURES, 64 * CHANNELS[-1]),
        ("fc_policy", 15, NUM_FEATURES),
        ("fc_value", 1, NUM_FEATURES),
    ):
        shapes[f"{layer}.weight"] = (num_outputs, num_inputs)
        shapes[f"{layer}.bias"] = (num_outputs,)
    for side in ("ih", "hh"):
        shapes[f"gru.gru.weight_{side}_l0"] = (3 * NUM_FEATURES, NUM_FEATURES)
        shapes[f"gru.gru.bias_{side}_l0"] = (3 * NUM_FEATURES,)
    weights = {name: 0.1 * torch.randn(s, generator=generator) for name, s in shapes.items()}
    return {"model_state_dict": weights, "optimizer_state_dict": {}}


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    folder = tmp_path_factory.mktemp("session")
    torch.save(_reference_checkpoint(), folder / AGENT)
    return Session(folder)


@pytest.fixture(scope="module")
def trained_run(session) -> Path:
    session.type(
        "train.py --exp_name NAME --env_name coinrun --param_name hard-rec --num_levels 1000000 "
        "--distribution_mode hard --num_timesteps 64 --num_checkpoints 2",
        *("--num_envs", "4", "--num_steps", "8", "--eval_episodes", "2", "--width", "0.25"),
    )
    (run,) = (session.folder / "logs/procgen/coinrun/NAME").glob("seed_*")
    return run


@pytest.fixture(scope="module")
def recorded(session) -> RolloutDataset:
    session.type(
        "record.py --exp_name NAME --env_name coinrun --param_name hard-rec --num_levels 1000000 "
        f'--distribution_mode hard --num_checkpoints 200 --model_file="{AGENT}" --logdir="."',
        # Enough episodes to tell real from simulated states apart in some that were not fitted on.
        *(*TINY, "--max_steps", "400", "--max_episodes", "16", "--num_envs", "16"),
    )
    return RolloutDataset(session.folder / "data")


@pytest.fixture(scope="module")
def simulator(session, recorded) -> Path:
    session.type(f"train_gen_model.py --agent_file={AGENT} --gen_mod_exp_name=dev", *TINY)
    (*_, folder) = sorted((session.folder / "generative/results/dev").glob("*/model_*"))
    return folder.relative_to(session.folder)


@pytest.fixture(scope="module")
def samples(session, simulator) -> RolloutDataset:
    session.type(
        f"record_gen_samples.py --agent_file={AGENT} --gen_mod_exp_name=dev "
        f'--model_file="{simulator}"',
        *TINY,
    )
    return RolloutDataset(session.folder / "generative/rec_gen_mod_data/informed_init")


@pytest.fixture(scope="module")
def hidden_analysis(session, samples) -> Path:
    session.type("analysis/hidden_analysis_precompute.py", *TINY, "--num_ica", "16")
    return session.folder / "analysis/hx_analysis_precomp"


def test_train(trained_run):
    assert len(list(trained_run.glob("model_*"))) == 2
    assert "val_mean_episode_rewards" in (trained_run / "log.csv").read_text()


def test_plot_training_csv(session, trained_run):
    path = trained_run.relative_to(session.folder)
    session.type(f'plot_training_csv.py --datapath="{path}"')
    assert (trained_run / "plot.png").stat().st_size > 1000
    assert (trained_run / "plot_for_fig.png").stat().st_size > 1000


def test_render(session):
    session.type(
        'render.py --exp_name=NAME --env_name="coinrun" --distribution_mode="hard" '
        f'--param_name="hard-local-dev-rec" --device="cpu" --model_file="{AGENT}"',
        # With this seed the untrained agent dies within a few dozen steps.
        *("--num_eps", "1", "--seed", "27"),
    )
    assert list((session.folder / "logs").glob("**/*.mp4"))


def test_record(recorded):
    assert recorded.num_episodes > 0
    options = recorded.metadata.environment.options
    assert options["distribution_mode"] == "hard"
    assert recorded.episodes["level_seed"].between(0, 999_999).all()


def test_record_of_the_newest_agent_with_another_preset(session, trained_run):
    session.type(
        "record.py --exp-name NAME --env-name coinrun --param-name hard-rec-record "
        "--num-levels 1000000 --distribution-mode hard --num-checkpoints 200 --logdir=DIR",
        *(*TINY, "--max-steps", "20"),
    )
    dataset = RolloutDataset(session.folder / "DIR/data")
    assert Path(dataset.metadata.agent_file).parent == trained_run


def test_train_gen_model(session, simulator):
    assert (session.folder / simulator / "simulator.json").exists()


def test_train_gen_model_in_its_older_form(session, recorded, simulator):
    session.type(
        f"train_gen_model.py --agent_file={AGENT} --gen_mod_exp_name=older "
        f'--model_file="{simulator}" --param_name hard-rec --log_interval 1 --batch_size 2 '
        "--num_sim_steps 4 --num_initializing_steps 3 --save_interval 1 --lr 5e-4 "
        "--env_name coinrun --loss_scale_obs 1 --loss_scale_hx 1 --loss_scale_reward 1 "
        "--loss_scale_done 1 --loss_scale_act_log_probs 1 --loss_scale_kl 1 --data_dir data",
        *TINY,
    )
    assert list((session.folder / "generative/results/older").glob("*/model_*"))


def test_record_gen_samples(samples, recorded):
    assert samples.num_episodes == NUM_SAMPLES
    assert set(samples.episodes["length"]) == {10}
    assert samples.metadata.provenance["inputs"]["dataset"] == recorded.hash


def test_hidden_analysis(session, hidden_analysis):
    results = read_results(hidden_analysis / "hidden_analysis.nc")
    assert results.attrs
    session.type("analysis/hidden_analysis_plotting.py", *TINY)
    assert list((session.folder / "analysis/hx_plots").rglob("*.png"))


def test_overlap_of_hidden_states(session, hidden_analysis):
    session.type("analysis/show_hx_overlap.py --interpreting_params_name tiny")
    plots = session.folder / "analysis/hx_plots"
    assert len(list(plots.glob("agent_h_overlap_?.png"))) == 5
    with read_results(plots / "hx_overlap.nc") as results:
        assert (results["roc_area_interval"].sel(bound="lower") <= results["roc_area"]).all()


def test_value_and_action_weights(session, simulator, hidden_analysis):
    session.type(
        f"plot_value_and_action_weights.py --agent_file={AGENT} --model_file={simulator} "
        "--exp_name test --epochs 4 --gen_mod_exp_name dev --seed 3 --env_name coinrun"
    )
    folder = session.folder / "analysis/plot_act_and_val_weights"
    assert (folder / "act_and_val_weights.png").stat().st_size > 1000
    with read_results(folder / "act_and_val_weights.nc") as results:
        assert results["weight"].shape == (16, 16)


@pytest.mark.parametrize("sample_ids", ["0 to 3", "1 3"])
def test_saliency(session, simulator, hidden_analysis, sample_ids):
    output = session.folder / f"saliency of {sample_ids}"
    session.type(
        f"saliency_experiments.py --agent_file={AGENT} --gen_mod_exp_name=dev "
        f'--model_file="{simulator}" --sample_ids {sample_ids}',
        *(*TINY, "--output_dir", output.name),
    )
    results = read_results(output / "saliency.nc")
    assert np.array_equal(results["sample_id"], [0, 1, 2] if "to" in sample_ids else [1, 3])


def test_saliency_of_combined_samples(session, simulator, hidden_analysis):
    printed = session.type(
        f"saliency_experiments.py --agent_file={AGENT} --gen_mod_exp_name=dev "
        f'--model_file="{simulator}" --sample_ids 0 to 100 --combine_samples_not_iterate',
        *TINY,
    )
    assert f"--sample_ids 0 to 100: the dataset has {NUM_SAMPLES} of these" in printed
    results = read_results(session.folder / "analysis/saliency_results/saliency.nc")
    assert results.sizes["sample"] == 1


def test_swapped_directions(session, samples, hidden_analysis):
    session.type(
        "record_gen_samples.py --swap_directions_from 10 5 --swap_directions_to 12 None "
        "--data_save_dir=generative/recorded_validations_swapping",
        *(*TINY, "--gen_mod_exp_name", "dev", "--report", "report.json"),
    )
    swapped = RolloutDataset(session.folder / "generative/recorded_validations_swapping")
    twin = RolloutDataset(session.folder / "generative/recorded_validations_swapping_twin")
    (intervention,) = swapped.read_episode(0).info.interventions
    assert (intervention["sources"], intervention["targets"]) == ([10, 5], [12, None])
    for index in range(swapped.num_episodes):
        rollout, clean = swapped.read_episode(index), samples.read_episode(index)
        partner = twin.read_episode(twin.index_of(rollout.info.twin_of))
        assert np.array_equal(partner.obs, clean.obs)
        assert np.array_equal(partner.obs[0], rollout.obs[0])
        assert not np.array_equal(partner.agent_hidden, rollout.agent_hidden)
    report = json.loads((session.folder / "report.json").read_text())
    assert 0.0 <= report["metrics"]["share_of_steps_outside_unit_box"] <= 1.0


@pytest.fixture(scope="module")
def dynamics(session, simulator, samples, hidden_analysis) -> Path:
    session.type("analysis/combined_agent_env_hx_analysis_precompute.py", *TINY)
    session.type(
        "analysis/jacobian_analysis_precompute.py", *(*TINY, "--model_file", str(simulator))
    )
    session.type("xcorr_and_xcaus_plots.py", *TINY)
    session.type("analysis/dynamics_grads_consistency_plots.py", *TINY)
    return session.folder / "analysis/dynamics_grads_consistency_plots"


def test_dynamics(dynamics):
    with read_results(dynamics / "consistency.nc") as results:
        assert "all" in results["group"].values
        assert results.sizes["lag"] == 3
    assert (dynamics / "causal_statements.png").stat().st_size > 1000


def test_statement_effects(session, dynamics):
    session.type(
        "analysis/statement_effects_precompute.py --gen_mod_exp_name dev --agent_file agent.pth",
        *TINY,
    )
    with read_results(session.folder / "analysis/statement_effects/statement_effects.nc") as found:
        assert found["world"].values.tolist() == ["simulated", "real"]
        assert found.attrs["num_random_directions"] == 1
    session.type("analysis/statement_effects_plotting.py")
    plots = session.folder / "analysis/statement_effects_plots"
    assert {"responses", "matched"} <= {path.stem for path in plots.glob("*.png")}


@pytest.mark.parametrize(
    ("analysis", "results", "plots"),
    [
        ("env_h_analysis", "env_analysis_precomp", "env_plots"),
        ("bottleneck_vec_analysis", "bottleneck_vec_analysis_precomp", "bottleneck_vec_plots"),
        ("sml_analysis", "sml_analysis_precomp", "sml_plots"),
    ],
)
def test_vectors_of_samples(session, analysis, results, plots):
    # Latents are one per sample: more samples than the other tests need.
    session.type(
        "record_gen_samples.py --gen_mod_exp_name dev --data_save_dir more_samples",
        *(*TINY, "--max_samples", "12"),
    )
    command = f"analysis/{analysis}_precompute.py --generated_data_dir more_samples"
    session.type(command, *TINY)
    with read_results(session.folder / f"analysis/{results}/{analysis}.nc") as found:
        assert found.sizes["row"] == (12 if "bottleneck" in analysis else 120)
    session.type(f"analysis/{analysis}_plotting.py")
    assert (session.folder / "analysis" / plots / "contact_sheet.png").stat().st_size > 1000


def test_target_functions(session, simulator):
    session.type(
        f"analysis/target_functions_precompute.py --agent_file={AGENT} --gen_mod_exp_name=dev "
        f'--model_file="{simulator}"',
        *TINY,
    )
    with read_results(session.folder / "analysis/target_functions/target_functions.nc") as found:
        assert found["target"].values.tolist() == ["increase_value", "action_7"]
    session.type("analysis/target_functions_plotting.py")
    figure = session.folder / "analysis/target_functions_plots/target_functions.png"
    assert figure.stat().st_size > 1000


def test_loss_over_time(session, recorded, simulator):
    session.type(
        f"loss_over_time_experiment.py --agent_file={AGENT} --model_file={simulator}",
        *(*TINY, "--data_dir", "data", "--train_data_dir", "data"),
    )
    folder = session.folder / "analysis/loss_over_time"
    with read_results(folder / "simulator_fidelity.nc") as results:
        assert np.isfinite(results["score"].sel(prediction="mode", horizon=1)).all()
    assert (folder / "fidelity_scores.png").stat().st_size > 1000


def test_hyphens_serve_as_well_as_underscores(session, samples, hidden_analysis):
    session.type(
        "record_gen_samples.py --swap-directions-from 1 --swap-directions-to None "
        "--data-save-dir=hyphens --gen-mod-exp-name=dev --max-samples 2",
        *("--interpreting-params-name", "tiny"),
    )
    assert RolloutDataset(session.folder / "hyphens").num_episodes == 2
