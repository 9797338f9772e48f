"""Training on files: resumed bit for bit, stopped by steps or time, refusing what cannot work."""

import csv
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents.checkpoint import save_agent
from experiment.errors import UserError
from experiment.report import StageReport
from experiment.runs import STOPPED_EXIT_CODE, StopRequest, read_history
from generative import trainer as trainer_module
from generative.checkpoint import WEIGHTS_NAME, read_description, simulator_hash
from generative.objective import LossWeights, ObjectiveConfig, compute_losses
from generative.trainer import (
    OptimiserConfig,
    SimulatorTrainer,
    SimulatorTrainingConfig,
    learning_rate,
    train_simulator,
)
from train_gen_model import main as train_command

NUM_STEPS = 5


@pytest.fixture
def training_config(training_files, small_simulator, tmp_path: Path) -> SimulatorTrainingConfig:
    return SimulatorTrainingConfig(
        data_dir=training_files.data,
        heldout_data_dir=training_files.heldout,
        simulator=small_simulator.config,
        objective=ObjectiveConfig(weights=LossWeights(imagined_image=1.0)),
        optimiser=OptimiserConfig(
            num_training_steps=NUM_STEPS,
            batch_size=3,
            num_sim_steps=3,
            lr=1e-3,
            lr_schedule="cosine",
            warmup_steps=2,
        ),
        log_interval=2,
        save_interval=100,
        num_heldout_windows=4,
        seed=0,
        device="cpu",
        run_dir=tmp_path / "run",
    )


def test_a_stopped_training_ends_bit_for_bit_like_a_whole_one(
    training_config, tmp_path, monkeypatch
):
    whole = _train(replace(training_config, run_dir=tmp_path / "whole"))
    update = SimulatorTrainer._update

    def update_then_stop(self, windows):
        update(self, windows)
        _stop_request.requested = self.step == 3

    _stop_request = StopRequest()
    with monkeypatch.context() as patch:
        patch.setattr(SimulatorTrainer, "_update", update_then_stop)
        patch.setattr(trainer_module, "stop_on_signals", lambda: _Always(_stop_request))
        with pytest.raises(SystemExit) as stopped:
            _train(training_config)
    assert stopped.value.code == STOPPED_EXIT_CODE
    assert not list((tmp_path / "run").glob("model_*"))
    resumed = _train(training_config)
    assert (whole / WEIGHTS_NAME).read_bytes() == (resumed / WEIGHTS_NAME).read_bytes()
    rows, expected = (_log(run.parent) for run in (resumed, whole))
    assert [_without_time(row) for row in rows] == [_without_time(row) for row in expected]


def test_a_finished_run_is_not_trained_again(training_config, monkeypatch, tmp_path):
    folder = _train(training_config)
    before = (folder / WEIGHTS_NAME).stat().st_mtime_ns
    monkeypatch.setattr(SimulatorTrainer, "_update", _must_not_be_called)
    again = _train(replace(training_config, export_dir=tmp_path / "export"))
    assert again == folder
    assert (folder / WEIGHTS_NAME).stat().st_mtime_ns == before
    assert (tmp_path / "export" / WEIGHTS_NAME).read_bytes() == (folder / WEIGHTS_NAME).read_bytes()


def test_training_changes_the_weights_and_logs_every_term(training_config):
    report = StageReport("train_simulator")
    folder = train_simulator(training_config, report)
    first = _train(
        replace(
            training_config,
            optimiser=replace(training_config.optimiser, num_training_steps=1),
            run_dir=training_config.run_dir.with_name("short"),
        )
    )
    weights, early = load_file(folder / WEIGHTS_NAME), load_file(first / WEIGHTS_NAME)
    assert all(not bool((weights[name] == early[name]).all()) for name in weights)
    rows = _log(folder.parent)
    assert [row["step"] for row in rows] == ["2", "4", "5"]
    assert all(0 <= float(row["data_wait_share"]) < 1 for row in rows)
    assert float(rows[-1]["heldout_image"]) == pytest.approx(
        report.metrics["heldout_loss"]["image"]
    )
    assert all(float(row["imagined_image"]) > 0 for row in rows)


def test_the_time_limit_ends_a_training_with_a_simulator(training_config):
    hurried = replace(training_config.optimiser, max_minutes=1e-6)
    folder = _train(replace(training_config, optimiser=hurried))
    assert folder.name == "model_1"
    assert (folder / WEIGHTS_NAME).exists()


