"""Counts that are asked for, and how many there are."""


def at_most_available(wanted: int, available: int, flag: str) -> int:
    """The smaller of both numbers; where it is not the wanted one, a line says so."""
    if wanted > available:
        print(f"{flag} {wanted}: only {available} exist, all of them are used")
    return min(wanted, available)
