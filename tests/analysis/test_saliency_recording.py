from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from agents.checkpoint import load_agent
from agents.images import to_float_images
from analysis import saliency_recording
from analysis.results import input_hashes, read_results
from analysis.saliency import PATHS
from analysis.saliency_config import (
    DrawingSettings,
    IntegrationFlags,
    SaliencyConfig,
    TargetSettings,
    parse_ids,
)
from analysis.saliency_pictures import gradient_times_input, trust_mark
from analysis.saliency_plan import CPU_SAMPLES, GPU_BYTES_PER_PIXEL, GPU_SAMPLES, make_plan
from analysis.saliency_recording import batches_of_plan, record_saliency
from experiment.errors import UserError
from experiment.report import StageReport
from projections.hidden import HiddenProjection
from rollouts.independent_units import units_of_episodes
from rollouts.store import RolloutDataset

GRADIENTS = ("frame", "agent_state", "env_deter", "env_stoch", "latent", "component")


@pytest.fixture(scope="module")
def saliency_config(simulated_chain, tmp_path_factory):
    return SaliencyConfig(
        model_file=simulated_chain / "simulator",
        agent_file=simulated_chain / "agent",
        generated_data_dir=simulated_chain / "samples",
        projection=simulated_chain / "projection",
        output_dir=tmp_path_factory.mktemp("saliency"),
        sample_ids=("1", "4", "2"),
        targets=TargetSettings(
            saliency_func_type=("value", "action", "leftwards", "value_delta", "hx_direction"),
            saliency_direction_ids=("0", "to", "3"),
            target_steps=(0, 3),
            num_sim_steps=5,
            both_env_grads=True,
        ),
        saliency_batch_size=3,
        batch_size=2,
        drawing=DrawingSettings(num_drawn_samples=1),
        device="cpu",
    )


def run(config, **changes):
    report = StageReport("saliency")
    changes = {"drawing": DrawingSettings(num_drawn_samples=0), **changes}
    path = record_saliency(make_plan(replace(config, **changes)), report)
    with read_results(path, "saliency") as dataset:
        return dataset.load(), report


@pytest.fixture(scope="module")
def saliency(saliency_config):
    return run(saliency_config, drawing=saliency_config.drawing)


def test_resimulated_rows_equal_the_stored_ones(saliency, simulated_chain):
    dataset, report = saliency
    stored = RolloutDataset(simulated_chain / "samples")
    assert report.metrics["share_of_frames_reproduced"] == 1.0
    np.testing.assert_array_equal(dataset.sample_id, [1, 4, 2])
    np.testing.assert_array_equal(dataset.unit, units_of_episodes(stored, np.array([1, 4, 2])))
    for index, sample in enumerate(dataset.sample_id.values):
        rollout = stored.read_episode(stored.index_of(int(sample)))
        np.testing.assert_array_equal(dataset.frame[index], rollout.obs)
        np.testing.assert_array_equal(dataset.action[index], rollout.action)
        np.testing.assert_allclose(dataset.value[index], rollout.value, atol=1e-5)
        np.testing.assert_allclose(dataset.agent_state[index], rollout.agent_hidden, atol=1e-5)


def test_activations_and_pullback_are_the_projections(saliency, simulated_chain):
    dataset, _ = saliency
    projection = HiddenProjection.load(simulated_chain / "projection")
    np.testing.assert_array_equal(
        dataset.activation, projection.transform(dataset.agent_state.values)
    )
    names = [f"hx_direction_{d}" for d in range(3)]
    at_target = dataset.gradient_component.sel(target=names, target_step=3).isel(step=3)
    identity = np.broadcast_to(np.eye(3), at_target.shape)
    np.testing.assert_allclose(at_target, identity, atol=1e-4)