def test_the_learning_rate_rises_then_falls():
    config = OptimiserConfig(lr=2.0, lr_schedule="cosine", warmup_steps=4)
    assert learning_rate(config, 0, 0.0) == 0.5
    assert learning_rate(config, 3, 0.0) == 2.0
    assert learning_rate(config, 9, 0.5) == pytest.approx(1.0)
    assert learning_rate(config, 9, 1.0) == pytest.approx(0.0)
    assert learning_rate(replace(config, lr_schedule="constant"), 9, 0.9) == 2.0


def test_weights_can_be_taken_from_an_earlier_simulator(training_config, tmp_path):
    folder = _train(training_config)
    frozen = replace(training_config.optimiser, num_training_steps=1, lr=0.0)
    again = _train(
        replace(
            training_config, optimiser=frozen, model_file=folder, run_dir=tmp_path / "continued"
        )
    )
    assert (again / WEIGHTS_NAME).read_bytes() == (folder / WEIGHTS_NAME).read_bytes()


def test_a_run_goes_on_without_the_simulator_that_it_began_with(training_config, tmp_path):
    first = _train(replace(training_config, run_dir=tmp_path / "first"))
    identity = {"initial_simulator": simulator_hash(first)}
    config = replace(training_config, model_file=first)
    whole = _train(config)
    assert identity.items() <= read_description(whole)["provenance"]["inputs"].items()
    moved = first.rename(tmp_path / "moved")
    assert _train(config) == whole
    assert _train(replace(config, model_file=moved)) == whole
    assert _train(replace(config, model_file=None)) == whole
    assert _train(SimulatorTrainingConfig(resume=config.run_dir, device="cpu")) == whole
    for process in read_history(config.run_dir):
        assert identity.items() <= process["inputs"].items()


def test_a_run_that_began_otherwise_does_not_ignore_model_file(
    training_config, tmp_path, monkeypatch
):
    first, second = (
        _train(replace(training_config, run_dir=tmp_path / name, seed=seed))
        for seed, name in enumerate(("first", "second"))
    )
    begun = replace(training_config, model_file=first)
    _train(begun)
    before = (begun.run_dir / "log.csv").read_bytes()
    with pytest.raises(UserError, match=f"began with --model_file {first}, not with .* {second};"):
        _train(replace(begun, model_file=second))
    flags = ["--resume", str(begun.run_dir), "--model_file", str(second), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["train_gen_model.py", *flags])
    with pytest.raises(UserError, match=f"not with --model_file {second};"):
        train_command()
    with pytest.raises(UserError, match=r"--model_file: .*nowhere: not a simulator"):
        _train(replace(begun, model_file=tmp_path / "nowhere", run_dir=tmp_path / "other"))
    assert (begun.run_dir / "log.csv").read_bytes() == before
    # Killed before its first state: nothing tells any more what it began with but the folder.
    (begun.run_dir / "training_state.pt").unlink()
    with pytest.raises(UserError, match=f"began with --model_file {first}, not with new weights"):
        _train(replace(begun, model_file=None))
    with pytest.raises(UserError, match=f"began with new weights, not with --model_file {second}"):
        _train(replace(training_config, run_dir=tmp_path / "first", model_file=second))


def test_a_training_that_diverges_ends_with_an_error_and_saves_nothing_of_that(training_config):
    optimiser = replace(training_config.optimiser, lr=1e30, warmup_steps=0)
    with pytest.raises(UserError, match="--lr: the training has diverged"):
        _train(replace(training_config, optimiser=optimiser))
    assert training_config.run_dir is not None
    assert not list(training_config.run_dir.glob("model_*"))
    assert not (training_config.run_dir / "training_state.pt").exists()


def test_a_gradient_that_is_no_number_is_not_saved_even_where_the_loss_is_one(
    training_config, monkeypatch
):
    def losses_without_a_slope(simulator, *args, **ranks):
        losses = compute_losses(simulator, *args, **ranks)
        root = sum(torch.sqrt(0.0 * p).sum() for p in simulator.parameters() if p.requires_grad)
        return replace(losses, total=losses.total + root)

    monkeypatch.setattr("generative.gradients.compute_losses", losses_without_a_slope)
    optimiser = replace(training_config.optimiser, num_training_steps=1)
    with pytest.raises(UserError, match="the gradient's norm is nan at step 1"):
        _train(replace(training_config, optimiser=optimiser))
    assert not list(training_config.run_dir.glob("model_*"))
    assert not (training_config.run_dir / "training_state.pt").exists()


def test_a_run_on_other_data_is_refused(training_config, training_files):
    _train(training_config)
    with pytest.raises(UserError, match="run on another dataset"):
        _train(replace(training_config, data_dir=training_files.heldout))


