"""How far the simulator and its saliency can be trusted."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.fidelity_curves import SHORT_MEANINGS
from analysis.results import SALIENCY_TRUST_NAME
from analysis.sample_trust import POOR_TRUST, SAMPLE_TRUST_NAME
from findings.chain import ChainFolder
from findings.page import Section, Table, number, share, signed, with_bounds
from generative.scores import RISING_SCORES

SIMULATOR_SECTION = ("simulator", "How far the simulator can be trusted")
SALIENCY_SECTION = ("saliency", "How far saliency can be trusted")
PREDICTIONS = {
    "mode": "simulator",
    "observed": "upper bound: has seen the frames",
    "shuffled_actions": "control: other actions",
    "last_frame": "last frame repeated",
    "mean_frame": "mean frame",
}
MEASURES = ("mse", "ssim", "policy_kl", "value_error", "hidden_cosine")
BASELINES = ("shuffled_actions", "last_frame", "mean_frame")
SHOWN_HORIZONS = (1, 2, 4, 8)
SHOWN_STEP_SIZES = 4


def simulator_section(chain: ChainFolder) -> Section:
    """Scores of the simulator beside baselines, and its samples beside reality.

    Raises:
        UserError: the simulator was not measured, or its samples' trust.
    """
    name, title = SIMULATOR_SECTION
    fidelity, fidelity_source = chain.results("fidelity/simulator_fidelity.nc")
    trust, trust_source = chain.results(f"samples/{SAMPLE_TRUST_NAME}")
    sentences = [beaten_sentence(fidelity, measure) for measure in _measures(fidelity)]
    known = trust["trust"].values[np.isfinite(trust["trust"].values)]
    if len(known):
        sentences.append(
            f"Of {len(known)} samples that acted on their own, beside the real environment under "
            f"the same actions, the median trust is {number(float(np.median(known)))}; "
            f"{share(int((known < POOR_TRUST).sum()), len(known))} lie below {POOR_TRUST:g}, which "
            "is no nearer to reality than averages of real rollouts."
        )
    tables = [fidelity_table(fidelity)]
    if "median_component_r2" in fidelity:
        tables.append(hidden_table(fidelity))
    return Section(
        name,
        title,
        tuple(sentences),
        tuple(tables),
        chain.pictures(
            {
                "fidelity_figures/fidelity_summary.png": "The simulator under recorded actions, by "
                "horizon, and (last panel) its own samples against reality.",
                "sample_trust_figures/sample_trust.png": "Samples that acted on their own, against "
                "the real environment under the same actions; controls: the last frame repeated "
                "and the mean frame.",
            }
        ),
        (fidelity_source, trust_source),
    )


def _measures(fidelity: xr.Dataset) -> list[str]:
    return [name for name in MEASURES if name in fidelity["measure"].values]


def _horizons(fidelity: xr.Dataset) -> list[int]:
    return [h for h in SHOWN_HORIZONS if h in fidelity["horizon"].values]


def fidelity_table(fidelity: xr.Dataset) -> Table:
    """Scores by horizon of the simulator, its upper bound and baselines."""
    horizons, rows = _horizons(fidelity), []
    for measure in _measures(fidelity):
        for prediction, meaning in PREDICTIONS.items():
            at = fidelity.sel(measure=measure, prediction=prediction)
            cells = []
            for horizon in horizons:
                low, high = at["score_interval"].sel(horizon=horizon).values
                value = float(at["score"].sel(horizon=horizon))
                cells.append(with_bounds(value, low, high, 3))
            rows.append((SHORT_MEANINGS[measure], meaning, *cells))
    windows, levels = fidelity.sizes["window"], len(np.unique(fidelity["level"].values))
    return Table(
        "fidelity",
        f"Scores on {windows} windows of {levels} held-out levels under recorded actions, by "
        "horizon, with 95% intervals over levels.",
        ("score", "prediction", *(f"horizon {h}" for h in horizons)),
        tuple(rows),
    )


def beaten_sentence(fidelity: xr.Dataset, measure: str) -> str:
    """At which horizons the simulator beats each baseline, and at which each beats the simulator.

    Better and worse are differences whose interval excludes 0; horizon 0 predicts nothing.
    """
    told = []
    for baseline in BASELINES:
        at = fidelity.sel(measure=measure, prediction="mode", baseline=baseline)
        low, high = at["difference_interval"].transpose("bound", "horizon").values
        is_higher, is_lower = low > 0, high < 0
        rises = measure in RISING_SCORES
        is_better, is_worse = (is_higher, is_lower) if rises else (is_lower, is_higher)
        predicted = at["horizon"].values > 0
        won, lost = (at["horizon"].values[predicted & which] for which in (is_better, is_worse))
        where = f"at {_horizon_runs(won)}" if len(won) else "nowhere"
        worse = f", worse at {_horizon_runs(lost)}" if len(lost) else ""
        told.append(f"{PREDICTIONS[baseline]}: {where}{worse}")
    return (
        f"By {SHORT_MEANINGS[measure]} the simulator is better than baselines, or worse (95% "
        f"interval of the paired difference), as follows. {'; '.join(told)}."
    )


def _horizon_runs(horizons: NDArray[np.int64]) -> str:
    """Ascending horizons as `horizons 1 to 4, 6`."""
    runs = np.split(horizons, np.flatnonzero(np.diff(horizons) != 1) + 1)
    told = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)
    return f"horizon{'s' if len(horizons) > 1 else ''} {told}"


def hidden_table(fidelity: xr.Dataset) -> Table:
    """Median over components of the R² of the agent's simulated hidden state."""
    horizons, rows = _horizons(fidelity), []
    for prediction in fidelity["prediction"].values.tolist():
        if prediction in PREDICTIONS:
            at = fidelity.sel(prediction=prediction)
            cells = []
            for horizon in horizons:
                low, high = at["median_component_r2_interval"].sel(horizon=horizon).values
                value = float(at["median_component_r2"].sel(horizon=horizon))
                cells.append(with_bounds(value, low, high))
            rows.append((PREDICTIONS[prediction], *cells))
    return Table(
        "hidden_fidelity",
        "R² of the components of the agent's hidden state, median over components: 0 is as good as "
        "their mean.",
        ("prediction", *(f"horizon {h}" for h in horizons)),
        tuple(rows),
    )


