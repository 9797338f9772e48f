"""By which path saliency comes, and whether methods of attribution agree."""

import numpy as np
import xarray as xr

from analysis.attribution_figures import PATH_STYLES, TOLERANCE
from analysis.attribution_summary import (
    SOURCES,
    Convergence,
    MethodAgreement,
    PathNorms,
    convergence,
    mean_of_known,
    mean_over_samples,
    method_agreement,
    path_norms,
)
from analysis.results import SALIENCY_NAME
from findings.chain import ChainFolder
from findings.page import Section, Table, number, with_bounds

ATTRIBUTIONS_SECTION = ("attributions", "Saliency by path and by method")
NUM_RESAMPLES, SEED = 1000, 0


def attributions_section(chain: ChainFolder) -> Section:
    """Sizes of paths, cosines of methods beside another sample's, and what integrals missed.

    Raises:
        UserError: saliency was not split by paths, or no gradients were integrated.
    """
    name, title = ATTRIBUTIONS_SECTION
    by_path, path_source = chain.results(f"saliency_paths/{SALIENCY_NAME}")
    integrated, integrated_source = chain.results(f"integrated_gradients/{SALIENCY_NAME}")
    agreement = method_agreement(integrated)
    strips = sorted((chain.folder / "saliency_paths" / "strips").glob("*_value_step*.png"))
    captions = {
        "attribution_figures/path_shares.png": "Size of the gradients that came by each path "
        "against that of all; control: what needs no recurrence of the agent.",
        "attribution_figures/paths_frame.png": "The same by step, for gradients with respect to "
        "the frames.",
        "attribution_figures/method_agreement.png": "Cosines of attributions of the same sample "
        "and, below, the control: of one sample and another.",
        "attribution_figures/convergence.png": "What integrated gradients miss of the change that "
        "they share out.",
        **{
            f"saliency_paths/strips/{path.name}": "Gradient × input of the value in one sample; "
            "the title says by which path, and how far the sample can be trusted."
            for path in strips
        },
    }
    return Section(
        name,
        title,
        (_agreement_sentence(agreement), convergence_sentence(integrated)),
        (path_table(path_norms(by_path)), method_table(agreement)),
        chain.pictures(captions),
        (path_source, integrated_source),
    )


def path_table(norms: PathNorms) -> Table:
    """Share of each path, by target and what the gradient is with respect to."""
    mean = mean_over_samples(norms.shares(), norms.unit, NUM_RESAMPLES, SEED)
    paths = [path for path in PATH_STYLES if path != "passed"]
    rows = []
    for index, target in enumerate(norms.targets):
        for source, what in enumerate(SOURCES):
            cells = []
            for path in paths:
                at = source, norms.paths.index(path), index
                bounds = float(mean.lower[at]), float(mean.upper[at])
                cells.append(with_bounds(float(mean.value[at]), *bounds))
            rows.append((target, what, *cells))
    return Table(
        "paths",
        "Root mean square of the gradient that came by each path, over the steps before those that "
        "the target reads (value_delta reads two), against that of all paths together: means over "
        f"{len(norms.norm)} samples with 95% intervals. Paths can cancel, so shares need not add "
        "up to 1.",
        ("target", "with respect to", *(PATH_STYLES[path][0] for path in paths)),
        tuple(rows),
    )


def method_table(agreement: MethodAgreement) -> Table:
    """Cosines of gradient × input and of the gradient with every integral, beside the control."""
    same, other = (mean_of_known(x, 0) for x in (agreement.same, agreement.other))
    integrals = range(2, len(agreement.methods))
    rows = [
        (
            target,
            agreement.methods[method],
            *(
                f"{number(same[index, method, integral])} "
                f"({number(other[index, method, integral])})"
                for integral in integrals
            ),
        )
        for index, target in enumerate(agreement.targets)
        for method in range(2)
    ]
    return Table(
        "methods",
        f"Cosine of maps over the frames, means over {len(agreement.same)} samples; in brackets "
        "the control, with another sample's map.",
        ("target", "method", *(agreement.methods[integral] for integral in integrals)),
        tuple(rows),
    )


def _agreement_sentence(agreement: MethodAgreement) -> str:
    product, integrals = 1, slice(2, None)
    same, other = (mean_of_known(x, (0, 1)) for x in (agreement.same, agreement.other))
    told = [
        f"{number(values.min())} to {number(values.max())}"
        for values in (same[product, integrals], other[product, integrals])
    ]
    return (
        "Gradient × input agrees with integrated gradients over the frames with a cosine of "
        f"{told[0]}, by baseline; with those of another sample {told[1]}."
    )


def convergence_sentence(integrated: xr.Dataset) -> str:
    """By kind of integral, how many attributions sum to what they have to."""
    told = [f"over {kind.name}: {_share(kind)}" for kind in convergence(integrated)]
    return (
        f"Share of integrals that miss at most {TOLERANCE:.0%} of the change that they share out: "
        f"{'; '.join(told)}."
    )


def _share(kind: Convergence) -> str:
    within = kind.share_within(TOLERANCE)
    return "no integral has a change to share out" if np.isnan(within) else f"{within:.0%}"
