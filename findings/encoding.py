"""What the components of the hidden state encode."""

import numpy as np
import xarray as xr

from analysis.probe_names import SIMULATOR_STATES
from analysis.results import HIDDEN_ANALYSIS_NAME, PROBE_ANALYSIS_NAME
from findings.chain import ChainFolder
from findings.page import Section, Table, number, probability, share, signed, with_bounds

NAME, TITLE = "encoding", "What the main directions encode"
SHOWN_VARIABLES = 3
"""Variables shown for each component."""
SOURCES = ("real", "simulated")
STATE_NAMES = {"env_state": "environment state", "latent": "latent"}
"""States of the simulator that are set beside their baselines."""
REPRESENTATIONS = ("hidden", "components", "pixels", "untrained")


def encoding_section(chain: ChainFolder) -> Section:
    """Components against the game's variables, and what probes read of them.

    Raises:
        UserError: the probe analysis or the hidden-state analysis is missing.
    """
    probes, probe_source = chain.results(f"probe_analysis/{PROBE_ANALYSIS_NAME}")
    hidden, hidden_source = chain.results(f"hidden_analysis/{HIDDEN_ANALYSIS_NAME}")
    return Section(
        NAME,
        TITLE,
        sentences=(
            _pairs_sentence(probes),
            *_probe_sentences(probes),
            reading_sentence(probes),
            *state_sentences(probes),
            _cluster_sentence(hidden),
        ),
        tables=(
            component_table(probes),
            probe_table(probes),
            *reading_tables(probes),
            *state_tables(probes),
        ),
        pictures=chain.pictures(
            {
                "probe_figures/component_variables.png": "Partial correlation of every component "
                "with every variable, given the step in the episode.",
                "probe_figures/probe_scores.png": "What probes read of the game, on levels they "
                "were not fitted on.",
                "probe_figures/simulator_scores.png": "The same of states of simulator and agent "
                "where samples imitate real decisions, each beside the pixels of the frames that "
                "it belongs to and an untrained agent over them.",
            }
        ),
        sources=(probe_source, hidden_source),
    )


def component_table(probes: xr.Dataset) -> Table:
    """For each component the variables that go with it most, of those that pass the control."""
    rate = float(probes.attrs["false_discovery_rate"])
    rows = []
    for component in probes["component"].values.tolist():
        at = probes.sel(component=component)
        partial, q_value = at["partial_correlation"].values, at["q_value"].values
        low, high = at["partial_correlation_interval"].transpose("bound", "variable").values
        is_found = q_value < rate
        order = np.argsort(-np.where(is_found, np.abs(partial), -1.0))[:SHOWN_VARIABLES]
        told = [
            f"{probes['variable'].values[v]} {with_bounds(partial[v], low[v], high[v])}"
            for v in order
            if is_found[v]
        ]
        largest = max((q_value[v] for v in order if is_found[v]), default=float("nan"))
        tested = int(np.isfinite(q_value).sum())
        rows.append(
            (
                str(component),
                "; ".join(told) or "none",
                probability(largest),
                f"{int(is_found.sum())} of {tested}",
            )
        )
    return Table(
        "components",
        "Partial correlation given the step in the episode, with its 95% interval over levels; "
        f"only variables whose false-discovery rate over the whole table is below {rate:.0%}.",
        ("component", "variables that go with it most", "largest q shown", "variables found"),
        tuple(rows),
    )


def probe_table(probes: xr.Dataset) -> Table:
    """Linear probes of every representation, and the hidden state against an untrained agent."""
    linear = probes.sel(probe="linear")
    shown = [r for r in REPRESENTATIONS if r in probes["representation"].values]
    scores = linear["score"]
    known = np.flatnonzero(np.isfinite(scores.sel(representation="hidden").values))
    order = known[np.argsort(-scores.sel(representation="hidden").values[known])]
    rows = []
    for index in order.tolist():
        at = linear.isel(variable=index)
        cells = []
        for name in shown:
            low, high = at["score_interval"].sel(representation=name).values
            cells.append(with_bounds(float(at["score"].sel(representation=name)), low, high))
        rows.append(
            (
                str(probes["variable"].values[index]),
                *cells,
                number(float(at["shuffled_score"].sel(representation="hidden"))),
                _difference(at),
            )
        )
    return Table(
        "probes",
        "R² of linear probes (Brier skill of yes-or-no variables) on levels they were not fitted "
        "on, with 95% intervals over levels; “shuffled” asks the hidden state for the values of "
        "other levels.",
        ("variable", *shown, "shuffled", "hidden − untrained"),
        tuple(rows),
    )


