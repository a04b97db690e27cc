"""Layers that are 1-Lipschitz, from images to scores.

A network reads an image of mass one through potentials (`wsjax.potentials`), which makes
numbers that are 1-Lipschitz in W in the maximum norm, and goes on in layers that do not
spread out what is near in that norm. Whatever its weights are, its outputs are scores in
the sense of `wsjax.scores`. Layers are functions of arrays, of NumPy or of JAX, whose
last axis is that of the features; proofs are at each.

Feature maps `[B, H, W, C]` of convolutions live in another norm, the sum over positions of
the maximum over channels, in which an adversary's budget is one for all positions
together: `first_convolution_constant` says how W goes over into it,
`convolution_constant` what further convolutions do to it, and sums over positions (with
weights of at most one) lead back to the maximum norm: `|sum_p w_p h_c(p)| <=
sum_p max_c |h_c(p)|`.
"""

import functools
import math

import numpy as np

from wsjax.metrics import pixel_distance


def measure(images, potentials):
    """`<u_j, mu>`: 1-Lipschitz from W to the maximum norm (see `wsjax.potentials`).

    Args:
      images: `[B, H, W, C]` float, of mass one.
      potentials: `[H, W, C, J]`, with slopes of at most one.

    Returns:
      `[B, J]`.
    """
    return images.reshape(len(images), -1) @ potentials.reshape(
        -1, potentials.shape[-1]
    )


