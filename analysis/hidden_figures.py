"""Figures of the hidden-state analysis, drawn from its result file alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.figure_style import (
    OKABE_ITO,
    axis_letters,
    figure_text,
    frame_clouds,
    save_figures,
    spaced_hues,
    tell_stability,
    tell_trustworthiness,
)
from analysis.results import HIDDEN_ANALYSIS_NAME, SOURCES, ends_before, read_results
from analysis.rotation_videos import write_rotation
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.progress import Progress
from experiment.report import StageReport

BACKGROUND = "0.82"
REAL_COLOUR, SIMULATED_COLOUR = "#2166ac", "#e66101"
MAX_LEGEND_ENTRIES, MAX_TICKS = 15, 9
SHOWN_COMPONENTS = 6
"""How many leading components the pair plots need."""
AXIS_NAMES = {"pca": "PC {}", "ica": "IC {}", "embedding": "embedding {}"}
COLUMNS = 4
SOLID_SIZE, SOLID_ZOOM, SOLID_LABEL_PAD = (6.4, 5.4), 0.85, -10.0
"""Of a three-dimensional figure: inches; a box whose labels stay off the key however it turns;
the labels' distance in points, as there are no ticks."""
NEAR_SPAN, MANY_ROWS = 0.05, 0.75
"""A variable of which this share of the rows lies within that part of the colour scale around the
median is nearly the same everywhere."""


@dataclass(frozen=True)
class PlottingConfig:
    """Flags of `hidden_analysis_plotting.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/hidden_analysis.yml that the other values are taken from."""
    input_dir: Path = Path("analysis/hx_analysis_precomp")
    """Folder of hidden_analysis.nc, made by hidden_analysis_precompute.py."""
    output_dir: Path = Path("analysis/hx_plots")
    """Folder for the figures, each as PNG and PDF, and a contact sheet."""
    spaces: tuple[str, ...] = ("pca", "ica", "embedding")
    """Spaces to draw each variable in; those that the result file has."""
    max_points: int = 100_000
    """At most so many rows of each source are drawn, chosen at random."""
    num_trajectories: int = 12
    """Episodes drawn as arrows."""
    clusters_per_page: int = 16
    """Clusters highlighted per figure."""
    num_rotation_views: int = 0
    """Views of each video around the first three axes, 36 for steps of 10 degrees; 0: no videos."""
    dpi: int = 130
    """Resolution of PNGs, of the scatters inside PDFs and of videos."""
    seed: int = 0
    """Chooses the rows and episodes that are drawn."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


@dataclass(frozen=True)
class Variable:
    """A per-row quantity to colour by."""

    name: str
    label: str
    colour_map: str = "viridis"
    is_categorical: bool = False


VARIABLES = (
    Variable("value", "value"),
    Variable("entropy", "policy entropy (nats)", "cividis"),
    Variable("cluster", "cluster", is_categorical=True),
    Variable("action", "action taken", is_categorical=True),
    Variable("reward", "reward", "plasma"),
    Variable("episode_return", "episode return", "plasma"),
    Variable("strongest_component", "strongest component", is_categorical=True),
    Variable("greedy_action", "most probable action", is_categorical=True),
    Variable("step", "step in episode", "magma"),
    Variable("fraction_through", "fraction of episode", "magma"),
    Variable("episode_length", "episode length", "magma"),
    Variable("done", "episode ends here", is_categorical=True),
    Variable("strongest_factor", "strongest NMF factor", is_categorical=True),
)
"""In rows of four, so that the panels with a legend share the last column. Those that a result file
has are drawn."""
OWN_SCALE = ("step", "episode_length")
"""Told of samples on a scale of their own: a sample has few steps, counted from its own start."""
GAME_PREFIX, FACTOR_PREFIX = "game ", "factor "
"""Beginnings of the names of columns that a result file names itself."""
PANELS_PER_PAGE = 20


@dataclass(frozen=True, eq=False)
class PlotTable:
    """The rows that are drawn, of one source or of both."""

    rows: pd.DataFrame
    """One column per variable, and `source`."""
    spaces: dict[str, NDArray[np.float32]]
    """Coordinates (N, ≥ 2) by space: pca, ica, embedding."""
    action_names: tuple[str, ...]
    num_clusters: int
    num_components: int
    """Independent components."""
    colour_limits: dict[str, tuple[float, float]]
    """Ends of the colour scale by continuous variable, the same for both sources (but for
    `OWN_SCALE`), so that their figures can be compared by eye."""
    num_dynamics_clusters: int = 0
    """Clusters found with changes from step to step included; 0 where there are none."""
    source_names: tuple[str, ...] = SOURCES
    game: tuple[Variable, ...] = ()
    """The game's own variables, known of real rollouts."""
    factors: tuple[Variable, ...] = ()
    """Factors of the non-negative factorisation."""
    num_decisions: tuple[int, ...] = ()
    """Real and simulated rows of the result file up to the end, drawn or not."""
    num_episodes: tuple[int, ...] = ()
    """Real episodes and simulated samples that these are of."""
    layout_trust: str = ""
    """How far the layout can be believed, for titles."""

    def of_source(self, source: str) -> "PlotTable":
        """Only the rows of `real` or of `simulated` rollouts."""
        keep = (self.rows["source"] == SOURCES.index(source)).to_numpy()
        spaces = {name: coordinates[keep] for name, coordinates in self.spaces.items()}
        rows = self.rows.loc[keep]
        own = colour_limits(rows, [v for v in VARIABLES if v.name in OWN_SCALE and v.name in rows])
        limits = self.colour_limits | own
        return replace(self, rows=rows, spaces=spaces, colour_limits=limits)

    @property
    def has_simulated(self) -> bool:
        """Whether any row is simulated."""
        return bool((self.rows["source"] == 1).any())

    def num_categories(self, variable: str) -> int:
        """How many categories there are, so that one has the same colour in every figure."""
        counts = {
            "cluster": self.num_clusters,
            "cluster_dynamics": self.num_dynamics_clusters,
            "strongest_component": self.num_components,
            "strongest_factor": len(self.factors),
            **dict.fromkeys(("done", "ever_done", "source"), 2),
        }
        if variable.startswith(GAME_PREFIX):
            return 2
        return counts.get(variable, len(self.action_names))

    def category_name(self, variable: str, category: int) -> str:
        """What a category is called."""
        if variable in ("action", "greedy_action") and category < len(self.action_names):
            return f"{category} {self.action_names[category]}"
        if variable == "source":
            return self.source_names[category]
        is_question = variable in ("done", "ever_done") or variable.startswith(GAME_PREFIX)
        return ("no", "yes")[category] if is_question else str(category)


