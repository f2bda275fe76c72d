"""How figures look, and how they become PNG: readable sizes, colours that all tell apart.

Colours are those of Okabe and Ito (2008). Figures are made without pyplot, so there is no state
between them, and the Agg canvas draws them, so there need be no screen.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#000000", "#6B6B6B"
WIDTH = 10.0
"""Inches of a whole figure; a page shows it about that wide, so that points keep their size."""
DPI = 144
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": "#E3E3E3",
    "legend.fontsize": 10,
    "legend.frameon": False,
    "text.parse_math": False,  # a holder may be called $x$
}


def drawn(draw: Callable[[Figure], None], width: float, height: float) -> bytes:
    """A figure as PNG."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Names may be in any script; what the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(width, height), dpi=DPI)
        draw(figure)
        written = io.BytesIO()
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()
