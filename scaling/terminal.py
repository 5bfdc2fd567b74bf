"""Where tables are printed."""

from rich.console import Console


def console() -> Console:
    """As wide as the terminal; a file or a pipe gets tables as wide as they need to be, for no number to be cut off."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=400)