def plot_hidden_analysis(config: PlottingConfig, report: StageReport) -> list[Path]:
    """Draw all figures and a contact sheet, and videos if wanted; returns the PNGs.

    Raises:
        UserError: no result file, a foreign one, an output folder that cannot be written, or
            videos of spaces that have no three axes.
    """
    require_at_least(config, "max_points", "num_trajectories", "clusters_per_page", "dpi")
    require_at_least(config, "num_rotation_views", least=0)
    folder = require_writable_folder(config.output_dir, "--output_dir")
    with (
        read_results(config.input_dir / HIDDEN_ANALYSIS_NAME, "hidden_analysis") as dataset,
        figure_text(),
    ):
        table = read_plot_table(dataset, config.max_points, config.seed)
        solid_spaces = _solid_spaces(table, config) if config.num_rotation_views else []
        pictures = save_figures(_figures(dataset, table, config), folder, config.dpi, report)
        if solid_spaces:
            _write_rotations(table.of_source("real"), solid_spaces, folder / "rotations", config)
            report.outputs.append(str(folder / "rotations"))
        return pictures


def _solid_spaces(table: PlotTable, config: PlottingConfig) -> list[str]:
    """Those of the spaces to draw that have three axes; raises `UserError` where none has."""
    solid = [name for name, places in table.spaces.items() if places.shape[1] >= 3]
    chosen = [space for space in config.spaces if space in solid]
    if not chosen:
        raise UserError(
            f"--num_rotation_views {config.num_rotation_views}: none of --spaces "
            f"{' '.join(config.spaces)} has three axes; in the result file these have: "
            f"{' '.join(solid) or 'none'}"
        )
    return chosen


def _write_rotations(
    real: PlotTable, spaces: Sequence[str], folder: Path, config: PlottingConfig
) -> None:
    """Write `folder`/SPACE_VARIABLE.mp4 of each space and variable."""
    drawn = [(space, variable) for space in spaces for variable in _known_variables(real)]
    with Progress(len(drawn) * config.num_rotation_views, "view") as progress:
        for space, variable in drawn:
            path = folder / f"{space}_{variable.name}.mp4"
            figure = draw_solid(real, space, variable)
            write_rotation(path, figure, config.num_rotation_views, config.dpi, progress)