def _difference(at: xr.Dataset) -> str:
    if "untrained" not in at["baseline"].values:
        return "–"
    chosen = at.sel(representation="hidden", baseline="untrained")
    low, high = chosen["difference_interval"].values
    return f"{signed(float(chosen['difference']))} [{signed(low)}, {signed(high)}]"


def reading_tables(probes: xr.Dataset) -> tuple[Table, ...]:
    """What probes of real hidden states read on simulated ones; none without simulated rollouts."""
    if "reading_score" not in probes:
        return ()
    hidden = probes.sel(read_representation="hidden")
    steps = _shown_steps(probes)
    real = hidden["reading_score"].sel(read_source="real", step=steps[0]).values
    known = np.flatnonzero(np.isfinite(real))
    rows = []
    for index in known[np.argsort(-real[known])].tolist():
        at = hidden.isel(variable=index)
        cells = (
            with_bounds(
                float(at["reading_score"].sel(read_source=source, step=step)),
                *at["reading_score_interval"].sel(read_source=source, step=step).values,
            )
            for step in steps
            for source in SOURCES
        )
        rows.append((str(probes["variable"].values[index]), *cells))
    return (
        Table(
            "reading",
            "R² of linear probes that were fitted on real hidden states, read on simulated ones "
            "that imitate real decisions, and on these; levels that the probes were not fitted on, "
            "95% intervals over levels. Below 0 a probe is worse than the mean.",
            ("variable", *(f"{s}, step {step}" for step in steps for s in SOURCES)),
            tuple(rows),
        ),
    )


def reading_sentence(probes: xr.Dataset) -> str:
    """How far probes of real states hold on simulated ones."""
    if "reading_score" not in probes:
        return "Probes were not read on simulated states."
    hidden = probes.sel(read_representation="hidden")
    medians = []
    for step in _shown_steps(probes):
        score = hidden["reading_score"].sel(step=step)
        real, simulated = (
            number(float(score.sel(read_source=source).median())) for source in SOURCES
        )
        medians.append(f"{simulated} at step {step} (on the decisions that are imitated {real})")
    first = hidden.sel(step=0, read_source="simulated")
    low = first["reading_score_interval"].sel(bound="lower").values
    known = np.isfinite(first["reading_score"].values)
    return (
        "Probes of real hidden states, read on simulated ones of other levels, have a median R² of "
        f"{' and '.join(medians)}; at step 0 they tell something of "
        f"{share(int((low[known] > 0).sum()), int(known.sum()))} variables (95% intervals above 0, "
        "not adjusted for their number). What a component means in real play holds in the "
        "simulator only as far as that."
    )


def state_tables(probes: xr.Dataset) -> tuple[Table, ...]:
    """New probes of environment state and latent, less baselines; none where these are unknown."""
    states = _states_with_baselines(probes)
    if not states:
        return ()
    linear = probes.sel(probe="linear")
    first = linear["simulator_score"].sel(simulator_representation=states[0]).values
    known = np.flatnonzero(np.isfinite(first))
    rows = []
    for index in known[np.argsort(-first[known])].tolist():
        cells = []
        for state in states:
            at = linear.isel(variable=index).sel(simulator_representation=state)
            bounds = at["simulator_score_interval"].values
            cells.append(with_bounds(float(at["simulator_score"]), *bounds))
            for baseline in SIMULATOR_STATES[state]:
                of_pair = at.sel(simulator_baseline=baseline)
                low, high = of_pair["simulator_difference_interval"].values
                less = signed(float(of_pair["simulator_difference"]))
                cells.append(f"{less} [{signed(low)}, {signed(high)}]")
        rows.append((str(probes["variable"].values[index]), *cells))
    columns = [
        column
        for state in states
        for column in (STATE_NAMES[state], "less pixels", "less untrained")
    ]
    return (
        Table(
            "states_encoding",
            "R² of linear probes of the simulator's states where samples imitate real decisions, "
            "fitted on them, on levels they were not fitted on, and less those of baselines; 95% "
            "intervals over levels. Beside the environment state: pixels of the simulated frame "
            "of the same step, and an untrained agent that saw the real frames before the sample "
            "and its simulated ones. Beside the latent: the last frame that set the sample up.",
            ("variable", *columns),
            tuple(rows),
        ),
    )


