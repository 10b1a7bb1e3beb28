"""One look for every figure: a Plotly template, a colour-blind-safe palette, colours with a fixed meaning.

`session.start` applies it, so notebooks never restyle a figure. Palette: Okabe and Ito, "Color Universal Design"
(2008), which stays apart for the common kinds of colour blindness; a dash or a marker is the second code.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLUE, VERMILION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, GREY, INK = "#E69F00", "#56B4E9", "#8A8A8A", "#222222"

PALETTE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, GREY)
"""The cycle for categories without a meaning of their own."""

COLOURS = {
    "truth": INK,
    "trained": BLUE,
    "second_seed": SKY,
    "random_decoder": ORANGE,
    "random_model": PINK,
    "pca": GREEN,
    "clean": BLUE,
    "corrupted": VERMILION,
    "patched": GREEN,
    "control": ORANGE,
    "baseline": GREY,
    "chance": GREY,
}
"""What a colour means, the same in every notebook. The values of one figure differ; chance is a grey line."""

DASHES = {
    "second_seed": "longdash",
    "control": "dash",
    "random_decoder": "dash",
    "random_model": "dashdot",
    "baseline": "dot",
    "chance": "dot",
}
"""The second code for the lines above that are not solid, for print, colour-blind readers and pale colours."""

SIGNED = "RdBu"
"""Colour scale for signed quantities: blue positive, red negative. Pin it with `zmid=0` and a symmetric range."""

SHARE = "Blues"
"""Colour scale for probabilities and attention. Fix it with `zmin=0, zmax=1`."""

TEMPLATE_NAME = "mi_utils"
CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
"""Plotly's own page options. Its share button uploads a figure's data, so it is off."""


def template() -> "go.layout.Template":
    """The Plotly template: white, light grid, large type, legend on top, 720 by 420 pixels."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": "#E6E6E6",
        "linecolor": GREY,
        "zerolinecolor": "#C8C8C8",
        "ticks": "outside",
        "tickcolor": GREY,
        "automargin": True,
        "title": {"standoff": 10},
    }
    layout = go.Layout(
        width=720,
        height=420,
        font={"family": "Helvetica, Arial, sans-serif", "size": 14, "color": INK},
        title={"x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 17}},
        margin={"l": 70, "r": 30, "t": 90, "b": 60},
        colorway=list(PALETTE),
        colorscale={"sequential": SHARE, "sequentialminus": SHARE, "diverging": SIGNED},
        paper_bgcolor="white",
        plot_bgcolor="white",
        xaxis=axis,
        yaxis=axis,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        hoverlabel={"font": {"family": "Menlo, Consolas, monospace", "size": 13}, "align": "left"},
        modebar={"remove": ["sendChartToCloud", "lasso2d", "select2d"]},
    )
    return go.layout.Template(layout=layout)


def apply() -> None:
    """Make the template the default of this process and switch Plotly's share button off in every renderer."""
    import plotly.io as pio

    pio.templates[TEMPLATE_NAME] = template()
    pio.templates.default = TEMPLATE_NAME
    for name in pio.renderers:
        renderer = pio.renderers[name]
        if hasattr(renderer, "config"):
            renderer.config = {**(renderer.config or {}), **CONFIG}