def _figures(
    dataset: xr.Dataset, table: PlotTable, config: PlottingConfig
) -> Iterator[tuple[str, Figure]]:
    spaces = [space for space in config.spaces if space in table.spaces]
    real = table.of_source("real")
    yield "explained_variance", draw_explained_variance(dataset, "Hidden states")
    for space in spaces:
        yield f"{space}_variables_real", draw_variables(real, space, "real")
        yield from _pages(
            f"{space}_game",
            real,
            space,
            real.game,
            "the game's own variables, grey where there are none",
        )
        yield from _pages(f"{space}_factors", real, space, real.factors, "each NMF factor")
    if table.has_simulated:
        yield "overlap", draw_overlap(table)
        simulated = table.of_source("simulated")
        for space in spaces:
            figure = draw_variables(simulated, space, "simulated")
            yield f"{space}_variables_simulated", figure
    best = "embedding" if "embedding" in table.spaces else "pca"
    what = f"Real episodes through hidden-state space, over {tell_rows(real, 'real')} in grey"
    for space in spaces:
        paths = read_trajectories(dataset, space, config.num_trajectories, config.seed)
        yield f"{space}_trajectories", draw_trajectories(real, space, paths, what, "episode")
    known = [tell_rows(real, "real"), tell_stability(dataset.attrs, "levels")]
    what = "\n".join(filter(None, known))
    for start in range(0, table.num_clusters, config.clusters_per_page):
        clusters = range(start, min(start + config.clusters_per_page, table.num_clusters))
        yield f"clusters_{start:03d}", draw_clusters(real, best, clusters, what)


def _pages(
    name: str, table: PlotTable, space: str, variables: Sequence[Variable], what: str
) -> Iterator[tuple[str, Figure]]:
    """Scatters of real rows by many variables, some on each page."""
    for start in range(0, len(variables), PANELS_PER_PAGE):
        page = variables[start : start + PANELS_PER_PAGE]
        title = (
            f"Hidden states of real rollouts by {what} ({start + 1} to {start + len(page)} of "
            f"{len(variables)}), {tell_rows(table, 'real')}"
        )
        yield f"{name}_{start:03d}", draw_coloured(table, space, page, title)


def read_plot_table(dataset: xr.Dataset, max_points: int, seed: int) -> PlotTable:
    """Choose the rows to draw, at most `max_points` of each source, and read them.

    What a sample does after the end that is predicted for it is not drawn.

    Args:
        dataset: the open result file.
        max_points: limit per source.
        seed: chooses the rows.
    """
    is_over = ends_before(dataset) > 0
    rng = np.random.default_rng(seed)
    of_sources = [
        np.flatnonzero((dataset["source"].values == code) & ~is_over)
        for code in range(len(SOURCES))
    ]
    chosen = [
        rows if len(rows) <= max_points else rng.choice(rows, max_points, False)
        for rows in of_sources
    ]
    # A random order keeps late rows from hiding early ones.
    rows = rng.permutation(np.concatenate(chosen))
    order = np.argsort(rows)
    picked = dataset.isel(row=rows[order])
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    frame = pd.DataFrame(
        {
            name: picked[name].values[back]
            for name in ("source", *(v.name for v in VARIABLES))
            if name in picked
        }
    )
    spaces = {
        name: picked[name].isel({picked[name].dims[1]: slice(SHOWN_COMPONENTS)}).values[back]
        for name in AXIS_NAMES
        if name in picked
    }
    frame["strongest_component"] = np.abs(picked["ica"].values[back]).argmax(axis=1)
    factors, game = _add_factors(frame, picked, back), _add_game(frame, picked, back)
    frame["episode_return"] = episode_returns(dataset)[rows]
    names = tuple(str(dataset.attrs["action_names"]).split())
    num_clusters, num_components = int(dataset.attrs["num_clusters"]), picked["ica"].shape[1]
    limits = colour_limits(frame, (*VARIABLES, *factors, *game))
    return PlotTable(
        frame, spaces, names, num_clusters, num_components, limits, game=game, factors=factors,
        num_decisions=tuple(len(rows) for rows in of_sources),
        num_episodes=tuple(len(np.unique(dataset["episode_index"].values[r])) for r in of_sources),
        layout_trust=tell_trustworthiness(dataset.attrs),
    )  # fmt: skip


