"""Which causal statements survive, and what swaps and collapses do."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from analysis.causal_statements import EVIDENCE
from analysis.effect_verdict import VERDICT_COLUMNS, main_measures, row_of, strength_lines
from analysis.matched_statements import COMPARED
from analysis.results import (
    CONSISTENCY_NAME,
    CROSS_NAME,
    INTERVENTION_EFFECTS_NAME,
    PRODUCERS,
    STATEMENT_EFFECTS_NAME,
)
from analysis.statement_figures import intervention_names
from analysis.statement_outcomes import (
    GROUPS,
    SIGNIFICANT,
    largest_control,
    outcome,
    signed_effects,
    statement_group,
)
from experiment.errors import UserError
from findings.chain import ChainFolder
from findings.page import Section, Table, number, probability, share, signed, with_bounds

STATEMENTS_SECTION = ("statements", "Which causal statements survive")
INTERVENTIONS_SECTION = ("interventions", "What swapping and collapsing them does")
SHOWN_STATEMENTS = 15


def statements_section(chain: ChainFolder) -> Section:
    """How many statements were tested, which hold in the simulator, which in reality.

    Raises:
        UserError: one of the analyses of the dynamics is missing.
    """
    name, title = STATEMENTS_SECTION
    cross, cross_source = chain.results(f"cross_dynamics/{CROSS_NAME}")
    consistency, consistency_source = chain.results(f"consistency/{CONSISTENCY_NAME}")
    effects, effects_source = chain.results(f"statement_effects/{STATEMENT_EFFECTS_NAME}")
    if "control_p" not in effects:
        raise UserError(
            f"{effects_source.path}: its random directions move the components in question; make "
            f"it anew with: {PRODUCERS['statement_effects']}"
        )
    statements = statement_frame(consistency)
    tables = [
        evidence_table(statements, effects),
        outcome_table(effects),
        matched_table(effects),
        best_table(effects, statements),
    ]
    if "agreement" in effects:
        tables.append(response_table(effects))
    tables.append(agreement_table(consistency))
    return Section(
        name,
        title,
        sentences=_statement_sentences(statements, effects, cross),
        tables=tuple(tables),
        pictures=chain.pictures(
            {
                "statement_figures/responses.png": "Predicted and observed responses to pushes.",
                "statement_figures/matched.png": "How often statements come true by the predicted "
                "size of their effect, and supported ones beside others of the same size.",
                "statement_figures/response_agreement.png": "Agreement of responses over the lags.",
                "consistency/consistency.png": "Agreement of mean Jacobians with the dynamics of "
                "unmodified samples.",
            }
        ),
        sources=(cross_source, consistency_source, effects_source),
    )


def statement_frame(consistency: xr.Dataset) -> pd.DataFrame:
    """The kept statements, one row each."""
    prefix = "statement_"
    names = [str(name) for name in consistency.data_vars if str(name).startswith(prefix)]
    return pd.DataFrame({name.removeprefix(prefix): consistency[name].values for name in names})


def evidence_table(statements: pd.DataFrame, effects: xr.Dataset) -> Table:
    """How many statements each piece of evidence speaks for and against, by behaviour."""
    largest = len(EVIDENCE)
    rows = []
    for behaviour, group in statements.groupby("behaviour", sort=True):
        cells = [
            f"{int((group[f'evidence_{name}'] > 0).sum())} / "
            f"{int((group[f'evidence_{name}'] < 0).sum())}"
            for name in EVIDENCE
        ]
        complete = int((group["score"] == largest).sum())
        rows.append((str(behaviour), str(len(group)), *cells, share(complete, len(group))))
    return Table(
        "evidence",
        "Statements “component i drives j after k steps” of "
        f"{effects.attrs['num_candidates']} that were tested: for how many each piece of evidence "
        "speaks for / against, and how many have all of it (docs/analyses.md says what each is).",
        ("behaviour", "statements kept", *EVIDENCE, "all evidence"),
        tuple(rows),
    )


def outcome_table(effects: xr.Dataset) -> Table:
    """What pushes say of supported statements, beside all others."""
    rows = []
    for world in effects["world"].values.tolist():
        for group, meaning in GROUPS.items():
            found = outcome(effects, world, group)
            rows.append(
                (
                    world,
                    meaning,
                    str(found.num_statements),
                    share(found.num_seen, found.num_statements),
                    share(found.num_opposite, found.num_statements),
                    share(found.num_beyond_controls, found.num_statements),
                )
            )
    starts = effects.attrs["num_starts"]
    return Table(
        "outcomes",
        f"Each component pushed once by {effects.attrs['push_size']:g} standard deviation from "
        f"{starts} starts: effects on other components that differ from zero (false-discovery rate "
        "5% over all pairs and lags of a world) and have the sign that the mean Jacobian predicts, "
        "or the opposite one, and those of the former that are larger in size than what pushes "
        "along random directions do that leave both components where they are "
        f"({_number_of_controls(effects)} for each pair), scaled to the same length. Statements on "
        "all samples, lags that a push reaches.",
        (
            "world",
            "statements with",
            "number",
            "predicted sign",
            "opposite sign",
            "beyond controls",
        ),
        tuple(rows),
    )


def _number_of_controls(effects: xr.Dataset) -> str:
    is_pair = effects["source"].values[:, None] != effects["target"].values
    counts = effects["num_controls"].values[is_pair]
    return f"{counts.min()} to {counts.max()}"


def matched_table(effects: xr.Dataset) -> Table:
    """Supported statements beside others of the same predicted size."""
    rows = []
    for world in effects["world"].values.tolist():
        for rate in effects["rate"].values.tolist():
            at = effects.sel(world=world, rate=rate)
            cells = (_rate(at.sel(compared=name)) for name in COMPARED)
            rows.append((world, str(at["rate_meaning"].values), *cells))
    return Table(
        "matched",
        "Supported statements beside all others whose predicted size differs by less than a factor "
        f"{effects.attrs['match_ratio']:g} (mean size of these matches "
        f"{number(effects.attrs['matched_size_ratio'])} times that of the supported ones); 95% "
        f"intervals resample the {effects.attrs['num_sources_with_match']} pushed components that "
        "the compared supported statements are about.",
        ("world", "share of", "supported", "matched", "difference"),
        tuple(rows),
    )


def _rate(at: xr.Dataset) -> str:
    return with_bounds(float(at["matched_rate"]), *at["matched_rate_interval"].values.tolist())


def best_table(effects: xr.Dataset, statements: pd.DataFrame) -> Table:
    """The best ranked supported statements, with what pushes did in both worlds."""
    of_all = statements.loc[statements["behaviour"] == "all", :].sort_values(by="rank")
    rows = []
    for one in of_all.to_dict("records"):
        source, lag, target = one["source"], one["lag"], one["target"]
        if len(rows) == SHOWN_STATEMENTS or one["score"] < len(EVIDENCE):
            break
        if source in effects["source"].values and lag in effects["lag"].values:
            at = effects.sel(source=source, lag=lag, target=target)
            rows.append(
                (
                    f"{source} → {target} after {lag}",
                    with_bounds(one["r"], one["r_lower"], one["r_upper"]),
                    signed(float(at["gradient"])),
                    *(_response(at.sel(world=world)) for world in ("simulated", "real")),
                    *(_q_value(at.sel(world=world)) for world in ("simulated", "real")),
                    probability(float(at["control_p"].sel(world="real"))),
                    verdict(at.sel(world="real")),
                )
            )
    return Table(
        "best_statements",
        "The best ranked statements with all evidence: correlation in the simulator, change of the "
        "target that the mean Jacobian predicts, changes observed after a push (95% intervals over "
        "levels; in brackets the range of random directions of the same size that move neither "
        "component). q: smallest false-discovery rate over all pairs and lags of a world at which "
        "the effect counts. p: share of random directions, the component counted among "
        "them, that do as much in reality; not adjusted for the number of statements.",
        (
            *("statement", "correlation", "predicted", "simulated", "real"),
            *("q, simulated", "q, real", "p, random directions", "in reality"),
        ),
        tuple(rows),
    )


def _q_value(at: xr.Dataset) -> str:
    return probability(float(at["effect_q"]))


def _response(at: xr.Dataset) -> str:
    low, high = at["effect_interval"].values
    controls = f"({number(float(at['control_low']))} to {number(float(at['control_high']))})"
    return f"{with_bounds(float(at['effect']), low, high)} {controls}"


def verdict(at: xr.Dataset) -> str:
    """What a push says of one statement in one world."""
    if not float(at["effect_q"]) < SIGNIFICANT:
        return "no effect seen"
    effect = float(at["effect"])
    if np.sign(effect) != np.sign(float(at["gradient"])):
        return "opposite"
    is_larger = abs(effect) > float(largest_control(at))
    return "as predicted" if is_larger else "as predicted, but random directions do as much"


def response_table(effects: xr.Dataset) -> Table:
    """Agreement of whole matrices of responses, beside permuted components."""
    rows = []
    for lag in effects["lag"].values.tolist():
        cells = []
        for comparison in effects["comparison"].values.tolist():
            at = effects.sel(lag=lag, comparison=comparison, measure="cosine")
            cells.append(
                f"{number(float(at['agreement']))} (p {probability(float(at['agreement_p']))})"
            )
        rows.append((str(lag), *cells))
    return Table(
        "response_agreement",
        "Cosine between responses of all pairs of different components, p against permuted "
        "components (Mantel).",
        ("lag", "gradient, simulated push", "gradient, real push", "simulated, real push"),
        tuple(rows),
    )


def agreement_table(consistency: xr.Dataset) -> Table:
    """Cosine of mean Jacobians with correlations and regressions, all samples."""
    chosen = consistency.sel(group="all", environment_gradient="passed", measure="cosine")
    rows = []
    for lag in chosen["lag"].values.tolist():
        cells = []
        for dynamics in chosen["dynamics"].values.tolist():
            at = chosen.sel(lag=lag, dynamics=dynamics)
            p_value = float(at["agreement_p"].sel(null="components"))
            cells.append(f"{number(float(at['agreement']))} (p {probability(p_value)})")
        rows.append((str(lag), *cells))
    return Table(
        "consistency",
        "Cosine of mean Jacobians with the dynamics of unmodified samples, between different "
        "components; p against permuted components.",
        ("lag", *(str(name) for name in chosen["dynamics"].values)),
        tuple(rows),
    )


def _statement_sentences(
    statements: pd.DataFrame, effects: xr.Dataset, cross: xr.Dataset
) -> tuple[str, ...]:
    largest = len(EVIDENCE)
    complete = int((statements["score"] == largest).sum())
    tested = int(effects.attrs["num_candidates"])
    simulated, real, others = (
        outcome(effects, world, group)
        for world, group in (
            ("simulated", "supported"), ("real", "supported"), ("real", "others"),
        )
    )  # fmt: skip
    num_groups = cross.sizes["group"]
    return (
        f"{tested} statements were tested, on {num_groups} groups of samples (all of them, and "
        f"each behaviour); {share(complete, tested)} have all {largest} pieces of evidence. "
        "These come from one simulator and are not independent of each other.",
        f"Of those on all samples, {simulated.num_statements} were put to the test by pushes. At a "
        f"false-discovery rate of 5% over all pairs and lags (q < {SIGNIFICANT}) "
        f"{share(simulated.num_seen, simulated.num_statements)} come true in the simulator, and "
        f"{share(real.num_seen, real.num_statements)} in the real environment; "
        f"{real.num_opposite} have the opposite sign there. {real.num_beyond_controls} of those "
        "true in the real environment are beyond all random directions that move neither "
        f"component; if components were like these, {beyond_by_chance(effects)} would be by "
        "chance. Of the statements without all "
        f"evidence, which are the control, {share(others.num_seen, others.num_statements)} come "
        f"true in the real environment and {others.num_opposite} have the opposite sign.",
        _matched_sentence(effects),
    )


def beyond_by_chance(effects: xr.Dataset) -> str:
    """How many effects that are seen would be larger than all controls if they were like them."""
    is_true = statement_group(effects, "supported") & signed_effects(effects, "real").is_seen
    counts = effects["num_controls"].transpose("source", "target").values[:, None, :]
    return number(float(np.where(is_true & (counts > 0), 1 / (1 + counts), 0.0).sum()), 1)


def _matched_sentence(effects: xr.Dataset) -> str:
    """Whether all evidence adds anything to the predicted size."""
    known = effects.attrs["num_supported_with_match"]
    total = known + effects.attrs["num_supported_without_match"]
    if known == 0:
        return "No other statement is predicted to be about as large as a supported one."
    seen = effects.sel(world="real", rate="seen")
    supported, matched, difference = (seen.sel(compared=name) for name in COMPARED)
    low, high = difference["matched_rate_interval"].values.tolist()
    verdict = "whether evidence adds anything to the predicted size cannot be told from so few"
    if low > 0:
        verdict = "all evidence together adds to what the predicted size tells"
    elif high < 0:
        verdict = "statements with all evidence do worse than their predicted size lets expect"
    elif low == low:
        verdict = "no more can be seen in them than their predicted size lets expect"
    return (
        f"Supported statements are also those whose effects are predicted to be large. {known} of "
        f"{total} have others of nearly the same predicted size: of these supported ones "
        f"{number(float(supported['matched_rate']))} come true in the real environment, of their "
        f"matches {number(float(matched['matched_rate']))} (difference {_rate(difference)}): "
        f"{verdict}."
    )


def interventions_section(chain: ChainFolder) -> Section:
    """Verdicts on the swaps and collapses of the best statements.

    Raises:
        UserError: no statements were tested, or a recording's result is missing.
    """
    name, title = INTERVENTIONS_SECTION
    effects, _ = chain.results(f"statement_effects/{STATEMENT_EFFECTS_NAME}")
    names = list(intervention_names(effects))
    if not names:
        raise UserError(
            f"{chain.folder / 'statement_effects'}: no swap or collapse was recorded; make some "
            "with: python analysis/statement_effects_precompute.py --num_pairs 3"
        )
    tables, sources, sentences = [], [], []
    for intervention in names:
        path = Path("statement_effects") / intervention / INTERVENTION_EFFECTS_NAME
        results, source = chain.results(str(path))
        tables.append(verdict_table(results, intervention))
        sources.append(source)
        told = [*_evidence_lines(effects, intervention), *strength_lines(results)]
        sentences += [f"{describe_name(intervention)}: {line}." for line in told]
    captions = {f"statement_figures/{n}.png": describe_name(n) for n in names}
    return Section(
        name, title, tuple(sentences), tuple(tables), chain.pictures(captions), tuple(sources)
    )


def describe_name(intervention: str) -> str:
    """A folder's name in words."""
    kind, *components = intervention.split("_")
    numbers = [str(int(component)) for component in components]
    if kind == "swap":
        return f"Swap {numbers[0]} → {numbers[1]}"
    return f"Collapse of {numbers[0]}"


