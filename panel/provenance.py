"""Where a result file comes from, read from its own attributes."""

import json
from typing import Any

import xarray as xr

from experiment.errors import UserError


def result_provenance(results: xr.Dataset) -> dict[str, Any]:
    """The provenance that `analysis.results.write_results` records; fields as in
    `experiment.provenance.Provenance`.

    Raises:
        UserError: it is not a JSON object.
    """
    provenance = json.loads(results.attrs.get("provenance", "{}"))
    if not isinstance(provenance, dict):
        raise UserError("provenance: a JSON object expected")
    return provenance