def _add_factors(
    frame: pd.DataFrame, picked: xr.Dataset, back: NDArray[np.integer]
) -> tuple[Variable, ...]:
    """Add a column for each NMF factor, and for the strongest; none where there is no NMF."""
    if "nmf" not in picked:
        return ()
    values = picked["nmf"].values[back]
    # In units of each factor's deviation, as their scales mean nothing.
    scaled = values / np.maximum(values.std(axis=0), np.finfo(np.float32).tiny)
    frame["strongest_factor"] = scaled.argmax(axis=1)
    for index, column in enumerate(values.T):
        frame[f"{FACTOR_PREFIX}{index}"] = column
    return tuple(
        Variable(f"{FACTOR_PREFIX}{index}", f"NMF factor {index}")
        for index in range(values.shape[1])
    )


def _add_game(
    frame: pd.DataFrame, picked: xr.Dataset, back: NDArray[np.integer]
) -> tuple[Variable, ...]:
    """Add a column for each of the game's variables that takes more than one value."""
    if "game" not in picked:
        return ()
    variables = []
    names, units = picked["game_variable"].values, picked["game_unit"].values
    for name, unit, column in zip(names, units, picked["game"].values[back].T, strict=True):
        known = np.unique(column[np.isfinite(column)])
        if len(known) < 2:
            continue
        frame[f"{GAME_PREFIX}{name}"] = column
        is_binary = bool(np.isin(known, (0.0, 1.0)).all())
        label = str(name) if is_binary or unit == "1" else f"{name} ({unit})"
        variables.append(
            Variable(f"{GAME_PREFIX}{name}", label, "viridis", is_categorical=is_binary)
        )
    # Legends share the last columns where yes-or-no questions come last.
    return tuple(sorted(variables, key=lambda variable: variable.is_categorical))


def colour_limits(
    rows: pd.DataFrame, variables: Sequence[Variable] = VARIABLES
) -> dict[str, tuple[float, float]]:
    """Ends of each continuous variable's colour scale, wide enough for either source.

    A source asks for its 1 % and 99 % quantiles, so that a source of few rows counts as much as
    one of many, or for its extremes where those quantiles coincide.
    """
    limits = {}
    for variable in variables:
        if not variable.is_categorical:
            by_source = rows[rows[variable.name].notna()].groupby("source")[variable.name]
            ends = [_single_source_limits(values.to_numpy()) for _, values in by_source]
            lows, highs = zip(*ends, strict=True)
            limits[variable.name] = (min(lows), max(highs))
    return limits


def _single_source_limits(values: NDArray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.01, 0.99])
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)


def episode_returns(dataset: xr.Dataset) -> NDArray[np.float32]:
    """(row,) sum of rewards of the episode that each row belongs to, up to its end."""
    keys = [dataset["source"].values, dataset["episode_index"].values]
    rewards = pd.Series(np.where(ends_before(dataset) > 0, 0.0, dataset["reward"].values))
    return rewards.groupby(keys).transform("sum").to_numpy(np.float32)


def draw_variables(table: PlotTable, space: str, source: str) -> Figure:
    """Scatter of one space, one panel per variable, each with its own colour bar or legend.

    A continuous variable that has one value only has no panel.
    """
    title = f"Hidden states of {source} rollouts, {tell_rows(table, source)}"
    known = _known_variables(table)
    if source == "simulated":
        known = [replace(v, label=v.label.replace("episode", "sample")) for v in known]
    return draw_coloured(table, space, known, title)


def _known_variables(table: PlotTable) -> list[Variable]:
    return [
        variable
        for variable in VARIABLES
        if variable.name in table.rows
        and (variable.is_categorical or table.rows[variable.name].nunique() > 1)
    ]


def draw_solid(real: PlotTable, space: str, variable: Variable) -> Figure:
    """Scatter of the first three axes of a space, coloured as in the flat figures of `variable`.

    What is nearer to the eye lies on top, whatever is drawn last in the flat figures.
    """
    figure = Figure(figsize=SOLID_SIZE, layout="constrained")
    axis = figure.add_subplot(projection="3d")
    axis.set_box_aspect(None, zoom=SOLID_ZOOM)  # type: ignore[arg-type]
    _draw_variable(axis, real, space, variable)
    for single in (axis.xaxis, axis.yaxis, axis.zaxis):
        single.labelpad = SOLID_LABEL_PAD
    beyond = _frame_all([axis], real, space)
    figure.suptitle(f"Hidden states of real rollouts,\n{tell_rows(real, 'real')}{beyond}")
    return figure


