"""Ground metrics: how far it is from pixel to pixel, for mass that travels.

"l1" is the Manhattan distance, along rows and columns; "l2" the Euclidean, in straight
lines. Both in pixels. Every Wasserstein distance, constant and certificate of this
package is for one of the two. NumPy only.
"""

import numpy as np

GROUND_METRICS = ("l1", "l2")


def check_ground_metric(name: str) -> None:
    """Raises ValueError unless `name` is of `GROUND_METRICS`."""
    if name not in GROUND_METRICS:
        raise ValueError(
            f"ground_metric={name!r} is not one of {GROUND_METRICS}: "
            f'"l1" moves mass along rows and columns, "l2" in straight lines.'
        )


def pixel_distance(step, ground_metric: str):
    """Length of steps from pixel to pixel.

    Args:
      step: `[..., 2]` array, rows and columns.
      ground_metric: "l1" or "l2".

    Returns:
      `[...]`, in pixels.

    Raises:
      ValueError: another ground metric.
    """
    check_ground_metric(ground_metric)
    if ground_metric == "l1":
        return np.abs(step).sum(-1)
    return np.hypot(step[..., 0] * 1.0, step[..., 1] * 1.0)


def pixel_distances(height: int, width: int, ground_metric: str) -> np.ndarray:
    """All distances between the pixels of an image.

    Args:
      height: rows.
      width: columns.
      ground_metric: "l1" or "l2".

    Returns:
      `[H W, H W]` float64, pixels in row-major order.

    Raises:
      ValueError: another ground metric.
    """
    pixels = np.argwhere(np.ones((height, width)))
    distances = pixel_distance(pixels[:, None] - pixels, ground_metric)
    return distances.astype(np.float64)
