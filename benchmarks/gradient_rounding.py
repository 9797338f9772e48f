"""How far rounding in backward passes moves maps of saliency, beside their own noise.

`python benchmarks/gradient_rounding.py` takes the samples of a chain (by default those of `make
demo`) and compares maps of saliency of one simulation: in float32, and with the factors of all
products rounded to ten bits after the leading one, which a GPU does for TF32. The rounding is done
here on the CPU, bit by bit. Beside it stands how far the maps move when their copies are
perturbed by other noise of the same size. Numbers are norms of differences over norms of maps, one
per sample and target.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from agents.player import full_float32
from analysis.saliency import Attributions, attribute, perturbed_copies
from analysis.saliency_config import SaliencyConfig
from analysis.saliency_plan import SaliencyPlan, make_plan
from analysis.saliency_recording import batches_of_plan, simulate_batch
from analysis.sample_source import SampleBatch
from experiment.command_line import parse_flags
from experiment.errors import require_at_least, run_entry_point
from experiment.progress import Progress
from experiment.report import stage_report
from generative.types import SimulatedSteps

MAPS = ("images", "agent_state", "env_deter", "latent")
DROPPED_BITS = 13
"""Of the 23 bits after the leading one, those that TF32 has not."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    chain: Path = Path("demo")
    """Folder of a chain that has run, where agent, simulator, samples and projection are."""
    samples: int = 8
    """Samples to compare."""
    report: Path | None = None
    """File for a JSON report."""


class RoundedProducts(TorchDispatchMode):
    """Rounds the factors of convolutions and matrix products, in forward and backward passes."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        operators = torch.ops.aten
        products = (
            operators.convolution.default,
            operators.convolution_backward.default,
            operators.mm.default,
            operators.addmm.default,
            operators.bmm.default,
        )
        if func in products:
            args = tuple(_to_tf32(a) if isinstance(a, Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


def _to_tf32(values: Tensor) -> Tensor:
    """Round to nearest, ties to even, as TF32 does."""
    bits = values.contiguous().view(torch.int32)
    is_odd = (bits >> DROPPED_BITS) & 1
    half = (1 << (DROPPED_BITS - 1)) - 1
    rounded = (bits + half + is_odd) >> DROPPED_BITS << DROPPED_BITS
    return rounded.view(torch.float32)


def measure(config: BenchmarkConfig) -> dict[str, float]:
    """Figures by name: median and largest relative changes of maps."""
    require_at_least(config, "samples")
    plan = make_plan(
        SaliencyConfig(
            model_file=config.chain / "simulator",
            agent_file=str(config.chain / "agent"),
            generated_data_dir=config.chain / "samples",
            projection=config.chain / "hidden_analysis" / "projection",
            sample_ids=("0", "to", str(config.samples)),
            device="cpu",
        )
    )
    changes: dict[str, list[NDArray]] = {}
    with Progress(len(plan.sample_ids), "sample") as progress, full_float32():
        for batch in batches_of_plan(plan):
            simulated = _simulate(plan, batch, plan.config.seed)
            exact = _gradients(plan, *simulated)
            with RoundedProducts():
                rounded = _gradients(plan, *simulated)
            other = _gradients(plan, *_simulate(plan, batch, plan.config.seed + 1))
            for kind, maps in (("rounding", rounded), ("noise", other)):
                for name in MAPS:
                    change = _relative_change(getattr(exact, name), getattr(maps, name))
                    changes.setdefault(f"{kind}_{name}", []).append(change)
            progress.advance("saliency", len(batch.ids))
    figures = {}
    for name, parts in changes.items():
        change = np.concatenate(parts)
        figures[f"{name}_median"] = float(np.median(change))
        figures[f"{name}_largest"] = float(np.max(change))
    return figures


def _simulate(plan: SaliencyPlan, batch: SampleBatch, seed: int) -> tuple[SimulatedSteps, Tensor]:
    """Steps up to the last target step, and the latents of the copies that they come from."""
    config = plan.config
    bottleneck = plan.source.simulator.simulator.bottleneck
    latent = perturbed_copies(bottleneck, batch.latent, batch.ids, config.copies, seed)
    latent.requires_grad_(True)
    num_steps = max(config.targets.target_steps) + 1
    return simulate_batch(plan, batch, latent, num_steps), latent


def _gradients(plan: SaliencyPlan, steps: SimulatedSteps, latent: Tensor) -> Attributions:
    config = plan.config
    target_steps = config.targets.target_steps
    return attribute(steps, latent, plan.targets, target_steps, config.copies.num_copies)


def _relative_change(maps: Tensor, others: Tensor) -> NDArray[np.floating]:
    """(S, Q) from (S, Q, R, ...)"""
    change = (maps - others).flatten(2).norm(dim=2) / maps.flatten(2).norm(dim=2)
    return change.numpy()


def main() -> None:
    """Parse the command line, measure, print."""
    config = parse_flags(BenchmarkConfig, __doc__ or "")
    with stage_report("benchmark_gradient_rounding", config.report) as report:
        report.metrics.update(measure(config))
        for name, value in report.metrics.items():
            print(f"{name:<42s} {value:.5f}")


if __name__ == "__main__":
    run_entry_point(main)