def test_the_map_of_a_frame_is_the_gradient_of_the_agent_that_sees_it(
    saliency_config, simulated_chain, tmp_path
):
    """At the target step itself; rows, columns and channels are those of the frame."""
    dataset, _ = run(saliency_config, perturbation_scale=0.0, output_dir=tmp_path)
    policy = load_agent(simulated_chain / "agent").policy
    found = dataset.gradient_frame.sel(environment_gradient="passed", target_step=3).isel(step=3)
    for index in range(3):
        images = to_float_images(torch.from_numpy(dataset.frame.values[index, 3:4]))
        images.requires_grad_(True)
        before = torch.from_numpy(dataset.agent_state.values[index, 2:3])
        readout = policy.read_out(policy.advance(policy.embed(images), before))
        left = readout.action_logits.log_softmax(-1)[:, [0, 1]].mean()
        for target, output in (("value", readout.value.sum()), ("leftwards", left)):
            (gradient,) = torch.autograd.grad(output, images, retain_graph=True)
            expected = gradient[0].movedim(0, -1).numpy()
            assert np.abs(expected - expected[..., ::-1]).max() > 0.1 * np.abs(expected).max()
            np.testing.assert_allclose(
                found.sel(target=target)[index], expected, atol=1e-3 * np.abs(expected).max()
            )


def test_nothing_after_the_target_step_matters(saliency):
    dataset, _ = saliency
    for name in ("frame", "agent_state", "env_deter", "env_stoch", "component"):
        gradient = dataset[f"gradient_{name}"].sel(target_step=3)
        assert np.count_nonzero(gradient.isel(step=slice(4, None))) == 0
        assert np.count_nonzero(gradient.sel(target="value").isel(step=3)) > 0


def test_the_cut_changes_steps_before_the_target_only(saliency):
    dataset, _ = saliency
    gradient = dataset.gradient_agent_state.sel(target="value", target_step=3)
    passed, cut = (gradient.sel(environment_gradient=e) for e in ("passed", "cut"))
    np.testing.assert_array_equal(passed.isel(step=3), cut.isel(step=3))
    assert np.abs(passed - cut).isel(step=slice(0, 3)).max() > 0


def test_paths_are_split_on_one_simulation(saliency, saliency_config, tmp_path):
    dataset, _ = saliency
    settings = replace(saliency_config.targets, both_env_grads=False, split_paths=True)
    split, _ = run(saliency_config, targets=settings, output_dir=tmp_path)
    paths = {str(name): split.sel(environment_gradient=name) for name in PATHS} | {
        "mixed": split.sel(environment_gradient="mixed")
    }
    for name in ("passed", "cut"):
        np.testing.assert_array_equal(
            paths[name].gradient_frame, dataset.gradient_frame.sel(environment_gradient=name)
        )
    for name in ("gradient_frame", "gradient_agent_state", "gradient_latent"):
        sum_of_parts = sum(paths[path][name] for path in ("cut", "only", "mixed"))
        np.testing.assert_allclose(paths["passed"][name], sum_of_parts, atol=1e-6)
    before = paths["neither"].gradient_agent_state.sel(target="value", target_step=3)
    assert np.count_nonzero(before.isel(step=slice(0, 3))) == 0


def test_integrated_gradients_sum_to_what_the_target_changed_by(
    saliency_config, saliency, tmp_path
):
    flags = IntegrationFlags(("frames", "latent"), ("black", "mean"), max_integration_nodes=128)
    targets = replace(
        saliency_config.targets, saliency_func_type=("value", "value_delta"), both_env_grads=False
    )
    dataset, report = run(
        saliency_config, integration=flags, targets=targets, output_dir=tmp_path, batch_size=3
    )
    assert dataset.baseline.values.tolist() == ["black", "mean"]
    for name in ("integrated_frame", "integrated_latent"):
        at = dataset[name].sel(target="value", target_step=3)
        kept = ("sample", "baseline") if "baseline" in at.dims else ("sample",)
        sums = at.astype(float).sum([dim for dim in at.dims if dim not in kept])
        difference, delta = (
            dataset[f"{name}_{what}"].sel(target="value", target_step=3)
            for what in ("difference", "delta")
        )
        np.testing.assert_allclose(sums, difference + delta, atol=1e-5)
        assert (np.abs(delta) <= 0.01 * np.abs(difference)).all()
        assert np.isnan(dataset[name].sel(target="value_delta", target_step=0)).all()
        assert report.metrics[f"{name}_median_delta"] < 0.01
        met = dataset[f"{name}_met"]
        assert (met.sel(target="value", target_step=3) == 1).all()
        assert (met.sel(target="value_delta", target_step=0) == -1).all()


