"""Figures from rows and images. Matplotlib is imported when a figure is drawn."""

import collections
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wsjax import files
from wsjax.flow import flow_shape

# Okabe & Ito's palette: told apart by colour-blind readers, in this order.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


class Curve(NamedTuple):
    """A step curve: share of images at or above each radius.

    Attributes:
      radii: `[N]` radius of each image that counts, any order; the others left out.
      images: number of all images, counting or not.
      colour: what Matplotlib knows as one; "" for the next of `COLOURS`. Curves of the
        same colour differ in dashes.
    """

    radii: np.ndarray
    images: int
    colour: str = ""


class AttackedImage(NamedTuple):
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


def accuracy_curves(
    path: pathlib.Path,
    certified: Mapping[str, Curve],
    attacked: Mapping[str, Curve] | None = None,
    *,
    metric: str,
    title: str = "",
    log_from: float = 0.0,
) -> None:
    """Draws accuracy against radius: certified curves, and attacks above them.

    Args:
      path: image file to write.
      certified: curves by label; an image counts at every radius up to its own.
      attacked: likewise for attacks: an image counts up to the radius at which it
        was fooled (infinite if never).
      metric: ground metric of the radii, for the axis.
      title: of the figure.
      log_from: least radius of a logarithmic axis; 0 for one that is linear from 0.
    """
    plt = pyplot()
    groups = (("", certified, 2.0), ("attack: ", attacked or {}, 1.2))
    # More labels than a corner holds stand beside the curves.
    many = sum(len(curves) for _, curves, _ in groups) > 4
    size = (9.6 if many else 6.4, 4.0)
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    finite = [0.0]
    for prefix, curves, width in groups:
        drawn: collections.Counter[str] = collections.Counter()
        for number, (label, curve) in enumerate(curves.items()):
            colour = curve.colour or COLOURS[number % len(COLOURS)]
            dashes = DASHES[drawn[colour] % len(DASHES)]
            drawn[colour] += 1
            radii = np.sort(curve.radii)
            finite.extend(radii[np.isfinite(radii)][-1:])
            left = (len(radii) - np.arange(len(radii) + 1)) / max(curve.images, 1)
            axes.step(
                np.concatenate([[0.0], np.minimum(radii, 1e9)]),
                np.concatenate([left[:1], left[1:]]),
                where="post",
                label=prefix + label,
                linewidth=width,
                color=colour,
                linestyle=dashes if not prefix else "--",
            )
    if log_from:
        axes.set_xscale("log")
    axes.set_xlim(log_from, max(1.05 * max(finite), 10 * log_from) or 1.0)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"Wasserstein radius ({metric}), pixels x fraction of mass")
    what = "accuracy" if attacked else "certified accuracy"
    counts = {
        f"{c.images:,}"
        for curves in (certified, attacked or {})
        for c in curves.values()
    }
    of = f", {counts.pop()} test images" if len(counts) == 1 else ""
    axes.set_ylabel(what + of)
    if title:
        axes.set_title(title)
    axes.grid(alpha=0.3)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if many else {}
    axes.legend(frameon=False, **beside)
    save(figure, path)


def adversarial_pictures(path: pathlib.Path, pictures: Sequence[AttackedImage]) -> None:
    """Draws one row per attacked image: before, after, change, and where mass went.

    Args:
      path: image file to write.
      pictures: at least one.
    """
    plt = pyplot()
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
        show_image(row[0], picture.image)
        show_image(row[1], picture.adversarial)
        shown = row[2].imshow(
            change.mean(axis=-1), cmap="RdBu_r", vmin=-spread, vmax=spread
        )
        bar = figure.colorbar(shown, ax=row[2], shrink=0.8)
        bar.ax.tick_params(labelsize=7)
        if picture.flow is None:
            show_image(row[3], 0.35 * np.asarray(picture.image))
        else:
            plot_flow(picture.image, picture.flow, row[3])
        for axes, head in zip(row, heads):
            axes.set_title(head, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(picture.title, fontsize=9)
    save(figure, path)


def plot_flow(image: np.ndarray, flow: Any, axes: Any = None) -> Any:
    """Draws a flow plan over an image: where its mass goes.

    Plans come from `transport.exact_flow`, between two images, and from flow noise.

    Args:
      image: `[H, W, C]` in [0, 1].
      flow: `FlowPlan` on it, bordered or wrapped, of whatever unit: the longest arrow
        spans a few pixels. Channels are added up.
      axes: Matplotlib's, to draw into; None for a figure of its own, which a notebook
        shows and `figure.savefig(path)` writes.

    Returns:
      The figure.

    Raises:
      ValueError: the plan is not one on this image.
      ImportError: Matplotlib is missing.
    """
    shape = np.shape(image)
    given = np.shape(flow.vertical), np.shape(flow.horizontal)
    if len(shape) != 3 or given not in (
        flow_shape(shape),
        flow_shape(shape, wrap=True),
    ):
        raise ValueError(
            f"Flow shapes {given} are not those of a plan on an image of shape {shape}, "
            f"[H, W, C]."
        )
    if axes is None:
        # Not pyplot, which a notebook may have told where to draw.
        figure = _matplotlib().figure.Figure(figsize=(4, 4), layout="constrained")
        axes = figure.subplots()
    show_image(axes, 0.35 * np.asarray(image))
    _arrows(axes, flow)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.figure


def show_image(axes: Any, image: np.ndarray) -> None:
    """Draws an image `[H, W, C]` into axes, gray or in colour."""
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


def pyplot() -> Any:
    """`matplotlib.pyplot`, drawing to files.

    Raises:
      ImportError: Matplotlib is missing.
    """
    _matplotlib().use("Agg")
    from matplotlib import pyplot

    return pyplot


def _matplotlib():
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib: pip install 'wsjax[plots]'."
        ) from error
    return matplotlib


def save(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure and closes it."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=path.suffix[1:] or None)
    files.write_whole(path, picture.getvalue())
    pyplot().close(figure)
