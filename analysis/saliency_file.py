"""What saliency.nc holds: its labels, dims and variables."""

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike

from analysis.results import StreamedVariable
from analysis.saliency_plan import SaliencyPlan

COMBINED_ID = -1
"""Sample id of the mean of several samples."""


def file_labels(plan: SaliencyPlan) -> xr.Dataset:
    """Coordinates and attributes."""
    config = plan.config
    attributes = {
        "num_copies": config.copies.num_copies,
        "perturbation_scale": config.perturbation_scale,
        "combined": int(config.combine_samples_not_iterate),
        "action_names": " ".join(plan.source.simulator.environment.action_names),
    }
    if plan.projection is not None:
        attributes["projection_data_hash"] = plan.projection.data_hash
    if config.combine_samples_not_iterate:
        attributes["combined_sample_ids"] = " ".join(map(str, plan.sample_ids))
    return xr.Dataset(
        coords={
            "target": [target.name for target in plan.targets],
            "target_step": list(config.targets.target_steps),
            "environment_gradient": list(config.environment_gradients),
            **_baseline_labels(plan),
        },
        attrs=attributes,
    )


def _baseline_labels(plan: SaliencyPlan) -> dict[str, list[str]]:
    flags = plan.config.integration
    return {"baseline": list(flags.integration_baselines)} if "frames" in flags.integrate else {}


def declare_variables(plan: SaliencyPlan, num_samples: int) -> dict[str, StreamedVariable]:
    """Variables to be filled sample by sample."""
    return {
        **_variables_of_samples(plan, num_samples),
        **_gradients(plan, num_samples),
        **_integrated(plan, num_samples),
    }


def _variables_of_samples(plan: SaliencyPlan, num_samples: int) -> dict[str, StreamedVariable]:
    policy = plan.source.agent.policy
    steps = {"sample": num_samples, "step": plan.config.targets.num_sim_steps}
    samples = {"sample": num_samples}
    components = 0 if plan.projection is None else plan.projection.n_components_
    views = _view_dims(plan)
    targets = {name: views[name] for name in ("target", "target_step")}
    state, component = {"state_unit": policy.state_dim}, {"component": components}
    actions = {"action_index": policy.num_actions}
    f32 = np.float32
    return {
        "sample_id": _variable(samples, np.int64, "id of the sample in its dataset"),
        "unit": _variable(samples, np.int64, "equal for samples of one source episode"),
        "frames_reproduced": _variable(samples, f32, "share of stored frames reproduced exactly"),
        "simulator_trust": _variable(
            samples, f32, "trust of the sample against reality, 0 to 1; NaN where not measured"
        ),
        "frame": _variable(steps | _frame_dims(plan), np.uint8, "frame that the agent saw"),
        "agent_state": _variable(steps | state, f32, "agent state"),
        "value": _variable(steps, f32, "value"),
        "action": _variable(steps, np.int16, "action taken"),
        "action_log_prob": _variable(steps | actions, f32, "log-probability of each action"),
        "activation": _variable(steps | component, f32, "component of the hidden state"),
        "target_value": _variable(samples | targets, f32, "target in the clean copy"),
    }


def _gradients(plan: SaliencyPlan, num_samples: int) -> dict[str, StreamedVariable]:
    sizes, policy = plan.source.simulator.simulator.config, plan.source.agent.policy
    step = {"step": plan.config.targets.num_sim_steps}
    stoch = {"categorical": sizes.num_categoricals, "class": sizes.num_classes}

    def gradient(dims: dict[str, int], description: str) -> StreamedVariable:
        dims = {"sample": num_samples, **_view_dims(plan), **dims}
        return _variable(dims, np.float32, f"d target / d {description}")

    gradients = {
        "gradient_frame": gradient(step | _frame_dims(plan), "frame, whose values run from 0 to 1"),
        "gradient_agent_state": gradient(step | {"state_unit": policy.state_dim}, "agent state"),
        "gradient_env_deter": gradient(step | {"deter_unit": sizes.deter_dim}, "deter"),
        "gradient_env_stoch": gradient(step | stoch, "stoch"),
        "gradient_latent": gradient({"latent_unit": sizes.latent_dim}, "latent"),
    }
    if plan.projection is not None:
        gradients["gradient_component"] = gradient(
            step | {"component": plan.projection.n_components_},
            "component, the rest of the state held fixed",
        )
    return gradients


def _integrated(plan: SaliencyPlan, num_samples: int) -> dict[str, StreamedVariable]:
    flags = plan.config.integration
    views = _view_dims(plan)
    of_target = {name: views[name] for name in ("target", "target_step")}
    step = {"step": plan.config.targets.num_sim_steps}
    latent = {"latent_unit": plan.source.simulator.simulator.config.latent_dim}
    baseline = {"baseline": len(flags.integration_baselines)}
    declared: dict[str, StreamedVariable] = {}
    for what, name, before, dims in (
        ("frames", "frame", baseline, step | _frame_dims(plan)),
        ("latent", "latent", {}, latent),
    ):
        if what not in flags.integrate:
            continue
        table = {"sample": num_samples, **before, **of_target}
        declared |= {
            f"integrated_{name}": _variable(
                table | dims, np.float32, f"integrated gradient of the target over the {what}"
            ),
            f"integrated_{name}_difference": _variable(
                table, np.float64, "target at the sample − target at the baseline"
            ),
            f"integrated_{name}_delta": _variable(
                table, np.float64, "sum of the integrated gradients − that difference"
            ),
            f"integrated_{name}_met": _variable(
                table, np.int8, "1 where that is within --integration_tolerance of the difference, "
                "0 where it is not, -1 for a target that is not defined",
            ),
        }  # fmt: skip
    return declared


def _view_dims(plan: SaliencyPlan) -> dict[str, int]:
    """What tells the gradients of one sample apart."""
    config = plan.config
    return {
        "environment_gradient": len(config.environment_gradients),
        "target": len(plan.targets),
        "target_step": len(config.targets.target_steps),
    }


def _frame_dims(plan: SaliencyPlan) -> dict[str, int]:
    names = ("height", "width", "channel")
    return dict(zip(names, plan.source.simulator.environment.obs_shape, strict=True))


def _variable(dims: dict[str, int], dtype: DTypeLike, description: str) -> StreamedVariable:
    """One chunk is what one look at one sample and view needs."""
    single = ("sample", "environment_gradient", "baseline", "target", "target_step")
    chunks = tuple(1 if name in single else max(1, size) for name, size in dims.items())
    attributes = {"long_name": description}
    return StreamedVariable(tuple(dims), tuple(dims.values()), dtype, attributes, chunks)
