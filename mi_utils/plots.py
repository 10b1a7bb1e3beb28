"""One function per picture: numbers in, a Plotly figure out. The look is set once, in `theme`."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from IPython.display import HTML, DisplayHandle
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from mi_utils.evaluation import Example
from mi_utils.theme import COLOURS, DASHES, SHARE, SIGNED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Growing:
    """A figure that is drawn again in place whenever it is called with newer data."""

    def __init__(self, draw: Callable[[pd.DataFrame], go.Figure]):
        self.draw, self.handle = draw, DisplayHandle()
        self.shown = False

    def __call__(self, data: pd.DataFrame) -> None:
        bundle = self.draw(data)._repr_mimebundle_()  # shown by itself, a Plotly figure cannot be replaced
        (self.handle.update if self.shown else self.handle.display)(bundle, raw=True)
        self.shown = True


def training_curves(curves: pd.DataFrame, k: float) -> go.Figure:
    """FVU, L0 and the share of dead latents over the tokens seen, as `training.train` returns them."""
    figure = make_subplots(rows=1, cols=3, subplot_titles=("FVU on the batch", "L0 on the batch", "dead latents"))
    for column, name in enumerate(("fvu", "l0", "dead_share"), start=1):
        line = go.Scatter(x=curves.tokens, y=curves[name], mode="lines", line_color=COLOURS["trained"])
        figure.add_trace(line, row=1, col=column)
    figure.add_hline(y=k, line_dash="dot", line_color=COLOURS["chance"], annotation_text="k", row=1, col=2)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(range=[0, 1], col=1)
    figure.update_yaxes(tickformat=".0%", range=[0, max(0.1, 1.1 * curves.dead_share.max())], col=3)
    figure.update_xaxes(title="tokens seen", nticks=4)
    return figure.update_layout(width=980, height=320, showlegend=False, title="Training")


def recovery_matrix(cosines: Float[Tensor, "feature latent"], title: str) -> go.Figure:
    """Cosine of true features to decoder rows, latents sorted by feature: a perfect dictionary is a diagonal."""
    order = np.argsort(cosines.argmax(0).numpy(), kind="stable")
    heat = go.Heatmap(z=cosines.numpy()[:, order], zmin=-1, zmax=1, zmid=0, colorscale=SIGNED, colorbar_title="cosine")
    figure = go.Figure(heat)
    figure.update_yaxes(autorange="reversed", title="true feature")
    figure.update_xaxes(title="latent, sorted by nearest feature")
    return figure.update_layout(title=title, height=480)


def dots_with_intervals(table: pd.DataFrame, roles: Mapping[str, str], title: str, x_title: str) -> go.Figure:
    """A dot and its interval per row, from the columns `value`, `low` and `high`.

    Args:
        roles: for each row a key of the fixed colours.
    """
    figure = go.Figure()
    for name, row in table[::-1].iterrows():
        error = {"array": [row.high - row.value], "arrayminus": [row.value - row.low], "thickness": 2}
        marker = {"color": COLOURS[roles[name]], "size": 12}
        figure.add_trace(go.Scatter(x=[row.value], y=[name], error_x=error, mode="markers", marker=marker))
    figure.update_xaxes(title=x_title)
    return figure.update_layout(title=title, showlegend=False, height=180 + 40 * len(table))


def over_floor(table: pd.DataFrame, title: str, x_title: str) -> go.Figure:
    """A line per row from its `floor` to its `value`: what counts is the length."""
    figure, names = go.Figure(), list(table.index)
    for name, row in table.iterrows():
        line = {"color": COLOURS["trained"], "width": 4}
        ends = go.Scatter(x=[row.floor, row.value], y=[name, name], mode="lines", line=line, hoverinfo="skip")
        figure.add_trace(ends.update(showlegend=False))
    for column, role, symbol in (("floor", "control", "line-ns-open"), ("value", "trained", "circle")):
        marker = {"color": COLOURS[role], "size": 13, "symbol": symbol, "line_width": 3}
        figure.add_trace(go.Scatter(x=table[column], y=names, mode="markers", marker=marker, name=column))
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=x_title, rangemode="tozero")
    return figure.update_layout(title=title, height=190 + 34 * len(table))


def signed_grid(table: pd.DataFrame, halves: pd.DataFrame, title: str, label: str) -> go.Figure:
    """A cell per row and column, blue above 0 and red below; in each its value and half of its interval's width."""
    largest = float(np.nanmax(np.abs(table.to_numpy())))
    text = (table.map("{:+.2f}".format) + halves.map("<br>± {:.2f}".format)).where(table.notna(), "")
    columns = [_wrapped(name) for name in table]
    heat = go.Heatmap(z=table, x=columns, y=list(table.index), text=text, texttemplate="%{text}")
    heat.update(colorscale=SIGNED, zmin=-largest, zmax=largest, colorbar_title=label, textfont_size=15)
    figure = go.Figure(heat)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(side="top", tickangle=0)
    width, lines = min(max(720, 170 + 84 * len(columns)), 930), 1 + max(name.count("<br>") for name in columns)
    figure.update_layout(title=title, title_yref="container", title_y=0.97, title_yanchor="top", width=width)
    return figure.update_layout(margin_t=80 + 22 * lines, height=210 + 22 * lines + 56 * len(table))