def saliency_section(chain: ChainFolder) -> Section:
    """Whether gradients foretell finite changes, and maps what matters in real frames.

    Raises:
        UserError: saliency was not judged.
    """
    name, title = SALIENCY_SECTION
    results, source = chain.results(f"saliency_trust/{SALIENCY_TRUST_NAME}")
    tables = [finite_change_table(results), stability_table(results)]
    sentences = [_gradient_sentence(results)]
    if int(results["group_size"].sel(group="all")):
        tables.append(area_table(results))
        sentences.append(_reality_sentence(results))
    return Section(
        name,
        title,
        tuple(sentences),
        tuple(tables),
        chain.pictures(
            {
                "saliency_trust_figures/saliency_reality.png": "Deletion and insertion on real "
                "frames.",
                "saliency_trust_figures/saliency_finite_changes.png": "Gradients against finite "
                "changes of the latent.",
            }
        ),
        (source,),
    )


def finite_change_table(results: xr.Dataset) -> Table:
    """Correlation of predicted with actual changes, by size of the step."""
    sizes = results["step_size"].values
    chosen = sizes[np.unique(np.linspace(0, len(sizes) - 1, SHOWN_STEP_SIZES).astype(int))]
    rows = []
    for simulator in results["simulator"].values.tolist():
        at = results.sel(simulator=simulator, measure="correlation")
        meaning = str(results["simulator_meaning"].sel(simulator=simulator).values)
        cells = [_mean(at.sel(step_size=size), "agreement") for size in chosen]
        rows.append((meaning, *cells))
    return Table(
        "finite_changes",
        f"Correlation, over {results.sizes['direction']} directions of the latent, of the change "
        "of the value that the gradient predicts with the one that happens; means over "
        f"{results.sizes['sample']} samples of {results.attrs['num_episodes']} episodes, 95% "
        "intervals over episodes.",
        ("simulator", *(f"step {size:g}" for size in chosen)),
        tuple(rows),
    )


def stability_table(results: xr.Dataset) -> Table:
    """How alike maps are under noise."""
    scales = results["noise_scale"].values
    rows = []
    for compared in results["compared"].values.tolist():
        at = results.sel(compared=compared)
        meaning = str(results["compared_meaning"].sel(compared=compared).values)
        rows.append((meaning, *(_mean(at.sel(noise_scale=s), "likeness") for s in scales)))
    return Table(
        "stability",
        "Cosine of maps of the value's saliency, by standard deviation of the noise on the latent.",
        ("compared", *(f"noise {scale:g}" for scale in scales)),
        tuple(rows),
    )


def area_table(results: xr.Dataset) -> Table:
    """Areas above the baselines of perturbing real frames."""
    rows = []
    for chosen_map in results["map"].values.tolist():
        for group in results["group"].values.tolist():
            count = int(results["group_size"].sel(group=group))
            if not count or chosen_map in results["baseline"].values:
                continue
            cells = [
                _mean(
                    results.sel(map=chosen_map, group=group, baseline=baseline, mode=mode),
                    "area_difference",
                    4,
                )
                for baseline in results["baseline"].values.tolist()
                for mode in results["mode"].values.tolist()
            ]
            meaning = str(results["map_meaning"].sel(map=chosen_map).values)
            rows.append((meaning, group, str(count), *cells))
    columns = [
        f"{mode}, less {baseline}"
        for baseline in results["baseline"].values.tolist()
        for mode in results["mode"].values.tolist()
    ]
    return Table(
        "areas",
        "Area under |change of the real agent's value| over the share of perturbed pixels, less "
        "that of a baseline. Deletion blurs the strongest pixels: above 0 the map finds more than "
        "the baseline. Insertion blurs all but the strongest: below 0.",
        ("map", "samples", "number", *columns),
        tuple(rows),
    )


def _mean(at: xr.Dataset, name: str, digits: int = 2) -> str:
    low, high = at[f"{name}_interval"].values
    return with_bounds(float(at[name]), float(low), float(high), digits)


def _gradient_sentence(results: xr.Dataset) -> str:
    at = results["agreement"].sel(measure="correlation", simulator="discrete")
    smallest, largest = at.isel(step_size=0), at.isel(step_size=-1)
    return (
        "In the discrete simulator the gradient's prediction correlates with the change of the "
        f"value at {number(float(smallest))} for steps of {float(smallest['step_size']):g} and "
        f"{number(float(largest))} for steps of {float(largest['step_size']):g}."
    )


def _reality_sentence(results: xr.Dataset) -> str:
    told = []
    for baseline, words in (("random", "noise"), ("edges", "an edge detector")):
        at = results.sel(map="simulator", group="all", mode="deletion", baseline=baseline)
        low, high = at["area_difference_interval"].values
        value = float(at["area_difference"])
        says = "does not differ from" if low <= 0 <= high else "finds more than"
        if high < 0:
            says = "finds less than"
        shown = ", ".join(signed(float(bound), 4) for bound in (low, high))
        told.append(f"{says} {words} ({signed(value, 4)} [{shown}])")
    return (
        "Where real frames are blurred at the pixels that the simulated map calls strongest, the "
        f"map {'; it '.join(told)}, by the area under the change of the real agent's value."
    )
