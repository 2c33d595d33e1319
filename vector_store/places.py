"""Where profiles lie: the user's own, and those that ship."""

from pathlib import Path

from platformdirs import user_data_path

SHIPPED = Path(__file__).parent / "shipped"


def default_root() -> Path:
    """Return where profiles lie if nobody says otherwise: the user's data directory."""
    return user_data_path("grainserve") / "profiles"
