"""What every picture shares: its ink, its bare axes, and how it becomes PNG bytes."""

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#333333"
DOTS_PER_INCH = 150


def tidy(panel: "Axes") -> None:
    panel.tick_params(labelsize=9, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)


def as_png(figure: "Figure") -> bytes:
    """Return the figure's PNG; a character that the font lacks is drawn as a box, without a warning."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