def sorted_groups(features, size: int):
    """Sorts groups of features, ascending; of two, their minimum and maximum.

    A group is what lies `D / size` apart. 1-Lipschitz in the maximum norm, as each order
    statistic is: if no number moves by more than t, neither does the k-th smallest.
    Keeps all numbers, so gradients keep their size.

    Args:
      features: `[..., D]`.
      size: of a group; a divisor of D.

    Returns:
      `[..., D]`: the smallest of each group, then the second smallest, and so on.

    Raises:
      ValueError: groups of this size do not fill the features.
    """
    shape = features.shape
    if size < 1 or shape[-1] % size:
        raise ValueError(f"{shape[-1]} features do not divide into groups of {size}.")
    xp = features.__array_namespace__()
    groups = features.reshape(*shape[:-1], size, shape[-1] // size)
    if xp is np or size > _LARGE_GROUP:
        return xp.sort(groups, -2).reshape(shape)
    lanes = [groups[..., lane, :] for lane in range(size)]
    for low, high in _comparisons(size):
        # Not minimum and maximum: of equal numbers, each keeps its own gradient.
        swap = lanes[low] > lanes[high]
        lanes[low], lanes[high] = (
            xp.where(swap, lanes[high], lanes[low]),
            xp.where(swap, lanes[low], lanes[high]),
        )
    return xp.stack(lanes, -2).reshape(shape)


# From here on sorting as such costs XLA less than comparisons that depend on no result.
_LARGE_GROUP = 32


@functools.cache
def _comparisons(size):
    """Pairs that, put in order one after another, sort `size` numbers.

    Source: Batcher's odd-even merge sort (Knuth, The Art of Computer Programming 3,
    5.2.2, Algorithm M).
    """
    found = []
    top = 1 << max(size - 1, 1).bit_length() - 1
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            found += [(i, i + d) for i in range(size - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return tuple(found)


def soft_minimum(features, softness: float, axis: int = -1):
    """`-t log mean exp(-x / t)`: between the minimum (t = 0) and the mean (t = inf).

    1-Lipschitz in the maximum norm: its gradient is a convex combination of the
    features' own.

    Args:
      features: `[..., D, ...]`; infinite ones count.
      softness: t, in the unit of the features.
      axis: of the D features.

    Returns:
      The array without that axis.

    Raises:
      ValueError: `softness` is negative.
    """
    if not softness >= 0:
        raise ValueError(f"softness={softness!r} is negative.")
    xp = features.__array_namespace__()
    if math.isinf(softness):
        return features.mean(axis)
    least = features.min(axis, keepdims=True)
    if softness == 0:
        return least.squeeze(axis)
    # Where all are infinite nothing rises, and the minimum is what they are.
    rise = features - xp.where(xp.isinf(least), 0.0, least)
    share = xp.exp(-rise / softness).mean(axis)
    # No less than what the least contributes.
    share = xp.maximum(share, 1.0 / features.shape[axis])
    return least.squeeze(axis) - softness * xp.log(share)


def maximum_distance(features, centres):
    """`max_j |x_j - c_kj|`: neurons that measure how far the features are from a place.

    1-Lipschitz in the maximum norm, by the triangle inequality.

    Args:
      features: `[B, D]`.
      centres: `[K, D]`.

    Returns:
      `[B, K]`.

    Source: linf-distance networks, Zhang et al. 2021 (ICML).
    """
    xp = features.__array_namespace__()
    return xp.abs(features[:, None] - centres).max(-1)


def dense(features, rows, bias):
    """`x W^T + b`: 1-Lipschitz in the maximum norm if rows have L1 norms of at most one.

    `|<w, x - x'>| <= ||w||_1 ||x - x'||_inf` (Hoelder).

    Args:
      features: `[B, D]`.
      rows: `[E, D]`.
      bias: `[E]`.

    Returns:
      `[B, E]`.
    """
    return features @ rows.T + bias


def unit_rows(rows):
    """Rows with L1 norms above one divided by them; others as they are.

    Args:
      rows: `[E, D]` float.

    Returns:
      `[E, D]`.
    """
    xp = rows.__array_namespace__()
    return rows / xp.maximum(xp.abs(rows).sum(-1, keepdims=True), 1.0)


def onto_unit_rows(rows, rounds: int = 10):
    """The nearest rows, in Euclidean distance, with L1 norms of at most one.

    Shrinks all entries of a row by the same amount, and some to zero.

    Args:
      rows: `[E, D]` float.
      rounds: of finding out which entries become zero. D are always enough, 10 nearly
        always; with fewer, a row is divided by what its norm exceeds one by.

    Returns:
      `[E, D]`.

    Source: Michelot 1986 (J. Optimization Theory and Applications 50).
    """
    xp = rows.__array_namespace__()
    sizes = xp.abs(rows)
    shrink = xp.zeros_like(sizes[:, :1]) - 1.0
    for _ in range(rounds):
        left = sizes > shrink
        count = xp.maximum(left.sum(-1, keepdims=True), 1)
        shrink = (xp.where(left, sizes, 0.0).sum(-1, keepdims=True) - 1.0) / count
        shrink = xp.maximum(shrink, 0.0)
    return unit_rows(xp.sign(rows) * xp.maximum(sizes - shrink, 0.0))


def pairwise_constants(rows, pieces: int = 1):
    """Lipschitz constants of all differences of scores that a last layer makes.

    `||w_y - w_j||_1`, by the same inequality; at most 2 for rows within one. If scores are
    minima of several rows each, the sum of the largest norms.

    Args:
      rows: `[K * pieces, D]`.
      pieces: rows of each score, one after another.

    Returns:
      `[K, K]`, zero on the diagonal.
    """
    xp = rows.__array_namespace__()
    if pieces == 1:
        return xp.abs(rows[:, None] - rows).sum(-1)
    norms = xp.abs(rows).sum(-1).reshape(-1, pieces).max(-1)
    return (norms[:, None] + norms) * (1 - xp.eye(len(norms), dtype=norms.dtype))


def first_convolution_constant(kernel, stride: int, steps, ground_metric: str):
    """Lipschitz constant of a convolution from W to the (1, inf) norm, over some steps.

    Mass m that moves by a step e within input channel i changes output c at a position
    whose window has it at o by `m (w_ic(o) - w_ic(o - e))`, zero outside the kernel. Of
    the sums over positions of the maximum over c, the worst of all input channels and
    stride phases counts, over |e|. A way made of several steps changes no more than all
    of them, so a set of steps that all ways are made of without loss is enough.

    Args:
      kernel: `[k, k, C, D]`.
      stride: positions from one output to the next.
      steps: `(dy, dx)` pairs, one of each pair of opposite ones.
      ground_metric: "l1" or "l2".

    Returns:
      Scalar.
    """
    xp = kernel.__array_namespace__()
    constants = []
    for step in steps:
        dy, dx = step
        pads = [(abs(dy), abs(dy)), (abs(dx), abs(dx)), (0, 0), (0, 0)]
        wide = xp.pad(kernel, pads)
        # What leaves one side comes back from the other, where there are zeros.
        change = xp.abs(wide - xp.roll(wide, (dy, dx), (0, 1))).max(3)
        length = float(pixel_distance(np.array(step), ground_metric))
        constants.append(_worst_phase(change, stride) / length)
    return xp.stack(constants).max()


def convolution_constant(kernel, stride: int = 1):
    """Lipschitz constant of a convolution in the (1, inf) norm.

    A change of size t at one position reaches each of the positions o of the kernel with
    at most `t max_c sum_i |w_ic(o)|`; those of one stride phase are seen.

    Args:
      kernel: `[k, k, C, D]`.
      stride: positions from one output to the next.

    Returns:
      Scalar.
    """
    xp = kernel.__array_namespace__()
    return _worst_phase(xp.abs(kernel).sum(2).max(2), stride)


def _worst_phase(changes, stride):
    """Largest sum of `[h, w, ...]` over the positions that one output phase sees."""
    xp = changes.__array_namespace__()
    phases = [
        changes[i::stride, j::stride].sum((0, 1))
        for i in range(stride)
        for j in range(stride)
    ]
    return xp.stack(phases).max()
