"""Requests drawn from the API's own description: every answer is one that it announces."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.medium

EXAMPLES_PER_OPERATION = 30


@pytest.fixture(scope="module")
def client(client_maker: Any, panel_data: Any, dynamics_data: Any, effects_data: Path) -> Any:
    """Items of every kind."""
    return client_maker(panel_data.folder, dynamics_data.folder, effects_data)


@pytest.fixture(scope="module")
def schema(client: Any) -> Any:
    headers = {"cookie": client.cookie}
    # The guard accepts loopback only; the test client calls itself `testserver`.
    return schemathesis.openapi.from_asgi(
        "/openapi.json", client.application, headers={**headers, "host": "127.0.0.1"}
    )


def real_ids(client: Any) -> list[str]:
    catalogue = client.json("/api/catalogue")
    lists = [entries for name, entries in catalogue.items() if name not in ("errors", "folders")]
    return sorted(
        {entry["id"] for entries in lists if isinstance(entries, list) for entry in entries}
    )


def test_schemathesis_finds_nothing(schema: Any, client: Any) -> None:
    ids = st.sampled_from(real_ids(client))
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 20
    for operation in operations:
        _check_operation(operation, ids, client.cookie)


def _check_operation(operation: Any, ids: st.SearchStrategy[str], cookie: str) -> None:
    @settings(
        max_examples=EXAMPLES_PER_OPERATION,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    )
    @given(case=operation.as_strategy(), item_id=ids, is_known=st.booleans())
    def check(case: Any, item_id: str, is_known: bool) -> None:
        # Ids drawn from the pattern would never meet an item.
        if is_known and "item_id" in case.path_parameters:
            case.path_parameters["item_id"] = item_id
        case.call_and_validate(headers={"cookie": cookie, "host": "127.0.0.1"})

    check()