def insertions(table: pd.DataFrame, title: str) -> go.Figure:
    """What inserting a latent changes, against its largest cosine; from `stitching.insertions`.

    Changes span many powers of ten on both sides of zero, so their signed square root is drawn.
    """
    root = np.sign(table.change) * np.sqrt(table.change.abs())
    figure = go.Figure()
    for name, role, chosen in (("helps", "trained", table.change < 0), ("repeats", "corrupted", table.change >= 0)):
        marker = {"color": COLOURS[role], "size": 5, "opacity": 0.4}
        dots = go.Scattergl(x=table.cosine[chosen], y=root[chosen], mode="markers", marker=marker, name=name)
        figure.add_trace(dots.update(text=[f"latent {latent}" for latent in table.index[chosen]]))
    far = float(np.abs(root).max())
    ticks = [tick for tick in (-1e-2, -1e-3, -1e-4, 0, 1e-4, 1e-3, 1e-2) if abs(tick) ** 0.5 <= 1.1 * far]
    figure.update_yaxes(
        title="change of the FVU",
        tickvals=[np.sign(tick) * abs(tick) ** 0.5 for tick in ticks],
        ticktext=[f"{tick:+g}" if tick else "0" for tick in ticks],
    )
    figure.update_xaxes(title="largest cosine to the small dictionary's rows", range=[0, 1])
    return figure.update_layout(title=title)


def slider_bars(tables: Mapping[str, pd.DataFrame], prefix: str, title: str) -> go.Figure:
    """A bar per row with its interval, from `value`, `low` and `high`, and a slider to choose the table.

    Args:
        prefix: stands before the chosen table's name.
    """
    figure = go.Figure()
    for n, table in enumerate(tables.values()):
        error = {"array": table.high - table.value, "arrayminus": table.value - table.low, "thickness": 2}
        bar = go.Bar(x=list(table.index), y=table.value, error_y=error, visible=n == 0, width=0.5)
        figure.add_trace(bar.update(marker_color=COLOURS["trained"]))
    steps = [
        {"label": name, "method": "update", "args": [{"visible": [i == n for i in range(len(tables))]}]}
        for n, name in enumerate(tables)
    ]
    figure.update_yaxes(range=[0, 1])
    slider = {"steps": steps, "currentvalue": {"prefix": prefix}, "pad": {"t": 40}}
    return figure.update_layout(title=title, sliders=[slider], showlegend=False)


def _wrapped(name: object) -> str:
    """A label in lines of at most eleven letters, longer words whole."""
    return "<br>".join(wrap(str(name), 11, break_long_words=False))


def _pale(colour: str) -> str:
    """A colour such as "#0072B2", mostly transparent."""
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.2)"


def paired_dots(x: pd.Series, y: pd.Series, title: str, x_title: str, y_title: str) -> go.Figure:
    """Two shares of each item against each other; where they are equal, the dot is on the diagonal.

    Dots that would cover each other are spread a little.
    """
    spread = np.random.default_rng(0).uniform(-0.015, 0.015, (2, len(x)))
    marker = {"color": COLOURS["trained"], "opacity": 0.5, "size": 8}
    dots = go.Scatter(x=x + spread[0], y=y + spread[1], mode="markers", marker=marker, text=[str(i) for i in x.index])
    line = {"color": COLOURS["chance"], "dash": "dot"}
    figure = go.Figure([dots, go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, hoverinfo="skip")])
    figure.update_xaxes(title=x_title, range=[-0.05, 1.05])
    figure.update_yaxes(title=y_title, range=[-0.05, 1.05])
    return figure.update_layout(title=title, showlegend=False, width=560, height=520)