def test_settings_of_a_continued_run_must_not_change(training_config):
    _train(training_config)
    longer = replace(training_config.optimiser, num_training_steps=9)
    with pytest.raises(UserError, match="num_training_steps = 5, now 9"):
        _train(replace(training_config, optimiser=longer))


def test_flags_beside_resume_that_change_the_run_are_refused(training_config, monkeypatch):
    _train(training_config)
    run = training_config.run_dir
    resume = ["train_gen_model.py", "--resume", str(run), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", [*resume, "--loss_scale_kl", "77"])
    with pytest.raises(UserError, match=r"--resume .*weights\.kl = .*, now 77"):
        train_command()
    monkeypatch.setattr("sys.argv", resume)
    train_command()


def test_resume_takes_the_settings_of_the_run(training_config):
    folder = _train(training_config)
    resumed = _train(SimulatorTrainingConfig(resume=training_config.run_dir, device="cpu"))
    assert resumed == folder


def test_an_agent_that_did_not_make_the_rollouts_is_refused(
    training_config, small_simulator, training_files, tmp_path
):
    policy = small_simulator.agent
    policy.value_head.bias.data += 1.0
    other = save_agent(tmp_path / "other", policy, None, {}, env_steps=0)
    with pytest.raises(UserError, match=r"--data_dir .*: recorded by agent .*other is agent"):
        _train(replace(training_config, agent_file=other))
    assert not training_config.run_dir.exists()


def test_another_game_is_refused(training_config):
    with pytest.raises(UserError, match=r"--env_name coinrun: .* rollouts of fake"):
        _train(replace(training_config, env_name="coinrun"))


def test_episodes_that_are_all_too_short_are_refused(training_config, tmp_path, training_files):
    sizes = replace(training_config.simulator, num_init_steps=9)
    with pytest.raises(UserError, match="longest episode has 9 rows; more than the 9 initial"):
        _train(replace(training_config, simulator=sizes))
    assert not training_config.run_dir.exists()


def test_a_missing_dataset_is_refused(training_config, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        _train(replace(training_config, data_dir=tmp_path / "nowhere"))


def test_compilation_without_a_gpu_is_refused(training_config):
    with pytest.raises(UserError, match="--compile: needs a CUDA device, not cpu"):
        _train(replace(training_config, compile=True))
    assert not training_config.run_dir.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "--batch_size 0"),
        ({"lr_schedule": "square"}, "--lr_schedule square"),
        ({"max_minutes": 0.0}, "--max_minutes"),
        ({"num_sim_steps": 0}, "--num_sim_steps 0"),
    ],
)
def test_impossible_settings_are_refused(training_config, change, message):
    with pytest.raises(UserError, match=message):
        _train(replace(training_config, optimiser=replace(training_config.optimiser, **change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": LossWeights(image=-1.0)}, r"--loss_scale_obs -1.0: must be at least 0"),
        (
            {"weights": LossWeights(**{field.name: 0.0 for field in fields(LossWeights)})},
            "all weights are 0 with --bottleneck sphere",
        ),
        ({"kl_balance": 3.0}, "--kl_balance 3.0: must lie between 0 and 1"),
        ({"observed_share": 7.0}, "--observed_share 7.0: must lie between 0 and 1"),
        ({"agent_share": -1.0}, "--agent_share -1.0: must lie between 0 and 1"),
        ({"kl_free_nats": -1.0}, "--kl_free_nats -1.0: must be at least 0"),
    ],
)
def test_impossible_objectives_are_refused(training_config, change, message):
    with pytest.raises(UserError, match=message):
        _train(replace(training_config, objective=replace(training_config.objective, **change)))
    assert not training_config.run_dir.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dim": 0}, "--latent_dim 0: must be at least 1"),
        ({"num_categoricals": 0}, "--num_categoricals 0: must be at least 1"),
        ({"decoder_depth": 0}, "--decoder_depth 0: must be at least 1"),
        ({"head_mlp": (4, 0)}, "--head_mlp 0: must be at least 1"),
    ],
)
def test_networks_without_units_are_refused(training_config, change, message):
    with pytest.raises(UserError, match=message):
        _train(replace(training_config, simulator=replace(training_config.simulator, **change)))
    assert not training_config.run_dir.exists()


class _Always:
    def __init__(self, request: StopRequest) -> None:
        self._request = request

    def __enter__(self) -> StopRequest:
        return self._request

    def __exit__(self, *exception: object) -> None:
        pass


def _train(config: SimulatorTrainingConfig) -> Path:
    return train_simulator(config, StageReport("train_simulator"))


def _log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def _without_time(row: dict[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in row.items() if name not in ("seconds", "data_wait_share")
    }


def _must_not_be_called(*arguments: object) -> None:
    raise AssertionError("a finished run was trained again")