def test_attributions_that_miss_their_sum_are_marked_and_told_of(saliency_config, tmp_path, capsys):
    flags = IntegrationFlags(("latent",), integration_tolerance=1e-9, max_integration_nodes=16)
    targets = replace(saliency_config.targets, saliency_func_type=("value",), both_env_grads=False)
    dataset, report = run(saliency_config, integration=flags, targets=targets, output_dir=tmp_path)
    missed = np.abs(dataset.integrated_latent_delta) > 1e-9 * np.abs(
        dataset.integrated_latent_difference
    )
    assert missed.any()
    np.testing.assert_array_equal(dataset.integrated_latent_met == 0, missed)
    assert report.metrics["integrated_latent_not_met"] == int(missed.sum())
    assert f"warning: {int(missed.sum())} of" in capsys.readouterr().out


def test_drawn_attributions_can_be_times_the_input():
    gradient, frames = np.full((2, 1, 1, 3), 2.0), np.full((2, 1, 1, 3), 51, np.uint8)
    np.testing.assert_allclose(gradient_times_input(gradient, frames), 0.4, rtol=1e-6)


def test_trust_of_samples_is_stored_and_marked(saliency, saliency_config):
    dataset, _ = saliency
    assert np.isnan(dataset.simulator_trust).all()
    plan = make_plan(saliency_config)
    measured = replace(plan, trust=plan.trust.where(plan.trust.index != 4, 0.25))
    np.testing.assert_array_equal(measured.trust_of(np.array([4, 1]), False), [0.25, np.nan])
    assert trust_mark(0.25) == "; simulator trust 0.25 (POOR)"
    assert trust_mark(0.75) == "; simulator trust 0.75"
    assert trust_mark(float("nan")) == ""


def test_value_delta_is_undefined_at_step_zero(saliency):
    dataset, _ = saliency
    values = dataset.target_value.sel(target="value_delta")
    assert np.isnan(values.sel(target_step=0)).all()
    assert np.isfinite(values.sel(target_step=3)).all()


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 1}, {"gradient_method": "batched"}, {"gradient_precision": "float32"}],
)
def test_batch_size_and_kind_of_backward_passes_change_nothing_on_a_cpu(
    saliency, saliency_config, tmp_path, changes
):
    dataset, _ = saliency
    other, _ = run(saliency_config, output_dir=tmp_path, **changes)
    for name in GRADIENTS:
        expected = dataset[f"gradient_{name}"].values
        tolerance = 1e-5 * np.nanmax(np.abs(expected))
        np.testing.assert_allclose(other[f"gradient_{name}"], expected, atol=tolerance)


@pytest.mark.parametrize(("precision", "is_rounded"), [("float32", False), ("tf32", True)])
def test_samples_are_simulated_in_full_float32(
    saliency_config, tmp_path, monkeypatch, precision, is_rounded
):
    simulated, passes = [], []
    simulate, gradients = saliency_recording.resimulate, saliency_recording.attribute

    def watched_simulation(*args, **kwargs):
        simulated.append(torch.backends.cudnn.allow_tf32)
        return simulate(*args, **kwargs)

    def watched_gradients(*args, **kwargs):
        passes.append(args[5].precision == "tf32")
        return gradients(*args, **kwargs)

    monkeypatch.setattr(saliency_recording, "resimulate", watched_simulation)
    monkeypatch.setattr(saliency_recording, "attribute", watched_gradients)
    run(saliency_config, output_dir=tmp_path, gradient_precision=precision)
    # Two batches: simulated clean and with copies; gradients on two paths.
    assert simulated == 4 * [False]
    assert passes == 4 * [is_rounded]