def curves_with_bands(
    curves: Mapping[str, pd.DataFrame], roles: Mapping[str, str], title: str, x_title: str, y_title: str
) -> go.Figure:
    """A line per name over the index of its table: column `value`, with a band where there are `low` and `high`.

    Args:
        roles: for each name a key of the fixed colours, which also decides its dash.
    """
    figure = go.Figure()
    for name, table in curves.items():
        colour = COLOURS[roles[name]]
        if "low" in table:
            edges = {"mode": "lines", "line_width": 0, "showlegend": False, "hoverinfo": "skip"}
            figure.add_trace(go.Scatter(x=table.index, y=table.low, **edges))
            figure.add_trace(go.Scatter(x=table.index, y=table.high, fill="tonexty", fillcolor=_pale(colour), **edges))
        line = {"color": colour, "dash": DASHES.get(roles[name], "solid"), "width": 3}
        figure.add_trace(go.Scatter(x=table.index, y=table.value, name=name, mode="lines+markers", line=line))
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    if len(curves) > 4:  # one row of names above the figure has room for four
        figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"}, width=900)
    return figure.update_layout(title=title)


def failure_grid(table: pd.DataFrame, title: str, grey: Sequence[bool]) -> go.Figure:
    """A panel per column, a bar per row, one scale for all; rows marked `grey` are the controls."""
    figure = make_subplots(rows=1, cols=len(table.columns), subplot_titles=list(table.columns), shared_yaxes=True)
    colours = [COLOURS["baseline"] if control else COLOURS["trained"] for control in grey]
    for column, name in enumerate(table.columns, start=1):
        text = [f"{value:.2f}" for value in table[name]]
        bar = go.Bar(x=table[name], y=table.index, orientation="h", marker_color=colours, text=text)
        figure.add_trace(bar.update(textposition="outside", cliponaxis=False), row=1, col=column)
    figure.update_yaxes(autorange="reversed")
    lowest, highest = table.to_numpy().min(), table.to_numpy().max()
    figure.update_xaxes(range=[min(0, lowest) - 0.2 * highest, 1.3 * highest])
    return figure.update_layout(title=title, showlegend=False, width=980, height=180 + 40 * len(table))


def ranked_bars(values: pd.Series, title: str, x_title: str) -> go.Figure:
    """One bar per row, in the order given, first on top."""
    bar = go.Bar(x=values, y=values.index, orientation="h", text=[f"{v:.2f}" for v in values])
    figure = go.Figure(bar.update(marker_color=COLOURS["trained"]))
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=x_title)
    return figure.update_layout(title=title, height=160 + 24 * len(values))


def l0_histogram(l0_per_token: Mapping[str, np.ndarray], k: float) -> go.Figure:
    """How many latents are active on a token: a BatchTopK dictionary fixes only the mean."""
    figure = go.Figure()
    for name, values in l0_per_token.items():
        figure.add_trace(go.Histogram(x=values, name=name, histnorm="probability", opacity=0.7, xbins_size=2))
    figure.add_vline(x=k, line_dash="dot", line_color=COLOURS["chance"], annotation_text="k")
    figure.update_xaxes(title="active latents on a token (L0)", range=[0, 4 * k])
    figure.update_yaxes(title="share of tokens")
    return figure.update_layout(title="L0 is a distribution", barmode="overlay")


def density_histogram(densities: Mapping[str, np.ndarray], n_tokens: int) -> go.Figure:
    """How often each latent fires, on a log scale; those that never fire stand at the left edge."""
    figure = go.Figure()
    floor = 0.3 / n_tokens
    for name, density in densities.items():
        values = np.log10(np.maximum(density, floor))
        line = go.Histogram(x=values, name=name, histnorm="probability", opacity=0.7, xbins_size=0.2)
        figure.add_trace(line)
    figure.add_vline(x=-1, line_dash="dot", line_color=COLOURS["chance"], annotation_text="dense")
    edge = int(np.floor(np.log10(floor)))
    ticks = list(range(edge, 1))
    figure.update_xaxes(
        title="share of tokens on which a latent fires",
        tickvals=ticks,
        ticktext=["never" if tick == edge else f"{10.0**tick:g}" for tick in ticks],
    )
    figure.update_yaxes(title="share of latents")
    return figure.update_layout(title="Rare, common, dense and dead latents", barmode="overlay")


