"""Potentials: weighted sums of pixels that move no faster than mass does.

A *potential* is a function u on the pixels of each channel with a slope of at most one:
`|u(a) - u(b)| <= d(a, b)` for all pixels a, b of one channel, d the ground metric. How
the channels lie to each other does not matter, as no mass goes from one to another.

**Theorem** (Kantorovich & Rubinstein). For images of mass one and equal mass in every
channel, `W(mu, mu') = max_u <u, mu - mu'>` over all potentials u. Hence for potentials
`u_1 .. u_J` the numbers `z_j = <u_j, mu>` are 1-Lipschitz in W, each and together in the
maximum norm.

*Proof* of what is used here, `<u, mu - mu'> <= W`: for the masses `m(a, b)` of an
optimal plan, `<u, mu - mu'> = sum m(a, b) (u(a) - u(b)) <= sum m(a, b) d(a, b)`. QED

Arrays of potentials are `[H, W, C, J]`, in pixels, the last axis telling them apart, so
that images times potentials is one product of matrices. Constants and projections that
certificates rest on are taken on the host in float64, over all pairs of pixels, or in
integers; `sweep` and `near_slopes` are for training on the device.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.metrics import check_ground_metric, pixel_distances
from wsjax.transport import exact_potential

# Steps that ways between pixels are made of, one of each pair of opposite ones. Any way is
# a sum of two kinds of neighbouring steps, within the rectangle that it spans.
_STEPS = {
    "l1": ((0, 1), (1, 0)),
    "l2": ((0, 1), (1, 0), (1, 1), (1, -1), (1, 2), (2, 1), (1, -2), (2, -1)),
}
# The most that such a way is longer than straight: steps of "l2" are at most
# arctan(1 / 2) apart, and a way made of two of them by no more than half of that off.
STRETCH = {"l1": 1.0, "l2": 1.0 / math.cos(math.atan(0.5) / 2)}

# Far above the rounding of one subtraction and one division.
_UP = 1.0 + 2.0**-50


def check_potentials(potentials: np.ndarray) -> None:
    """Refuses arrays that are no potentials, whatever their slopes.

    Raises:
      ValueError: not `[H, W, C, J]`, or empty, or NaN or infinite.
    """
    shape = np.shape(potentials)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"Potentials have shape [H, W, C, J], got {shape}.")
    if not np.isfinite(potentials).all():
        raise ValueError("Potentials hold NaN or infinite numbers.")


def slopes(potentials: np.ndarray, ground_metric: str) -> np.ndarray:
    """Lipschitz constants: the steepest way between any two pixels of a channel.

    Only ways that hold no pixel in between are looked at: others are made of these, in
    the same direction. In "l1" these are the ways to the neighbours.

    Args:
      potentials: `[H, W, C, J]`, any numbers.
      ground_metric: "l1" or "l2".

    Returns:
      `[J]` float64, rounded up.

    Raises:
      ValueError: see `check_potentials`, or another ground metric.
    """
    check_potentials(potentials)
    potentials = np.asarray(potentials, np.float64)
    steepest = np.zeros(potentials.shape[-1])
    for rise, dy, dx in _rises(potentials, ground_metric):
        steepest = np.maximum(steepest, rise / math.hypot(dy, dx))
    return steepest * _UP


def _rises(potentials, ground_metric):
    """Yields the largest absolute differences `[J]` at each step, and the step.

    Steps that hold no pixel in between, one of each pair of opposite ones.
    """
    check_ground_metric(ground_metric)
    height, width = potentials.shape[:2]
    for dy in range(height):
        for dx in range(-width + 1 if dy else 1, width):
            if math.gcd(dy, dx) == 1 and (ground_metric == "l2" or not dy * dx):
                there, here = _ends(dy, dx)
                rise = np.abs(potentials[there] - potentials[here]).max((0, 1, 2))
                yield rise, dy, dx


def _ends(dy, dx):
    """Indices of where a step, `dy >= 0`, arrives and starts, in `[H, W, ...]`."""
    rows = slice(dy, None), slice(None, -dy or None)
    columns = slice(max(dx, 0), dx if dx < 0 else None)
    back = slice(max(-dx, 0), -dx if dx > 0 else None)
    return (rows[0], columns), (rows[1], back)


def _near(potentials, ground_metric):
    """Yields what is one step away, NaN where nothing is, and how far that step is."""
    height, width = potentials.shape[:2]
    steps = _STEPS[ground_metric]
    most = max(max(map(abs, step)) for step in steps)
    # One array that all steps look into, as XLA writes each update of a part in full.
    wide = jnp.pad(
        potentials, [(most, most)] * 2 + [(0, 0)] * 2, constant_values=jnp.nan
    )
    for dy, dx in steps:
        for y, x in ((most + dy, most + dx), (most - dy, most - dx)):
            yield wide[y : y + height, x : x + width], math.hypot(dy, dx)


def near_slopes(potentials: jax.Array, ground_metric: str) -> jax.Array:
    """An upper bound on the slopes that costs a few subtractions, for training.

    Args:
      potentials: `[H, W, C, J]` float.
      ground_metric: "l1" or "l2".

    Returns:
      `[J]`: between 1 and `STRETCH` times what `slopes` says, but for rounding.
    """
    potentials = jnp.asarray(potentials)
    steepest = jnp.zeros_like(potentials)
    for there, distance in _near(potentials, ground_metric):
        slope = jnp.abs(there - potentials) / distance
        steepest = jnp.where(slope > steepest, slope, steepest)  # NaN is not.
    return steepest.max((0, 1, 2)) * STRETCH[ground_metric]


def near_rises(units: np.ndarray, exponent: int, ground_metric: str) -> np.ndarray:
    """How much each potential rises per distance, along every step to a near pixel.

    A way between any two pixels of a channel is made of such steps, `STRETCH` times as
    long as the way at most (docs/theory.md, 7.2).

    Args:
      units: `[H, W, C, J]` integers, potentials in units of `2**-exponent` pixels.
      exponent: see `units`.
      ground_metric: "l1" or "l2".

    Returns:
      `[E, J]` float32, rounded to the nearest; one of each pair of opposite steps.
    """
    check_ground_metric(ground_metric)
    units = np.asarray(units, np.int64)
    found = []
    for dy, dx in _STEPS[ground_metric]:
        there, here = _ends(dy, dx)
        rise = np.ldexp((units[there] - units[here]).astype(np.float64), -exponent)
        found.append((rise / math.hypot(dy, dx)).astype(np.float32))
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in found])


def sweep(potentials: jax.Array, ground_metric: str) -> jax.Array:
    """One step towards potentials, for training: steep places give way.

    The mean of what near pixels allow at most and at least. Potentials stay as they
    are, and the largest slope between near pixels never grows.

    Args:
      potentials: `[H, W, C, J]` float.
      ground_metric: "l1" or "l2".

    Returns:
      Array of the same shape and dtype.
    """
    low = high = potentials = jnp.asarray(potentials)
    for there, distance in _near(potentials, ground_metric):
        low = jnp.where(there + distance < low, there + distance, low)
        high = jnp.where(there - distance > high, there - distance, high)
    return (low + high) / 2


def project(potentials: np.ndarray, ground_metric: str) -> np.ndarray:
    """Potentials near given functions; those that are potentials stay as they are.

    The mean of the largest potential below and the smallest above,
    `min_b u(b) + d(a, b)` and `max_b u(b) - d(a, b)` (McShane 1934): both have slope
    one, as minima and maxima of functions that do.

    Args:
      potentials: `[H, W, C, J]`, any numbers.
      ground_metric: "l1" or "l2".

    Returns:
      `[H, W, C, J]` float64, with slopes of at most one but for rounding.

    Raises:
      ValueError: as `slopes`.
    """
    check_potentials(potentials)
    height, width = np.shape(potentials)[:2]
    distances = pixel_distances(height, width, ground_metric)
    columns = np.array(potentials, np.float64).reshape(height * width, -1)
    for column in columns.T:
        low = (column + distances).min(1)
        column[:] = (low + (column - distances).max(1)) / 2
    return columns.reshape(np.shape(potentials))


def between_classes(
    images: np.ndarray,
    labels: np.ndarray,
    count: int,
    ground_metric: str,
    *,
    seed: int = 0,
) -> np.ndarray:
    """Kantorovich potentials of random pairs of images of different classes.

    Each tells its two images apart as well as any 1-Lipschitz function can: by all of
    their distance. A start for training.

    Args:
      images: `[N, H, W, C]`, nonnegative; black ones are not chosen.
      labels: `[N]` int.
      count: how many.
      ground_metric: "l1" or "l2".
      seed: of the pairs.

    Returns:
      `[H, W, C, count]` float64.

    Raises:
      ValueError: the images that are not black are of one class.
    """
    inked = np.flatnonzero(np.asarray(images).any((1, 2, 3)))
    if len(np.unique(np.asarray(labels)[inked])) < 2:
        raise ValueError("Pairs of different classes need images of two classes.")
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < count:
        first, second = rng.choice(inked, 2)
        if labels[first] != labels[second]:
            pair = np.asarray(images)[[first, second]].astype(np.float64)
            mass = pair.sum((1, 2), keepdims=True)
            # Equal mass in each channel; a channel without any in one has no say.
            both = (mass > 0).all(0)
            pair = np.where(both, pair / np.where(mass > 0, mass, 1.0), 0.0)
            if pair.any():
                found.append(exact_potential(pair[0], pair[1], ground_metric))
    return np.stack(found, -1)


def waves(shape: tuple[int, ...], ground_metric: str, *, seed: int = 0) -> np.ndarray:
    """Potentials that are plane waves: a start for images that are no strokes.

    Of random directions and phases, their wavelengths of equal share at every scale from
    three pixels to a few times the image; a third weigh all channels alike.

    Args:
      shape: `(H, W, C, J)`.
      ground_metric: "l1" or "l2".
      seed: of the waves.

    Returns:
      `[H, W, C, J]` float64, slopes of at most one.
    """
    height, width, channels, count = shape
    rng = np.random.default_rng(seed)
    frequency = np.exp(
        rng.uniform(np.log(2.5 / max(height, width)), np.log(2.0), count)
    )
    angle, phase = rng.uniform(0, 2 * np.pi, (2, count))
    amplitude = rng.uniform(-1.0, 1.0, (channels, count))
    amplitude[:, rng.uniform(size=count) < 1 / 3] = 1.0
    y, x = np.mgrid[:height, :width, :1, :1][:2]
    along = frequency * (np.cos(angle) * y + np.sin(angle) * x) + phase
    found = amplitude * np.cos(along) / frequency
    return found / np.maximum(slopes(found, ground_metric), 1.0)


def quantised(potentials: np.ndarray, ground_metric: str, exponent: int) -> np.ndarray:
    """Whole multiples of `2**-exponent` near given potentials, slopes within one.

    Functions with larger slopes are flattened first. Rounding moves differences by less
    than a unit, and no way is shorter than one pixel, so making functions flatter by a
    unit makes room for it.

    Args:
      potentials: `[H, W, C, J]`, any numbers.
      ground_metric: "l1" or "l2".
      exponent: a unit is `2**-exponent` pixels.

    Returns:
      `[H, W, C, J]` in units, int16 if that is enough and int32 if not, for which
      `check_quantised` has nothing to say.

    Raises:
      ValueError: as `slopes`, or the numbers are too large for int32.
    """
    steep = np.maximum(slopes(potentials, ground_metric), 1.0)
    unit = 2.0**exponent
    flat = np.asarray(potentials, np.float64) / steep
    units = np.floor(flat * (unit - 1.0) * (1.0 - 2.0**-40))
    if np.abs(units).max() >= 2.0**31:
        raise ValueError(f"exponent={exponent} makes numbers too large for int32.")
    small = np.abs(units).max() < 2.0**15
    return units.astype(np.int16 if small else np.int32)


def check_quantised(units: np.ndarray, exponent: int, ground_metric: str) -> None:
    """Refuses whole numbers that are no potentials, in exact arithmetic.

    "l1": neighbours differ by at most `2**exponent`. "l2": for every way (dy, dx) without
    a pixel in between, squares of differences are at most `4**exponent (dy^2 + dx^2)`.

    Args:
      units: `[H, W, C, J]` of an integer dtype, in units of `2**-exponent` pixels.
      exponent: 0 to 24.
      ground_metric: "l1" or "l2".

    Raises:
      ValueError: another dtype or shape, an exponent outside its range, or a slope that
        is too steep; the message names the potential.
    """
    if not np.issubdtype(np.asarray(units).dtype, np.signedinteger):
        raise ValueError(f"Potentials are stored as {units.dtype}, not as integers.")
    if not 0 <= exponent <= 24:
        raise ValueError(f"exponent={exponent} of potentials is outside [0, 24].")
    check_potentials(units)
    units = np.asarray(units, np.int64)
    if np.abs(units).max() >= 2**31:
        raise ValueError("Potentials hold numbers beyond 32 bits.")
    for rise, dy, dx in _rises(units, ground_metric):
        # The largest whole number whose square is allowed.
        most = math.isqrt(4**exponent * (dy * dy + dx * dx))
        for which in np.flatnonzero(rise > most):
            raise ValueError(
                f"Potential {which} rises by {rise[which]} units of 2^-{exponent} "
                f"between two pixels that are ({dy}, {dx}) apart; at most {most} keep "
                f"its slope within one."
            )