def tell_rows(table: PlotTable, source: str) -> str:
    """How many decisions are drawn, of how many that there are, in how many episodes."""
    code = SOURCES.index(source)
    unit = {"real": "episodes", "simulated": "samples up to their ends"}[source]
    return (
        f"{len(table.rows):,} of {table.num_decisions[code]:,} decisions of "
        f"{table.num_episodes[code]:,} {unit}"
    )


def draw_coloured(
    table: PlotTable, space: str, variables: Sequence[Variable], title: str
) -> Figure:
    """Scatter of one space, coloured by each of some variables."""
    figure, axes = _grid(len(variables), panel_width=3.6)
    for axis, variable in zip(axes, variables, strict=True):
        _draw_variable(axis, table, space, variable)
    if any(v.is_categorical or _is_nearly_constant(table, v) for v in variables):
        title += "; the rarer a category or value is, the further on top"
    figure.suptitle(title + _frame_all(axes, table, space))
    return figure


def _is_nearly_constant(table: PlotTable, variable: Variable) -> bool:
    low, high = table.colour_limits[variable.name]
    values = table.rows[variable.name].dropna()
    is_near = (values - values.median()).abs() <= NEAR_SPAN * (high - low)
    return bool(is_near.mean() >= MANY_ROWS)


def _frame_all(axes: Sequence[Axes], table: PlotTable, space: str) -> str:
    """Give all panels the same robust limits; returns words on the points beyond them and on the
    trust in the layout."""
    outside = [frame_clouds(axis, [table.spaces[space]]) for axis in axes]
    beyond = f"; {outside[0]:,} beyond the axes" if outside and outside[0] else ""
    has_trust = space == "embedding" and table.layout_trust
    return f"{beyond}\n{table.layout_trust}" if has_trust else beyond


def _draw_variable(axis: Axes, table: PlotTable, space: str, variable: Variable) -> None:
    values = table.rows[variable.name].to_numpy()
    is_known = np.isfinite(values)
    if not is_known.all():
        _scatter(axis, table.spaces[space][~is_known], c=BACKGROUND)
        known = {name: places[is_known] for name, places in table.spaces.items()}
        table, values = replace(table, spaces=known), values[is_known]
    if variable.is_categorical:
        _draw_categories(axis, table, space, variable, values.astype(int))
    else:
        _draw_continuous(axis, table, space, variable, values)
    _label(axis, space, f"{variable.label} (n = {len(values):,})")


def _draw_continuous(
    axis: Axes, table: PlotTable, space: str, variable: Variable, values: NDArray
) -> None:
    low, high = table.colour_limits[variable.name]
    # Rows are in a random order: with either end on top, what is between would be hidden. But few
    # rewards among many zeros would vanish.
    order = np.arange(len(values))
    if _is_nearly_constant(table, variable):
        order = np.argsort(np.abs(values - np.median(values)), kind="stable")
    points = _scatter(
        axis, table.spaces[space][order], c=values[order], cmap=variable.colour_map,
        vmin=low, vmax=high,
    )  # fmt: skip
    beyond = values.min() < low, values.max() > high
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond)
    axis.figure.colorbar(points, cax=_beside(axis), extend=extend or "neither")


