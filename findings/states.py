"""What the states of agent and environment look like, and how the components reach the heads."""

import numpy as np
import xarray as xr

from analysis.readout_weights import VALUE_NAME
from analysis.results import (
    BEHAVIOUR_NAME,
    BOTTLENECK_ANALYSIS_NAME,
    CROSS_NAME,
    ENV_H_ANALYSIS_NAME,
    HIDDEN_ANALYSIS_NAME,
    JACOBIAN_NAME,
    OVERLAP_NAME,
    READOUT_NAME,
    SML_ANALYSIS_NAME,
)
from findings.chain import ChainFolder
from findings.page import NOT_KNOWN, Section, Table, number, share, with_bounds

STATES_SECTION = ("states", "What states look like")
DYNAMICS_SECTION = ("dynamics", "Behaviours, Jacobians and correlations")
STATES = {
    f"hidden_analysis/{HIDDEN_ANALYSIS_NAME}": "hidden states, real",
    f"env_h_analysis/{ENV_H_ANALYSIS_NAME}": "environment states, simulated",
    f"bottleneck_analysis/{BOTTLENECK_ANALYSIS_NAME}": "latents of windows",
    f"sml_analysis/{SML_ANALYSIS_NAME}": "whole loop, simulated",
}
"""Result files of one table, and what they are of."""
SIGNIFICANT = 0.05


def states_section(chain: ChainFolder) -> Section:
    """Clusters and layouts beside their controls, real beside simulated, and the heads.

    Raises:
        UserError: one of the analyses is missing.
    """
    name, title = STATES_SECTION
    opened = {path: chain.results(path) for path in STATES}
    overlap, overlap_source = chain.results(f"overlap/{OVERLAP_NAME}")
    readout, readout_source = chain.results(f"readout_weights/{READOUT_NAME}")
    rows = [_state_row(STATES[path], results) for path, (results, _) in opened.items()]
    return Section(
        name,
        title,
        (_overlap_sentence(overlap), _readout_sentence(readout)),
        (
            Table(
                "states",
                "Clusters of halves of the episodes (samples) against those of all: adjusted Rand "
                "index, beside normal data of the same covariance, which have no clusters. Layout "
                "in two dimensions: trustworthiness, beside two principal components and shuffled "
                "places.",
                (
                    *("states", "rows", "components for 95%", "clusters", "stability"),
                    *("normal data", "trustworthiness", "two components", "shuffled"),
                ),
                tuple(rows),
            ),
        ),
        chain.pictures(_state_captions(chain)),
        (*(source for _, source in opened.values()), overlap_source, readout_source),
    )


def _state_row(name: str, results: xr.Dataset) -> tuple[str, ...]:
    attributes = results.attrs
    stability = "cluster_stability_adjusted_rand"
    told = NOT_KNOWN
    if stability in attributes:
        told = f"{attributes[stability]:.2f} ± {attributes['cluster_stability_deviation']:.2f}"
    quality = "embedding_trustworthiness"
    return (
        name,
        f"{int((results['source'].values == 0).sum()):,}",
        str(attributes["num_components_95"]),
        str(attributes["num_clusters"]),
        told,
        *(
            number(float(attributes.get(key, np.nan)))
            for key in (
                "cluster_stability_control",
                *(quality, f"{quality}_of_pca", f"{quality}_of_shuffled"),
            )
        ),
    )


def _overlap_sentence(overlap: xr.Dataset) -> str:
    told = []
    for comparison in ("real_and_simulated", "halves_of_real"):
        low, high = overlap["roc_area_interval"].sel(comparison=comparison).values
        area = float(overlap["roc_area"].sel(comparison=comparison))
        told.append(with_bounds(area, low, high))
    return (
        "A logistic classifier tells simulated hidden states from real ones, in episodes that it "
        f"was not fitted on, with an area under the ROC curve of {told[0]}; control, two halves of "
        f"the real episodes: {told[1]} (0.5 is chance)."
    )


def _readout_sentence(readout: xr.Dataset) -> str:
    value = readout.sel(output=VALUE_NAME)
    weight = value["weight"].values
    strongest = np.argsort(-np.abs(weight))[:3]
    told = ", ".join(f"{component} ({number(weight[component])})" for component in strongest)
    actions = readout["variance_share"].drop_sel(output=VALUE_NAME).values
    return (
        f"The value's head weighs components {told} most, in returns per standard deviation. The "
        f"components carry {float(value['variance_share']):.0%} of the value's variance, and "
        f"{actions.min():.0%} to {actions.max():.0%} of the logits': the rest is outside them."
    )


