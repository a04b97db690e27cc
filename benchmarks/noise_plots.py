"""Figures of noise laws: what they look like, what a classifier sees, where they are."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wsjax import plots


class NoiseRow(NamedTuple):
    """A noise law in pictures.

    Attributes:
      title: lines to the left of the row.
      noise: `[H, W, C]` one draw alone, pixel units.
      noisy: `[N, H, W, C]` images under the noise, pixel units.
      seen: `[N, H, W, C]` what a classifier is given of them.
    """

    title: str
    noise: np.ndarray
    noisy: np.ndarray
    seen: np.ndarray


class FrequencyPanel(NamedTuple):
    """Curves over spatial frequency, in one pair of axes.

    Attributes:
      title: above the panel.
      label: of the vertical axis.
      curves: `(periods, values)` by label, both `[K]` and positive; a label that
        starts with "(" is drawn dotted and gray, as a mark to compare with.
      logarithmic: whether the vertical axis is.
    """

    title: str
    label: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    logarithmic: bool


def noise_pictures(
    path: pathlib.Path,
    images: np.ndarray,
    rows: Sequence[NoiseRow],
    *,
    title: str = "",
) -> None:
    """Draws images, and below them a row per noise law: noise, noisy, seen.

    Each row has its own scale of noise and its own scale of what is seen, written
    below the first picture: laws differ in loudness more than in anything else.

    Args:
      path: image file to write.
      images: `[N, H, W, C]` in [0, 1], at least one.
      rows: at least one.
      title: of the figure.
    """
    plt = plots.pyplot()
    count = len(images)
    widths = [1.0, 0.12, *[1.0] * count, 0.12, *[1.0] * count]
    figure, grid = plt.subplots(
        len(rows) + 1,
        len(widths),
        figsize=(1.3 * sum(widths) + 1.6, 1.45 * len(rows) + 2.1),
        squeeze=False,
        width_ratios=widths,
        layout="constrained",
    )
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_frame_on(False)
    noisy, seen = grid[:, 2 : 2 + count], grid[:, 3 + count :]
    for column, image in enumerate(images):
        plots.show_image(noisy[0, column], image)
        plots.show_image(seen[0, column], image)
    noisy[0, 0].set_ylabel("image", fontsize=9, rotation=0, ha="right", va="center")
    middle = (count - 1) // 2
    grid[1, 0].set_title("noise alone", fontsize=10)
    for group, head in (
        (noisy, "image plus noise"),
        (seen, "what the classifier sees"),
    ):
        # In the middle of the group, also when that is between two pictures.
        group[1, middle].set_title(head, fontsize=10, x=0.5 if count % 2 else 1.0)
    for number, row in enumerate(rows, start=1):
        # Three standard deviations of most of the picture: corners may be far louder.
        spread = max(4.5 * float(np.median(np.abs(row.noise))), 1e-9)
        axes = grid[number, 0]
        axes.imshow(row.noise.mean(axis=-1), cmap="RdBu_r", vmin=-spread, vmax=spread)
        axes.set_xlabel(f"-{spread:.3g} to {spread:.3g}", fontsize=8)
        axes.set_ylabel(row.title, fontsize=9, rotation=0, ha="right", va="center")
        low, high = np.quantile(row.seen, (0.002, 0.998))
        seen[number, 0].set_xlabel(f"{low:.2g} to {high:.2g}", fontsize=8)
        for column in range(count):
            shade(noisy[number, column], row.noisy[column], -spread, spread)
            shade(seen[number, column], row.seen[column], low, high)
    if title:
        figure.suptitle(title, fontsize=11)
    plots.save(figure, path)


def view_pictures(
    path: pathlib.Path,
    directions: Sequence[np.ndarray],
    titles: Sequence[str],
    slope: np.ndarray,
    *,
    title: str = "",
) -> None:
    """Draws what a linear view measures, and where on the image it is sensitive.

    Args:
      path: image file to write.
      directions: `[H, W]` weights of the pixels, signed, each on its own scale.
      titles: one per direction.
      slope: `[H, W]` in [0, 1]: share of the steepest slope that the certificate
        allows which the view has at each pixel.
      title: of the figure.
    """
    plt = plots.pyplot()
    columns = -(-len(directions) // 2)
    figure, grid = plt.subplots(
        2,
        columns + 2,
        figsize=(1.25 * columns + 3.4, 3.3),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid[:, -2:].ravel():
        axes.remove()
    for axes in grid[:, :-2].ravel():
        axes.set_axis_off()
    for axes, picture, head in zip(grid[:, :-2].ravel(), directions, titles):
        spread = max(float(np.abs(picture).max()), 1e-9)
        axes.imshow(picture, cmap="RdBu_r", vmin=-spread, vmax=spread)
        axes.set_title(head, fontsize=9)
    axes = figure.add_subplot(grid[0, 0].get_gridspec()[:, -2:])
    shown = axes.imshow(slope, cmap="viridis", vmin=0, vmax=1)
    axes.set_title("share of the allowed slope", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    figure.colorbar(shown, ax=axes, shrink=0.8)
    if title:
        figure.suptitle(title, fontsize=11)
    plots.save(figure, path)


def frequency_curves(path: pathlib.Path, panels: Sequence[FrequencyPanel]) -> None:
    """Draws curves over spatial frequency, a panel beside another.

    Args:
      path: image file to write.
      panels: at least one; a label has the same look in all of them.
    """
    plt = plots.pyplot()
    figure, grid = plt.subplots(
        1,
        len(panels),
        figsize=(4.6 * len(panels), 3.7),
        squeeze=False,
        layout="constrained",
    )
    labels = list(dict.fromkeys(label for panel in panels for label in panel.curves))
    marks = [label for label in labels if label.startswith("(")]
    drawn = [label for label in labels if label not in marks]
    looks: dict[str, dict[str, Any]] = {
        label: {"color": "0.45", "linestyle": ":"} for label in marks
    }
    for number, label in enumerate(drawn):
        looks[label] = {
            "color": plots.COLOURS[number % len(plots.COLOURS)],
            "linestyle": plots.DASHES[number // len(plots.COLOURS) % 4],
            "marker": "o",
            "markersize": 3,
        }
    for axes, panel in zip(grid[0], panels):
        for label, (periods, values) in panel.curves.items():
            axes.plot(periods, values, label=label, **looks[label])
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [k for k in (0.5, 1, 2, 5, 10, 20, 50, 100) if low <= k <= high]
        axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
        axes.minorticks_off()
        if panel.logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("spatial frequency, periods per image")
        axes.set_ylabel(panel.label)
        axes.set_title(panel.title, fontsize=10)
        axes.grid(alpha=0.3)
    handles = {
        label: handle
        for axes in grid[0]
        for handle, label in zip(*axes.get_legend_handles_labels())
    }
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(4, len(handles)),
        frameon=False,
        fontsize=9,
    )
    plots.save(figure, path)


def shade(axes, image, low, high):
    """A picture in gray or colour from `low` (black) to `high` (white)."""
    plots.show_image(axes, (np.asarray(image) - low) / max(high - low, 1e-9))