def _draw_categories(
    axis: Axes, table: PlotTable, space: str, variable: Variable, values: NDArray[np.int64]
) -> None:
    present, counts = np.unique(values, return_counts=True)
    num_categories = table.num_categories(variable.name)
    colours = category_colours(num_categories)
    common = counts[np.searchsorted(present, values)]
    order = np.argsort(-common, kind="stable")
    norm = BoundaryNorm(np.arange(num_categories + 1) - 0.5, num_categories)
    points = _scatter(axis, table.spaces[space][order], c=values[order], cmap=colours, norm=norm)
    if len(present) > MAX_LEGEND_ENTRIES:
        ticks = np.arange(0, num_categories, -(-num_categories // MAX_TICKS))
        axis.figure.colorbar(points, cax=_beside(axis), ticks=ticks)
        return
    labels = [
        f"{table.category_name(variable.name, int(c))} ({n:,})"
        for c, n in zip(present, counts, strict=True)
    ]
    handles = [Line2D([], [], marker="o", ls="", ms=4, color=colours(int(c))) for c in present]
    axis.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=6, frameon=False,
        handletextpad=0.1, labelspacing=0.25, borderaxespad=0.2,
    )  # fmt: skip


def _beside(axis: Axes) -> Axes:
    """Where a colour bar stays at its panel, however wide the legends of its column are."""
    return axis.inset_axes((1.02, 0.0, 0.05, 1.0))


def category_colours(num_categories: int) -> ListedColormap:
    """Distinct colours: Okabe and Ito's few, else well spaced hues at alternating lightness.

    From three categories on none is grey, as what is not highlighted is.
    """
    if num_categories <= 2:
        return ListedColormap(["0.7", "#d55e00"][:num_categories])
    if num_categories <= len(OKABE_ITO):
        return ListedColormap(list(OKABE_ITO[:num_categories]))
    paired = [colour for colour in mpl.colormaps["tab20"].colors if len(set(colour)) > 1]  # type: ignore[attr-defined]
    if num_categories <= len(paired):
        return ListedColormap(paired[:num_categories])
    return ListedColormap(spaced_hues(np.arange(num_categories)))


def draw_overlap(table: PlotTable) -> Figure:
    """Real and simulated rows on the same axes, for pairs of leading components."""
    panels = [
        (space, pair)
        for space in ("pca", "ica", "embedding")
        if space in table.spaces
        for pair in _component_pairs(table.spaces[space])
    ]
    figure, axes = _grid(len(panels), panel_width=3.0)
    real, simulated = table.of_source("real"), table.of_source("simulated")
    colours = np.array([REAL_COLOUR, SIMULATED_COLOUR])[table.rows["source"].to_numpy()]
    for axis, (space, pair) in zip(axes, panels, strict=True):
        # The rows are in a random order, so that neither source hides the other.
        _scatter(axis, table.spaces[space][:, pair], c=colours, alpha=0.5)
        outside = frame_clouds(axis, [t.spaces[space][:, pair] for t in (real, simulated)])
        _label(axis, space, f"{outside:,} beyond the axes" if outside else "", pair)
    handles = [
        Line2D([], [], marker="o", ls="", color=colour, label=f"{name}: {tell_rows(rows, name)}")
        for name, rows, colour in zip(
            SOURCES, (real, simulated), (REAL_COLOUR, SIMULATED_COLOUR), strict=True
        )
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle("Hidden states of real and simulated rollouts on the axes of the real ones")
    return figure


def _component_pairs(coordinates: NDArray[np.float32]) -> list[list[int]]:
    return [[i, i + 1] for i in range(0, coordinates.shape[1] - 1, 2)]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """An episode's way through a space."""

    episode_id: int
    coordinates: NDArray[np.float32]
    """(T, 2)"""


def read_trajectories(dataset: xr.Dataset, space: str, wanted: int, seed: int) -> list[Trajectory]:
    """Ways of randomly chosen real episodes."""
    is_real = dataset["source"].values == 0
    episode = dataset["episode_index"].values[is_real]
    episodes = np.random.default_rng(seed).permutation(np.unique(episode))[:wanted]
    trajectories = []
    for index in episodes:
        first, last = np.searchsorted(episode, [index, index + 1])
        rows = dataset.isel(row=slice(int(first), int(last)))
        coordinates = rows[space].values[:, :2]
        trajectories.append(Trajectory(int(rows["episode_id"][0]), coordinates))
    return trajectories


def draw_trajectories(
    table: PlotTable,
    space: str,
    trajectories: Sequence[Trajectory],
    what: str,
    unit: str,
) -> Figure:
    """One panel per episode: its decisions as arrows over all rows in grey.

    Args:
        table: the rows in grey.
        space: to draw in.
        trajectories: the episodes.
        what: they are, and what is in grey, for the title.
        unit: what one of them is called.
    """
    figure, axes = _grid(len(trajectories), panel_width=3.0)
    for axis, trajectory in zip(axes, trajectories, strict=True):
        _scatter(axis, table.spaces[space], c=BACKGROUND)
        points = trajectory.coordinates
        moves = np.diff(points, axis=0)
        if len(moves):
            arrows = axis.quiver(
                *points[:-1].T, *moves.T, np.arange(len(moves)), cmap="plasma", angles="xy",
                scale_units="xy", scale=1, width=0.006, zorder=3,
            )  # fmt: skip
            axis.figure.colorbar(arrows, cax=_beside(axis), label="step")
        axis.plot(*points[0], marker="o", color="black", ms=4, zorder=4)
        _label(axis, space, f"{unit} {trajectory.episode_id} ({len(points)} decisions)")
    beyond = _frame_all(axes, table, space)
    figure.suptitle(f"{what}; the dot is the first decision{beyond}")
    return figure


def draw_clusters(table: PlotTable, space: str, clusters: Sequence[int], what: str) -> Figure:
    """One panel per cluster, its rows over all others in grey."""
    figure, axes = _grid(len(clusters), panel_width=2.6)
    labels = table.rows["cluster"].to_numpy()
    colours = category_colours(table.num_clusters)
    for axis, cluster in zip(axes, clusters, strict=True):
        inside = labels == cluster
        _scatter(axis, table.spaces[space][~inside], c=BACKGROUND)
        _scatter(axis, table.spaces[space][inside], c=[colours(cluster)])
        share = inside.mean()
        _label(axis, space, f"cluster {cluster} (n = {inside.sum():,}, {share:.1%})")
    beyond = _frame_all(axes, table, space)
    figure.suptitle(
        f"Clusters {clusters[0]} to {clusters[-1]} of {table.num_clusters}, {what}{beyond}"
    )
    return figure


def draw_explained_variance(dataset: xr.Dataset, what: str) -> Figure:
    """Share of the total variance by component, and its cumulative sum with the 95% line.

    Args:
        dataset: an open result file.
        what: was decomposed, for the title.
    """
    ratio = dataset["explained_variance_ratio"].values
    count = int(dataset.attrs["num_components_95"])
    components = np.arange(len(ratio))
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    single, cumulative = figure.subplots(1, 2)
    single.bar(components, 100 * ratio, width=1.0, color=REAL_COLOUR)
    single.set(xlabel="principal component", ylabel="% of total variance")
    cumulative.bar(components + 1, 100 * np.cumsum(ratio), width=1.0, color=REAL_COLOUR)
    cumulative.axhline(95, color="black", lw=0.8, ls="--")
    cumulative.axvline(count, color=SIMULATED_COLOUR, lw=1)
    cumulative.set(xlabel="number of principal components", ylabel="cumulative % of total variance")
    cumulative.set_title(f"{count} components hold 95%")
    figure.suptitle(f"{what}: explained variance of {_tell_fitted(dataset)}")
    return figure


def _tell_fitted(dataset: xr.Dataset) -> str:
    """How many rows components were fitted on, of how many episodes or samples."""
    is_fitted = dataset["source"].values == 0
    if "fit_role" not in dataset:
        samples = np.unique(dataset["sample_id"].values[is_fitted])
        return f"{is_fitted.sum():,} vectors of {len(samples):,} samples"
    roles = str(dataset["fit_role"].attrs["flag_meanings"]).split()
    is_fitted = dataset["fit_role"].values == roles.index("inlier")
    episodes = np.unique(dataset["episode_index"].values[is_fitted])
    return f"{is_fitted.sum():,} decisions of {len(episodes):,} real episodes"


def _grid(num_panels: int, panel_width: float) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, num_panels)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(panel_width * columns, 2.5 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[num_panels:]:
        unused.set_axis_off()
    return figure, list(axes[:num_panels])


def _scatter(axis: Axes, points: NDArray, **style: object) -> PathCollection:
    size = float(np.clip(25_000 / max(len(points), 1), 0.3, 9.0))
    letters = axis_letters(axis)
    if letters == "xyz":
        # Paler colours far away would not be those of the legend.
        style |= {"depthshade": False, "axlim_clip": True}
    return axis.scatter(
        *points[:, : len(letters)].T, s=size, linewidths=0, rasterized=True, **style  # type: ignore[arg-type]
    )  # fmt: skip


def _label(axis: Axes, space: str, title: str, components: Sequence[int] = (0, 1, 2)) -> None:
    # Counted from 0 as in tables, in the panel and where commands take directions.
    for letter, component in zip(axis_letters(axis), components, strict=False):
        name = AXIS_NAMES[space].format(component)
        axis.set(**{f"{letter}label": name, f"{letter}ticks": []})
    axis.set_title(title)