def cosine_curves(cosines: Mapping[str, Sequence[float]], title: str, roles: Mapping[str, str]) -> go.Figure:
    """Share of latents whose best match exceeds each cosine: one falling curve per comparison.

    Args:
        roles: for each curve a key of the fixed colours, which also decides its dash.
    """
    figure, grid = go.Figure(), np.linspace(0, 1, 101)
    for name, values in cosines.items():
        share = (np.asarray(values)[None] > grid[:, None]).mean(1)
        line = {"color": COLOURS[roles[name]], "dash": DASHES.get(roles[name], "solid"), "width": 3}
        figure.add_trace(go.Scatter(x=grid, y=share, name=name, mode="lines", line=line))
    figure.update_xaxes(title="cosine to the nearest row of the other dictionary", range=[0, 1])
    figure.update_yaxes(title="share of latents above", tickformat=".0%", range=[0, 1.02])
    return figure.update_layout(title=title)


def contexts_html(examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", names: Sequence[str]) -> HTML:
    """Text around examples, one line each, darker where the latent is more active; a block per latent and kind.

    Args:
        names: what to call each latent.
    """
    blocks = []
    for latent, name in enumerate(names):
        blocks.append(f"<h4>{escape(name)}</h4>")
        for kind in dict.fromkeys(example.kind for example in examples):
            lines = [_line(e, tokenizer) for e in examples if (e.latent, e.kind) == (latent, kind)]
            blocks.append(f"<div><b>{escape(kind)}</b>{''.join(lines) or ' none on this text'}</div>")
    return HTML(f"<div style='font-family:monospace;line-height:1.9'>{''.join(blocks)}</div>")


def _line(example: Example, tokenizer: "PreTrainedTokenizerBase") -> str:
    strongest = max(example.acts.max().item(), 1e-9)
    spans = []
    for place, (token, act) in enumerate(zip(example.tokens.tolist(), example.acts.tolist(), strict=True)):
        text = escape(tokenizer.decode([token])).replace("\n", "⏎")
        outline = "outline:2px solid #D55E00;" if place == example.position else ""
        style = f"{outline}background:rgba(0,114,178,{0.6 * act / strongest:.2f})"
        spans.append(f"<span style='{style};white-space:pre-wrap' title='{act:.2f}'>{text}</span>")
    value = example.acts[example.position].item()
    return f"<div><span style='color:#555'>{value:6.1f}</span> {''.join(spans)}</div>"


def dose_panels(curves: pd.DataFrame, randoms: pd.DataFrame, roles: Mapping[str, str], title: str) -> go.Figure:
    """Effect, cost and off-target divergence over the dose, a line per direction and a grey band for random ones.

    Args:
        curves: `direction`, `dose` and one row per prompt, as `dosing.Bench.dose_curve` measures them.
        randoms: the same of random directions.
        roles: for each direction a key of the fixed colours.
    """
    panels = {"effect": "effect, nats", "cost": "cost, nats a token", "off_target": "off target, nats a token"}
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(panels.values()), horizontal_spacing=0.07)
    for column, quantity in enumerate(panels, start=1):
        band = randoms.groupby(["direction", "dose"])[quantity].mean().unstack(0)
        edge = {"mode": "lines", "line_width": 0, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=band.index, y=band.min(axis=1), showlegend=False, **edge), row=1, col=column)
        upper = go.Scatter(x=band.index, y=band.max(axis=1), name="random directions", showlegend=column == 1, **edge)
        figure.add_trace(upper.update(fill="tonexty", fillcolor=_pale(COLOURS["chance"])), row=1, col=column)
        for name, role in roles.items():
            one = curves[curves.direction == name].groupby("dose")[quantity].mean()
            line = {"color": COLOURS[role], "width": 3}
            trace = go.Scatter(x=one.index, y=one, name=name, line=line, mode="lines+markers", showlegend=column == 1)
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(title="dose")
    figure.update_annotations(font_size=15)
    return figure.update_layout(title=title, width=930, height=430, legend={"y": 1.1}, margin_t=130)


