"""Saliency on samples that were drawn at random and whose agent was intervened on."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.checkpoint import load_agent, require_recurrent_policy, save_agent
from analysis.results import read_results
from analysis.saliency_config import DrawingSettings, SaliencyConfig, TargetSettings
from analysis.saliency_plan import SaliencyPlan, make_plan
from analysis.saliency_recording import record_saliency
from experiment.command_line import apply_values, load_preset
from experiment.errors import UserError
from experiment.report import StageReport
from generative.checkpoint import load_simulator, save_simulator
from generative.sample_starts import RandomStarts
from generative.sampling import SamplingConfig, SamplingPlan, record_samples
from generative.simulator import Simulator, SimulatorConfig
from projections.directions import DirectionChoice, load_directions
from projections.hidden import HiddenProjection
from projections.interventions import DirectionIntervention, Swap
from rollouts.store import RolloutDataset, RolloutWriter

NUM_STEPS = 8
BATCH_SIZE = 4


@pytest.fixture(scope="module")
def swapped_chain(simulated_chain, tmp_path_factory):
    """An agent, its simulator, samples with and without a swap, all choices drawn."""
    folder = tmp_path_factory.mktemp("swapped")
    shutil.copytree(simulated_chain / "projection", folder / "projection")
    untrained = load_agent(simulated_chain / "agent")
    policy = require_recurrent_policy(untrained, "--agent_file")
    with torch.no_grad():
        # An untrained agent acts alike in all states, so that a swap would change no frame.
        policy.policy_head.weight *= 3000.0
    assert untrained.environment is not None
    save_agent(folder / "agent", policy, untrained.environment, {}, 0)
    agent = load_agent(folder / "agent")
    sizes = load_preset("simulator.yml", "tiny")["training"]["simulator"]
    torch.manual_seed(0)
    simulator = Simulator(apply_values(SimulatorConfig, sizes, "tiny"), agent.policy)
    save_simulator(folder / "simulator", simulator, untrained.environment, agent.hash, {}, 0)
    loaded = load_simulator(folder / "simulator", agent)
    # Rounding in matrix products depends on the batch; with this seed no pick is so close to a tie
    # that it matters.
    config = SamplingConfig(
        6, NUM_STEPS, BATCH_SIZE, latents="sample", agent_actions="sample", seed=4
    )
    plan = SamplingPlan(loaded, agent, RandomStarts(3), config)
    hidden_slice = agent.policy.hidden_slice
    choice = DirectionChoice("pca", str(folder / "projection"))
    directions = load_directions(choice, hidden_slice.stop)
    swap = DirectionIntervention(Swap((0, 1), (1, None)), directions, hidden_slice)
    record_samples(plan, folder / "plain")
    record_samples(replace(plan, intervention=swap), folder / "swapped")
    return folder


@pytest.fixture
def swapped_config(swapped_chain, tmp_path):
    return SaliencyConfig(
        model_file=swapped_chain / "simulator",
        agent_file=swapped_chain / "agent",
        generated_data_dir=swapped_chain / "swapped",
        projection=tmp_path / "none",
        output_dir=tmp_path / "saliency",
        sample_ids=("0", "to", "6"),
        targets=TargetSettings(
            saliency_func_type=("value",), target_steps=(3,), num_sim_steps=NUM_STEPS
        ),
        saliency_batch_size=2,
        batch_size=BATCH_SIZE,
        drawing=DrawingSettings(num_drawn_samples=0),
        device="cpu",
    )


def _frames_and_share(plan: SaliencyPlan) -> tuple[np.ndarray, float]:
    report = StageReport("saliency")
    path = record_saliency(plan, report)
    with read_results(path, "saliency") as dataset:
        return dataset.frame.values, report.metrics["share_of_frames_reproduced"]


@pytest.mark.parametrize("name", ["plain", "swapped"])
def test_drawn_and_intervened_samples_are_simulated_again(swapped_config, swapped_chain, name):
    stored = RolloutDataset(swapped_chain / name).read_field("obs")
    plan = make_plan(replace(swapped_config, generated_data_dir=swapped_chain / name))
    frames, share = _frames_and_share(plan)
    assert share == 1.0
    np.testing.assert_array_equal(frames.reshape(stored.shape), stored)


def test_without_the_intervention_other_frames_come_out(swapped_config):
    plan = make_plan(swapped_config)
    unmodified = replace(plan, interventions=dict.fromkeys(plan.interventions))
    assert _frames_and_share(unmodified)[1] < 1.0


@pytest.fixture
def swap_projection(swapped_chain, tmp_path):
    """The projection of the swap, put back after the test."""
    kept = shutil.copytree(swapped_chain / "projection", tmp_path / "kept")
    yield swapped_chain / "projection"
    shutil.rmtree(swapped_chain / "projection", ignore_errors=True)
    shutil.copytree(kept, swapped_chain / "projection")


def test_a_projection_that_is_gone_is_refused_before_work(swapped_config, swap_projection):
    shutil.rmtree(swap_projection)
    with pytest.raises(UserError, match=r"--generated_data_dir .*projection: .* is gone"):
        make_plan(swapped_config)
    assert not swapped_config.output_dir.exists()


def test_a_refitted_projection_is_refused_before_work(swapped_config, swap_projection):
    num_units = len(HiddenProjection.load(swap_projection).mean_)
    states = np.random.default_rng(0).normal(size=(50, num_units))
    HiddenProjection("pca", 3).fit(states).save(swap_projection)
    with pytest.raises(UserError, match=r"--generated_data_dir .*other pca directions"):
        make_plan(swapped_config)


def test_samples_with_different_interventions(swapped_config, swapped_chain, tmp_path):
    plain, swapped = (RolloutDataset(swapped_chain / name) for name in ("plain", "swapped"))
    with RolloutWriter(tmp_path / "mixed", swapped.metadata) as writer:
        for index in range(6):
            writer.write((swapped if index in (1, 4) else plain).read_episode(index))
    mixed = replace(swapped_config, generated_data_dir=tmp_path / "mixed")
    assert _frames_and_share(make_plan(mixed))[1] == 1.0
    with pytest.raises(UserError, match="the samples have different interventions"):
        make_plan(replace(mixed, combine_samples_not_iterate=True))
