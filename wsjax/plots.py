"""Figures from rows and images. Matplotlib is imported when a figure is drawn."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Okabe & Ito's palette: told apart by colour-blind readers, in this order.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")


class Curve(NamedTuple):
    """A step curve: share of images at or above each radius.

    Attributes:
      radii: `[N]` radius of each image that counts, any order; the others left out.
      images: number of all images, counting or not.
    """

    radii: np.ndarray
    images: int


class Picture(NamedTuple):
    """One attacked image.

    Attributes:
      image: `[H, W, C]` in [0, 1].
      adversarial: `[H, W, C]`.
      flow: `FlowPlan` (fractions of mass) that turns one into the other, or None.
      title: a line above the row.
    """

    image: np.ndarray
    adversarial: np.ndarray
    flow: object
    title: str


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


def accuracy_curves(
    path: pathlib.Path,
    certified: Mapping[str, Curve],
    attacked: Mapping[str, Curve] | None = None,
    *,
    metric: str,
    title: str = "",
) -> None:
    """Draws accuracy against radius: certified curves, and attacks above them.

    Args:
      path: image file to write.
      certified: curves by label; an image counts at every radius up to its own.
      attacked: likewise for attacks: an image counts up to the radius at which it
        was fooled (infinite if never).
      metric: ground metric of the radii, for the axis.
      title: of the figure.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    groups = (("", certified, 2.0), ("attack: ", attacked or {}, 1.2))
    finite = [0.0]
    for prefix, curves, width in groups:
        for number, (label, curve) in enumerate(curves.items()):
            radii = np.sort(curve.radii)
            finite.extend(radii[np.isfinite(radii)][-1:])
            left = (len(radii) - np.arange(len(radii) + 1)) / max(curve.images, 1)
            axes.step(
                np.concatenate([[0.0], np.minimum(radii, 1e9)]),
                np.concatenate([left[:1], left[1:]]),
                where="post",
                label=prefix + label,
                linewidth=width,
                color=_COLOURS[number % len(_COLOURS)],
                linestyle=_DASHES[number // len(_COLOURS) % 4] if not prefix else "--",
            )
    axes.set_xlim(0, 1.05 * max(finite) or 1.0)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"Wasserstein radius ({metric}), pixels x fraction of mass")
    axes.set_ylabel("share of test images")
    if title:
        axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def adversarial_pictures(path: pathlib.Path, pictures: Sequence[Picture]) -> None:
    """Draws one row per attacked image: before, after, change, and where mass went.

    Args:
      path: image file to write.
      pictures: at least one.
    """
    plt = _pyplot()
    figure, grid = plt.subplots(
        len(pictures),
        4,
        figsize=(9.6, 2.6 * len(pictures)),
        squeeze=False,
        layout="constrained",
    )
    heads = ("image", "adversarial", "difference", "where mass went")
    for row, picture in zip(grid, pictures):
        change = np.asarray(picture.adversarial) - np.asarray(picture.image)
        spread = max(float(np.abs(change).max()), 1e-9)
        _show(row[0], picture.image)
        _show(row[1], picture.adversarial)
        row[2].imshow(change.mean(axis=-1), cmap="RdBu_r", vmin=-spread, vmax=spread)
        _show(row[3], 0.35 * np.asarray(picture.image))
        if picture.flow is not None:
            _arrows(row[3], picture.flow)
        for axes, head in zip(row, heads):
            axes.set_title(head, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(picture.title, fontsize=9)
    _save(figure, path)


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
    plt = _pyplot()
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
        _show(noisy[0, column], image)
        _show(seen[0, column], image)
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
            _shade(noisy[number, column], row.noisy[column], -spread, spread)
            _shade(seen[number, column], row.seen[column], low, high)
    if title:
        figure.suptitle(title, fontsize=11)
    _save(figure, path)


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
    plt = _pyplot()
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
    _save(figure, path)


def frequency_curves(path: pathlib.Path, panels: Sequence[FrequencyPanel]) -> None:
    """Draws curves over spatial frequency, a panel beside another.

    Args:
      path: image file to write.
      panels: at least one; a label has the same look in all of them.
    """
    plt = _pyplot()
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
            "color": _COLOURS[number % len(_COLOURS)],
            "linestyle": _DASHES[number // len(_COLOURS) % 4],
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
    _save(figure, path)


def _shade(axes, image, low, high):
    """A picture in gray or colour from `low` (black) to `high` (white)."""
    _show(axes, (np.asarray(image) - low) / max(high - low, 1e-9))


def _show(axes, image):
    image = np.clip(np.asarray(image), 0, 1)
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
    else:
        axes.imshow(image[..., :3])


def _arrows(axes, flow):
    """Net flow at each pixel as an arrow, longer for more mass."""
    down = np.asarray(flow.vertical).sum(axis=-1)
    right = np.asarray(flow.horizontal).sum(axis=-1)
    height, width = right.shape[0], down.shape[1]
    if down.shape == right.shape:  # Wrapped: every pixel has an edge out each way.
        inward, sideways = np.roll(down, 1, axis=0), np.roll(right, 1, axis=1)
    else:
        inward, sideways = (
            np.pad(down, ((1, 0), (0, 0))),
            np.pad(right, ((0, 0), (1, 0))),
        )
        down, right = np.pad(down, ((0, 1), (0, 0))), np.pad(right, ((0, 0), (0, 1)))
    # An edge's mass counts half for each of its two pixels.
    y, x = (down + inward) / 2, (right + sideways) / 2
    size = np.hypot(x, y)
    if size.max() <= 0:
        return
    shown = size > 0.02 * size.max()
    i, j = np.mgrid[:height, :width]
    axes.quiver(
        j[shown],
        i[shown],
        x[shown],
        y[shown],
        color="#E69F00",
        angles="xy",
        scale_units="xy",
        # The longest arrow spans a few pixels of a picture of any size.
        scale=size.max() / max(2.0, 0.12 * max(height, width)),
        width=0.008,
    )


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib: pip install 'wsjax[train]'."
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path):
    figure.savefig(path, dpi=150)
    _pyplot().close(figure)
