"""What an agent or a simulator says of itself: its description or its card, as plain values."""

import json
from pathlib import Path
from typing import Any

from experiment.errors import UserError
from experiment.files import read_json
from panel.fingerprint import fingerprint

MAX_CARD_BYTES = 2**20


class CardSource:
    """Holds one `card.json`, `agent.json` or `simulator.json`."""

    def __init__(self, path: Path) -> None:
        self.content_hash = fingerprint(path)
        if path.stat().st_size > MAX_CARD_BYTES:
            raise UserError(f"{path.name}: larger than {MAX_CARD_BYTES} bytes")
        self._content = read_json(path)
        if not isinstance(self._content, dict):
            raise UserError(f"{path.name}: a JSON object expected")
        # Python reads NaN and Infinity, which no browser does.
        json.dumps(self._content, allow_nan=False)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the file says of its making; empty where it says nothing."""
        return self._content.get("provenance", {})

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue; the content without the provenance, which is long."""
        content = {key: value for key, value in self._content.items() if key != "provenance"}
        # Agents are named by this hash in whatever was made with them.
        return {"hash": str(content.get("hash", self.content_hash)), "content": content}