def state_sentences(probes: xr.Dataset) -> tuple[str, ...]:
    """Of which variables the simulator's states tell more, and less, than their baselines."""
    told = []
    for state in _states_with_baselines(probes):
        difference = probes["simulator_difference_interval"].sel(
            simulator_representation=state, simulator_baseline=list(SIMULATOR_STATES[state])
        )
        low, high = difference.transpose("bound", "simulator_baseline", "variable").values
        names = probes["variable"].values
        more = _listed([str(name) for name in names[(low > 0).all(axis=0)]])
        less = _listed([str(name) for name in names[(high < 0).any(axis=0)]])
        told.append(
            f"The {STATE_NAMES[state]} tells more than both its pixels and an untrained agent over "
            f"the same frames of {more}, and less than one of them of {less} (95% intervals that "
            "exclude 0; not adjusted for their number)."
        )
    return tuple(told)


def _states_with_baselines(probes: xr.Dataset) -> list[str]:
    """None in a file without simulated rollouts, without an untrained agent, or of a version
    before baselines of these states were kept."""
    if "simulator_baseline" not in probes.coords:
        return []
    kept = set(probes["simulator_baseline"].values.tolist())
    return [state for state in STATE_NAMES if set(SIMULATOR_STATES[state]) <= kept]


def _shown_steps(probes: xr.Dataset) -> list[int]:
    """The first simulated step and the last that can be judged."""
    score = probes["reading_score"].transpose("step", ...).values
    is_known = np.isfinite(score).reshape(len(score), -1).any(axis=1)
    steps = probes["step"].values[is_known].tolist()
    return sorted({steps[0], steps[-1]})


def _pairs_sentence(probes: xr.Dataset) -> str:
    q_value = probes["q_value"].values
    tested, rate = int(np.isfinite(q_value).sum()), float(probes.attrs["false_discovery_rate"])
    found = q_value < rate
    strong = found & (np.abs(probes["partial_correlation"].values) >= 0.5)
    return (
        f"Of pairs of component and variable {share(int(found.sum()), tested)} pass the "
        f"control of false discoveries at {rate:.0%}; {int(strong.sum())} have a partial "
        "correlation of at least 0.5 in size."
    )


def _probe_sentences(probes: xr.Dataset) -> tuple[str, ...]:
    if "untrained" not in probes["baseline"].values:
        return ()
    bounds = probes["difference_interval"].sel(representation="hidden", baseline="untrained")
    low, high = bounds.transpose("bound", "variable").values
    names = probes["variable"].values
    better = [str(name) for name in names[low > 0]]
    worse = [str(name) for name in names[high < 0]]
    pixels = probes["difference_interval"].sel(representation="hidden", baseline="pixels")
    beyond = names[pixels.sel(bound="lower").values > 0]
    return (
        "The trained hidden state tells more than that of an untrained agent of "
        f"{_listed(better)}, and less of {_listed(worse)} (95% intervals of the difference that "
        "exclude 0; not adjusted for their number).",
        f"It tells more than the pixels of the same frame of {_listed(list(map(str, beyond)))}.",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "nothing"


def _cluster_sentence(hidden: xr.Dataset) -> str:
    attributes = hidden.attrs
    if "cluster_stability_adjusted_rand" not in attributes:
        return f"{attributes['num_components_95']} principal components hold 95% of the variance."
    return (
        f"{attributes['num_components_95']} principal components hold 95% of the variance. "
        f"{attributes['num_clusters']} clusters of hidden states agree between halves of the "
        f"episodes with an adjusted Rand index of "
        f"{number(attributes['cluster_stability_adjusted_rand'])} (normal data without clusters: "
        f"{number(attributes['cluster_stability_control'])})."
    )