def dots_per_input(effects: Mapping[str, Sequence[float]], title: str, x_title: str) -> go.Figure:
    """A row per name, a dot per input; inputs that went the wrong way, below zero, are red."""
    figure = go.Figure()
    for name, values in effects.items():
        values = np.asarray(values)
        colours = np.where(values < 0, COLOURS["corrupted"], COLOURS["trained"])
        marker = {"color": colours, "size": 9, "opacity": 0.6}
        figure.add_trace(go.Scatter(x=values, y=[name] * len(values), mode="markers", marker=marker))
    figure.add_vline(x=0, line_color=COLOURS["chance"])
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=x_title)
    return figure.update_layout(title=title, showlegend=False, height=180 + 36 * len(effects))


def ring(points: Float[Tensor, "item 2"], names: Sequence[str], title: str) -> go.Figure:
    """Items in a plane, joined in their order and back to the first."""
    closed = torch.cat([points, points[:1]])
    outward = ["top center" if y > 0 else "bottom center" for y in closed[:, 1].tolist()]
    dots = {"mode": "lines+markers+text", "text": [*names, ""], "textposition": outward, "marker_size": 12}
    line = {"color": COLOURS["trained"], "width": 2}
    figure = go.Figure(go.Scatter(x=closed[:, 0], y=closed[:, 1], line=line, **dots, cliponaxis=False))
    figure.update_yaxes(title="second component", scaleanchor="x")
    figure.update_xaxes(title="first component")
    return figure.update_layout(title=title, width=620, height=560)


def share_grid(table: pd.DataFrame, title: str, label: str, low: float = 0.0) -> go.Figure:
    """A cell per row and column, darker for more, from `low` to 1, with the value in it."""
    names = [", ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in table.index]
    text = table.map("{:.2f}".format).where(table.notna(), "")
    columns = [_wrapped(name) for name in table]
    heat = go.Heatmap(z=table, x=columns, y=names, text=text, texttemplate="%{text}")
    bar = {"title": {"text": label, "side": "right"}}  # upright, which leaves room for the columns
    figure = go.Figure(heat.update(colorscale=SHARE, zmin=low, zmax=1, colorbar=bar, textfont_size=14))
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(side="top", tickangle=0)
    figure.update_layout(title=title, title_yref="container", title_y=0.985, title_yanchor="top", width=900)
    return figure.update_layout(height=210 + 34 * len(table), margin_t=130)


def against_prediction(
    tables: Mapping[str, pd.DataFrame], roles: Mapping[str, str], title: str, unit: str
) -> go.Figure:
    """What was observed against what was predicted, and the line on which both are equal.

    Args:
        tables: by name, rows with `predicted`, `observed`, `concept`, `other`, and `low`, `high` around the gap.
        roles: for each name a key of the fixed colours.
    """
    figure, ends = go.Figure(), []
    for name, table in tables.items():
        gap = table.observed - table.predicted
        error = {"array": table.high - gap, "arrayminus": gap - table.low, "thickness": 1, "width": 0}
        marker = {"color": COLOURS[roles[name]], "size": 7, "opacity": 0.7}
        text = table.concept + " with " + table.other
        dots = go.Scatter(x=table.predicted, y=table.observed, error_y=error, mode="markers", marker=marker, name=name)
        figure.add_trace(dots.update(text=text))
        ends += [*table.predicted, *table.observed]
    line = {"color": COLOURS["chance"], "dash": "dot"}
    both = [min(ends), max(ends)]
    figure.add_trace(go.Scatter(x=both, y=both, mode="lines", line=line, name="equal", hoverinfo="skip"))
    figure.update_xaxes(title=f"predicted: the sum of both alone, {unit}")
    figure.update_yaxes(title=f"observed, {unit}")
    return figure.update_layout(title=title, width=720, height=560)


def layer_map(values: Float[Tensor, "row layer"], names: Sequence[str], title: str, label: str) -> go.Figure:
    """A cell per row and layer, blue above 0 and red below; rows are tokens or heads, the first on top."""
    largest = float(values.abs().max())
    heat = go.Heatmap(z=values.numpy(), y=list(range(len(names))), colorscale=SIGNED, zmin=-largest, zmax=largest)
    figure = go.Figure(heat.update(colorbar_title=label, xgap=1, ygap=1))
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(names))), ticktext=list(names), showgrid=False)
    figure.update_xaxes(title="layer", showgrid=False)
    return figure.update_layout(title=title, width=900, height=190 + 26 * len(names))