def test_a_gpu_computes_as_many_samples_together_as_fit(saliency_config, monkeypatch):
    plan = make_plan(replace(saliency_config, batch_size=None))
    assert plan.batch_size == CPU_SAMPLES
    on_gpu = replace(plan, source=replace(plan.source, device=torch.device("cuda")))
    # Three copies of steps 0 to 3, of 64 × 64 pixels; half of what is free.
    bytes_per_sample = 3 * 4 * 64 * 64 * GPU_BYTES_PER_PIXEL
    for free, expected in [(0, 1), (11, 5), (12, 6), (1000, GPU_SAMPLES)]:
        free_bytes = free * bytes_per_sample
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free_bytes: (free, 0))
        assert on_gpu.batch_size == expected
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * bytes_per_sample, 0))
    assert on_gpu.batch_size == 40
    batched = replace(on_gpu, config=replace(on_gpu.config, gradient_method="batched"))
    # Seven targets flow back together: four by name and three directions.
    assert batched.batch_size == 20
    assert replace(on_gpu, config=replace(on_gpu.config, batch_size=3)).batch_size == 3


def test_a_combined_sample_begins_with_the_mean_latent(saliency_config):
    plan = make_plan(replace(saliency_config, combine_samples_not_iterate=True))
    (batch,) = batches_of_plan(plan)
    latents = plan.source.dataset.read_episode_field("latent")[[1, 4, 2]]
    mean = torch.from_numpy(latents.mean(axis=0, keepdims=True))
    expected = plan.source.simulator.simulator.bottleneck.project(mean)
    torch.testing.assert_close(batch.latent, expected)
    assert not np.allclose(batch.latent, latents, atol=0.01)


def test_combined_samples_give_one_result(saliency_config, simulated_chain, tmp_path):
    dataset, report = run(saliency_config, combine_samples_not_iterate=True, output_dir=tmp_path)
    assert dataset.sizes["sample"] == 1
    assert dataset.attrs["combined_sample_ids"] == "1 4 2"
    assert "share_of_frames_reproduced" not in report.metrics
    alone, _ = run(
        saliency_config,
        sample_ids=("1", "1"),
        combine_samples_not_iterate=True,
        output_dir=tmp_path / "alone",
    )
    iterated, _ = run(saliency_config, sample_ids=("1",), output_dir=tmp_path / "iterated")
    np.testing.assert_allclose(
        alone.gradient_component, iterated.gradient_component, rtol=1e-4, atol=1e-7
    )


def test_pictures_and_provenance(saliency, saliency_config, simulated_chain):
    dataset, report = saliency
    strips = sorted((saliency_config.output_dir / "strips").glob("*.png"))
    videos = sorted((saliency_config.output_dir / "videos").iterdir())
    # Seven targets, value_delta at one step only, with and without the environment gradient.
    assert len(strips) == len(videos) == 2 * (7 * 2 - 1)
    assert all(path.name.startswith("sample_00001_") for path in strips)
    assert all(path.with_suffix(".pdf").is_file() for path in strips)
    assert (saliency_config.output_dir / "contact_sheet.png").is_file()
    with Image.open(strips[0]) as strip:
        assert strip.width > 5 * 64
    assert {"agent", "simulator", "generated_dataset", "projection_data"} == set(
        input_hashes(dataset)
    )
    assert report.outputs[0].endswith("saliency.nc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_ids": ("1", "99")}, r"--sample_ids 1 99: .* has 6 samples"),
        ({"sample_ids": ("few",)}, r"--sample_ids few: expected ids"),
        ({"env_name": "maze"}, r"--env_name maze"),
        ({"device": "quantum"}, r"--device"),
        ({"sample_ids": ("3", "to", "3")}, r"--sample_ids 3 to 3: names no sample"),
        ({"saliency_batch_size": 0}, r"--saliency_batch_size 0: must be at least 1"),
        ({"batch_size": 0}, r"--batch_size 0: must be at least 1"),
        ({"drawing": DrawingSettings(fps=0.0)}, r"--fps 0.0: must be above 0"),
        (
            {"targets": TargetSettings(saliency_func_type=("value", "value"))},
            r"--saliency_func_type value value: value is named twice",
        ),
        ({"integration": IntegrationFlags(("pixels",))}, r"--integrate pixels: expected some of"),
        (
            {"integration": IntegrationFlags(("frames",), ())},
            r"--integration_baselines: --integrate frames needs at least one",
        ),
        (
            {"integration": IntegrationFlags(max_integration_nodes=8)},
            r"--max_integration_nodes 8: must be at least 16",
        ),
        (
            {"targets": TargetSettings(target_steps=(3, 3))},
            r"--target_steps 3 3: a step is named twice",
        ),
    ],
)
def test_bad_input_is_refused_before_work(saliency_config, changes, message):
    with pytest.raises(UserError, match=message):
        make_plan(replace(saliency_config, **changes))


