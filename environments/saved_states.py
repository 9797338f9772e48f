"""Whether a saved state may be restored: over a wrong one, Procgen ends the whole process."""

from environments.procgen_state import OPTION_NAMES, StateFormatError, parse_state
from environments.protocol import EnvironmentSpec


def find_foreign(spec: EnvironmentSpec, state: bytes) -> str | None:
    """What in a saved state is not of the environment `spec`; None where nothing is.

    Only Procgen's states are looked into; the other environments refuse wrong ones themselves.
    """
    if spec.adapter != "procgen":
        return None
    try:
        header = parse_state(state).header
        found = {**header.options, "distribution_mode": header.distribution_mode}
    except (StateFormatError, KeyError) as error:
        return str(error)
    if header.game != spec.name:
        return f"it is of {header.game}, expected {spec.name}"
    for name in OPTION_NAMES:
        if name in spec.options and found[name] != spec.options[name]:
            return f"its {name} is {found[name]}, expected {spec.options[name]}"
    return None