def _state_captions(chain: ChainFolder) -> dict[str, str]:
    game = {
        f"figures/{path.name}": "Hidden states of real rollouts by the game's own variables, in "
        "the layout; control: what probes read of them stands under the main directions."
        for path in sorted((chain.folder / "figures").glob("embedding_game_*.png"))
    }
    factors = {
        f"figures/{path.name}": "The same by each NMF factor, whose number is the one that best "
        "predicts held-out units of held-out episodes."
        for path in sorted((chain.folder / "figures").glob("embedding_factors_*.png"))
    }
    return {
        "figures/ica_variables_real.png": "Hidden states of real rollouts in the first two "
        "components, by what the agent saw and did.",
        **game,
        **factors,
        "figures/overlap.png": "Real and simulated hidden states on the axes of the real ones.",
        "overlap/agent_h_overlap_0.png": "The first two principal components, with the classifier "
        "that tells the two apart and its control, two halves of the real episodes.",
        "readout_weights/act_and_val_weights.png": "Heads in component space, biases at the mean "
        "hidden state; control: the share of each output's variance that the components carry.",
        "env_h_figures/embedding_variables.png": "States of the simulated environment; the title "
        "gives the stability of the clusters beside normal data without any.",
        "bottleneck_figures/embedding_variables.png": "Latents of windows, and, as their control, "
        "random ones on the same axes.",
        "sml_figures/embedding_variables.png": "The whole loop of agent and environment, with "
        "clusters that heed changes too; controls as above.",
    }


def dynamics_section(chain: ChainFolder) -> Section:
    """Clusters of behaviour and of Jacobians beside their controls, and what passes which null.

    Raises:
        UserError: one of the analyses is missing.
    """
    name, title = DYNAMICS_SECTION
    behaviour, behaviour_source = chain.results(f"behaviour_clusters/{BEHAVIOUR_NAME}")
    jacobians, jacobian_source = chain.results(f"jacobians/{JACOBIAN_NAME}")
    cross, cross_source = chain.results(f"cross_dynamics/{CROSS_NAME}")
    sentences = [
        *_stability_sentence("behaviours of agent and environment", behaviour),
        *_stability_sentence("one-step Jacobians", jacobians),
        discovery_sentence(cross),
    ]
    captions = {
        "behaviour_figures/behaviour_clusters.png": "Behaviours: where their steps lie, how many "
        "samples each has, what the agent does in it; control: random mixtures of the samples.",
        "behaviour_figures/behaviour_exemplars.png": "Samples nearest to each behaviour's centre.",
        "jacobian_figures/jacobians.png": "Jacobians between components over the lags, beside "
        "finite pushes in the discrete simulator, which are their control.",
        "cross_dynamics/behaviour_all.png": "Correlations and mean Jacobians of all samples by "
        "lag; marks say which nulls an entry passes.",
        "cross_dynamics/causation_of_extremes.png": "Mean Jacobians where a component is lowest "
        "and highest.",
    }
    return Section(
        name,
        title,
        tuple(sentences),
        pictures=chain.pictures(captions),
        sources=(behaviour_source, jacobian_source, cross_source),
    )


def _stability_sentence(what: str, results: xr.Dataset) -> list[str]:
    attributes, name = results.attrs, "cluster_stability"
    if f"{name}_adjusted_rand" not in attributes:
        return []
    return [
        f"{attributes['num_clusters']} clusters of {what} agree between halves of the samples with "
        f"an adjusted Rand index of {attributes[f'{name}_adjusted_rand']:.2f} ± "
        f"{attributes[f'{name}_deviation']:.2f} (control without clusters: "
        f"{attributes[f'{name}_control']:.2f})."
    ]


def discovery_sentence(cross: xr.Dataset) -> str:
    """How many correlations between different components are found, by null."""
    # A component goes with its own past; that is no finding.
    is_pair = cross["source"] != cross["target"]
    q = cross["correlation_q"].sel(group="all").where(is_pair)
    told = []
    for null, meaning in (
        ("pairing", "other samples"), ("time_shift", "shifts in time"),
    ):  # fmt: skip
        values = q.sel(null=null).values
        tested = np.isfinite(values)
        passed = int((values[tested] < SIGNIFICANT).sum())
        told.append(f"{share(passed, int(tested.sum()))} pass the null of {meaning}")
    return (
        "Of the correlations between components at all lags, on all samples, "
        f"{' and '.join(told)}, at a false-discovery rate of {SIGNIFICANT:.0%}."
    )
