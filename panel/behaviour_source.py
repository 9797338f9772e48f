"""Clusters of the joint dynamics of agent and environment as the page sees them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from panel.analysis_source import AnalysisSource
from panel.rollout_source import MAX_FRAME_BYTES_PER_REQUEST, UnknownItemError

STABILITY = {
    "mean": "cluster_stability_adjusted_rand",
    "deviation": "cluster_stability_deviation",
    "control": "cluster_stability_control",
}
"""Attributes of the file that tell how well clusters of halves of the samples agree."""


class BehaviourSource(AnalysisSource):
    """Holds one `behaviour_clusters.nc`: its points, and its clusters."""

    REQUIRED = ("sample", "sample_cluster", "purity", "length", "cluster", "action", "exemplar")

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue; `stability` is None where it was not measured."""
        attributes = self._results.attrs
        is_measured = all(name in attributes for name in STABILITY.values())
        stability = {word: float(attributes[name]) for word, name in STABILITY.items()}
        return {
            **super().describe(),
            "dataset_hash": self.hash_of_input.get("generated_dataset"),
            "behaviours": self._behaviours(),
            "action_names": str(attributes["action_names"]).split(),
            "label_steps": int(attributes["label_steps"]),
            "feature_lags": str(attributes["feature_lags"]).split(),
            "num_samples": int(self._results.sizes["sample"]),
            "stability": stability if is_measured else None,
        }

    def samples(self) -> dict[str, NDArray]:
        """(N,) `sample_id`, `behaviour` (−1 for none), `purity` and `length` of each sample, and
        (C, A) `action_share` of each cluster."""
        return {
            "sample_id": self._read("sample"),
            "behaviour": self._read("sample_cluster"),
            "purity": self._read("purity"),
            "length": self._read("length"),
            "action_share": self._read("action_share"),
        }

    def exemplar(self, behaviour: int, position: int) -> dict[str, NDArray]:
        """`frames` (T, H, W, C) of one sample near the centre of a cluster, without those after its
        end.

        Raises:
            UnknownItemError: there is no such cluster or exemplar.
        """
        ids = self._read("exemplar")
        if not (behaviour < len(ids) and position < ids.shape[1] and ids[behaviour, position] >= 0):
            raise UnknownItemError(f"behaviour {behaviour} has no exemplar {position}")
        sample = np.flatnonzero(self._read("sample") == ids[behaviour, position])[:1]
        length = int(self._read("length")[sample].max(initial=1))
        shape = self._results["exemplar_frame"].shape[2:]
        if int(np.prod(shape)) > MAX_FRAME_BYTES_PER_REQUEST:
            raise UnknownItemError("the frames of an exemplar are too many for one answer")
        frames = self._read(
            "exemplar_frame", behaviour=behaviour, exemplar=position, step=slice(length)
        )
        return {"frames": frames}

    def _behaviours(self) -> list[dict[str, Any]]:
        label, cluster = self._read("sample_cluster"), self._read("cluster")
        purity, exemplars = self._read("purity"), self._read("exemplar")
        described = []
        for behaviour, ids in enumerate(exemplars):
            own = purity[label == behaviour]
            described.append(
                {
                    "num_samples": len(own),
                    "num_steps": int((cluster == behaviour).sum()),
                    "purity": float(own.mean()) if len(own) else None,
                    "exemplars": [int(sample) for sample in ids if sample >= 0],
                }
            )
        return described