def test_wrong_target_steps_are_refused(saliency_config):
    targets = replace(saliency_config.targets, target_steps=(5,))
    with pytest.raises(UserError, match=r"--target_steps 5: expected steps from 0 to 4"):
        make_plan(replace(saliency_config, targets=targets))


@pytest.mark.parametrize("combined", [False, True])
def test_given_actions_are_all_the_steps_that_there_are(
    saliency_config, told_samples, tmp_path, capsys, combined
):
    """A longer simulation of them is the same as one of just these steps."""
    targets = replace(saliency_config.targets, saliency_func_type=("value",))
    changes = {
        "generated_data_dir": told_samples,
        "sample_ids": ("0", "to", "3"),
        "combine_samples_not_iterate": combined,
    }
    fitting, _ = run(saliency_config, targets=targets, output_dir=tmp_path / "5", **changes)
    assert "--num_sim_steps" not in capsys.readouterr().out
    longer = replace(targets, num_sim_steps=9)
    found, _ = run(saliency_config, targets=longer, output_dir=tmp_path / "9", **changes)
    assert "--num_sim_steps 9: only 5 exist, all of them are used" in capsys.readouterr().out
    assert found.action.isel(sample=0).values.tolist() == [1, 2, 2, 2, 2]
    for name in fitting.data_vars:
        np.testing.assert_array_equal(found[name], fitting[name], err_msg=str(name))


def test_target_steps_beyond_given_actions_are_refused(saliency_config, told_samples, capsys):
    targets = replace(saliency_config.targets, target_steps=(3, 5), num_sim_steps=9)
    changed = replace(
        saliency_config,
        generated_data_dir=told_samples,
        sample_ids=("0", "to", "3"),
        targets=targets,
    )
    message = r"--target_steps 3 5: expected steps from 0 to 4 \(.*actions end with step 4\)"
    with pytest.raises(UserError, match=message):
        make_plan(changed)
    assert "are used" not in capsys.readouterr().out


def test_samples_whose_agent_acts_go_on_for_as_long_as_is_asked_for(saliency_config, capsys):
    targets = replace(saliency_config.targets, num_sim_steps=9)
    plan = make_plan(replace(saliency_config, targets=targets))
    assert plan.config.targets.num_sim_steps == 9
    assert "--num_sim_steps" not in capsys.readouterr().out


def test_missing_projection_names_the_command(saliency_config, tmp_path):
    with pytest.raises(UserError, match=r"--projection.*hidden_analysis_precompute\.py"):
        make_plan(replace(saliency_config, projection=tmp_path))


def test_real_rollouts_are_refused(saliency_config, planted_datasets):
    with pytest.raises(UserError, match="holds real rollouts"):
        make_plan(replace(saliency_config, generated_data_dir=planted_datasets.real))


def test_a_range_beyond_the_samples_uses_what_exists(saliency_config, capsys):
    plan = make_plan(replace(saliency_config, sample_ids=("2", "to", "100")))
    assert plan.sample_ids.tolist() == [2, 3, 4, 5]
    assert "the dataset has 4 of these" in capsys.readouterr().out


def test_ids_are_lists_or_half_open_ranges():
    assert parse_ids(["33", "39", "56"], "--sample_ids") == [33, 39, 56]
    assert parse_ids(["0", "to", "4"], "--sample_ids") == [0, 1, 2, 3]