def _evidence_lines(effects: xr.Dataset, intervention: str) -> list[str]:
    """How well supported the statement is that a swap is about; nothing for a collapse."""
    kind, *components = intervention.split("_")
    if kind != "swap":
        return []
    source, target = map(int, components)
    score = np.nanmax(effects["score"].sel(source=source, target=target).values)
    largest = effects.attrs["largest_possible_score"]
    return [f"the best statement that {source} drives {target} has evidence {score:g} of {largest}"]


def verdict_table(results: xr.Dataset, intervention: str) -> Table:
    """Predicted, observed, controls and verdict, for value, policy, actions and return."""
    worlds = results["world"].values.tolist()
    rows = [
        tuple(cell.replace("-", "−") for cell in row_of(results, world, measure))
        for measure in main_measures(results)
        for world in worlds
    ]
    what = {
        "swap": "what each step adds to the first component goes to the second, from row 1 on",
        "collapse": "the component is held at its mean, from row 1 on",
    }[intervention.split("_")[0]]
    pairs, levels = results.sizes["pair"], len(np.unique(results["level"].values))
    return Table(
        intervention,
        f"{describe_name(intervention)} ({what}), against the unmodified twin: {pairs} pairs from "
        f"{levels} levels.",
        VERDICT_COLUMNS,
        tuple(rows),
    )
