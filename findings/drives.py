"""What drives the agent: latents that were searched for, and one more intervention."""

import xarray as xr

from analysis.effect_verdict import VERDICT_COLUMNS, main_measures, row_of, strength_lines
from analysis.results import INTERVENTION_EFFECTS_NAME, TARGET_FUNCTIONS_NAME
from findings.chain import ChainFolder
from findings.page import Section, Table, number, share

DRIVES_SECTION = ("drives", "What drives the agent")


def drives_section(chain: ChainFolder) -> Section:
    """Latents found along the gradient beside random ones, and an intervention's verdict.

    Raises:
        UserError: no latents were searched for, or the intervention was not measured.
    """
    name, title = DRIVES_SECTION
    targets, target_source = chain.results(f"target_functions/{TARGET_FUNCTIONS_NAME}")
    effects, effect_source = chain.results(f"intervention_effects/{INTERVENTION_EFFECTS_NAME}")
    return Section(
        name,
        title,
        tuple(f"Intervention: {line}." for line in strength_lines(effects)),
        (target_table(targets), intervention_table(effects)),
        chain.pictures(
            {
                "target_figures/target_functions.png": "Latents that climb along the gradient of "
                "the whole simulation; control: the best of as many random latents.",
                "intervention_figures/intervention_effects.png": "The intervention against its "
                "unmodified twin; controls: random directions of the same size.",
            }
        ),
        (target_source, effect_source),
    )


def target_table(targets: xr.Dataset) -> Table:
    """Scores that were found beside the best of as many random latents."""
    rows = []
    for target in targets["target"].values.tolist():
        at = targets.sel(target=target)
        found, control = at["best_score"].values, at["control_score"].values
        rows.append(
            (
                target,
                f"{number(found.min())} to {number(found.max())}",
                f"{number(control.min())} to {number(control.max())}",
                share(int((found > control.max()).sum()), len(found)),
            )
        )
    return Table(
        "targets",
        f"Latents searched for along the gradient, {targets.sizes['copy']} copies each, and the "
        "best of as many random latents as each copy tried.",
        ("target", "found", "control: random latents", "above all random ones"),
        tuple(rows),
    )


def intervention_table(effects: xr.Dataset) -> Table:
    """Predicted, observed, controls and verdict of the intervention."""
    rows = [
        tuple(cell.replace("-", "−") for cell in row_of(effects, world, measure))
        for measure in main_measures(effects)
        for world in effects["world"].values.tolist()
    ]
    return Table(
        "intervention",
        f"An intervention against its unmodified twin, {effects.sizes['pair']} pairs; which one it "
        "is stands in its command, under the files.",
        VERDICT_COLUMNS,
        tuple(rows),
    )
