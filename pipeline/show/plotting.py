"""What all plots share: one style, colors that color-blind readers can tell apart, and PNG files of the same bytes."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import artifacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, distinguishable with any common color blindness; their yellow is too pale for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
LINE_STYLES = ("-", "--", ":", "-.")
GREY = "#8A8A8A"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.dpi": 130,
    # Legends stand beside the axes; names of any length must fit.
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.12,
}


def legible(text: str) -> str:
    r"""Return text as the plots' font can show it: composed Unicode, what it has no letter for escaped, as in \uace0.

    Another font for those letters would be one of the machine's, and the bytes of a plot the machine's too.
    """
    known = glyphs()
    composed = unicodedata.normalize("NFC", text)
    return "".join(
        letter if letter.isprintable() and ord(letter) in known else letter.encode("unicode_escape").decode()
        for letter in composed
    )


def font_file() -> Path:
    """Return the font of all plots, which Matplotlib ships."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.cache
def glyphs() -> frozenset[int]:
    """Return the code points that the plots' font has letters for."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font_file())).get_charmap())


@contextmanager
def figure_file(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure and save what was drawn; no global state of pyplot, no user's matplotlibrc, no dates."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with artifacts.whole_file(path) as temporary:
            # Matplotlib writes its version unless told not to.
            figure.savefig(temporary, format="png", metadata={"Software": None})


def epoch_axis(axes: Axes, epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", xlim=(0.5, epochs + 0.5))


def mark_learning_rates(axes: Axes, rates: Sequence[float]) -> None:
    """Write the learning rate above the epoch it starts at, with a line between the epochs of two rates."""
    for epoch, rate in enumerate(rates):
        if epoch and rate == rates[epoch - 1]:
            continue
        if epoch:
            axes.axvline(epoch + 0.5, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(
            f"{'' if epoch else 'learning rate '}{rate:.2g}",
            (epoch + 0.6, 1),
            fontsize=7,
            color="#666666",
            xycoords=("data", "axes fraction"),
            ha="left",
            va="bottom",
            annotation_clip=False,
        )
