"""How far simulated samples can be trusted, as the page sees it: one number per sample."""

from typing import Any

from numpy.typing import NDArray

from panel.result_source import ResultSource


class TrustSource(ResultSource):
    """Holds one `sample_trust.nc`."""

    REQUIRED = ("sample", "trust")

    @property
    def samples_identity(self) -> str:
        """Identity of the samples; see `generative.recording_identity`."""
        return str(self.hash_of_input.get("samples", ""))

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        return {"hash": self.content_hash, "num_samples": int(self._results.sizes["sample"])}

    def scores(self) -> dict[str, NDArray]:
        """(N,) `sample_id`, and `trust` from 0 to 1, NaN without a real counterpart."""
        return {"sample_id": self._read("sample"), "trust": self._read("trust")}
