"""Which episodes are independent of each other: the unit of every bootstrap, permutation and split.

Real episodes of one level are alike, and so are simulated samples whose windows come from one real
episode. To resample or to shuffle them one by one would count the same thing several times, and
make anything look more certain than it is.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rollouts.store import RolloutDataset

_LEVEL, _SOURCE, _OWN, _WAY = range(4)
"""What a unit is; part of its number, so that units of different kinds never coincide."""


def levels_of_episodes(dataset: RolloutDataset) -> NDArray[np.int64]:
    """(num_episodes,) level seeds; episode ids where the environment has no levels."""
    seeds = dataset.episodes["level_seed"].to_numpy(np.int64)
    return np.where(seeds < 0, dataset.episodes["episode_id"].to_numpy(np.int64), seeds)


def independent_units(
    dataset: RolloutDataset, sources: RolloutDataset | None = None
) -> NDArray[np.int64]:
    """(num_episodes,) unit of each episode: episodes of one unit depend on each other.

    A real episode belongs to its level. A sample, or a branch without a level, belongs to the real
    episode that its window is from; samples on one way between two windows belong together, and so
    do copies of one start that take different actions. All others, samples of random latents among
    them, are units of their own. Numbers are not negative, and do not depend on which other
    episodes there are.

    Args:
        dataset: real or simulated rollouts.
        sources: real rollouts; samples whose windows they gave belong to the units that these
            episodes have there.
    """
    table = dataset.episodes
    level, source, own = (
        table[name].to_numpy(np.int64) for name in ("level_seed", "source_episode_id", "episode_id")
    )
    is_on_way = (table["initialisation"] == "interpolated").to_numpy()
    recorded_with = dataset.metadata.provenance.get("config", {})
    points, copies = (
        int(recorded_with.get(name, 1)) for name in ("interpolation_points", "copies_per_start")
    )
    start = own // copies
    unit = np.select(
        [level >= 0, source >= 0, is_on_way],
        [4 * level + _LEVEL, 4 * source + _SOURCE, 4 * (start // points) + _WAY],
        4 * start + _OWN,
    )
    if sources is None or not _is_source(sources, dataset):
        return unit
    of_source = dict(
        zip(sources.episodes["episode_id"], independent_units(sources).tolist(), strict=True)
    )
    return np.array(
        [of_source.get(s, u) for s, u in zip(source.tolist(), unit.tolist(), strict=True)],
        np.int64,
    )


def units_of_episodes(
    dataset: RolloutDataset, episode_ids: NDArray[np.integer]
) -> NDArray[np.int64]:
    """(N,) ids of episodes, in any order → (N,) their units."""
    known = pd.Series(independent_units(dataset), dataset.episodes["episode_id"].to_numpy())
    return known.loc[episode_ids].to_numpy(np.int64)


def _is_source(sources: RolloutDataset, dataset: RolloutDataset) -> bool:
    return dataset.metadata.provenance.get("inputs", {}).get("dataset") == sources.hash


def permute_units(unit: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int64]:
    """(N,) units of N members → (N,) for each member the position of another that takes its place.

    Units trade places as wholes, so what members of a unit share they still share. Where the
    newcomer has fewer members than the place, they are repeated in turn; where it has more, the
    last ones are left out.
    """
    _, number, size = np.unique(unit, return_inverse=True, return_counts=True)
    in_order = np.argsort(number, kind="stable")
    first = np.cumsum(size) - size
    place = np.empty(len(number), np.int64)
    place[in_order] = np.arange(len(number)) - np.repeat(first, size)
    newcomer = rng.permutation(len(size))[number]
    return in_order[first[newcomer] + place % size[newcomer]]
