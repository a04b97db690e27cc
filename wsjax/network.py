"""A network that is 1-Lipschitz in W to the last bit: whole numbers, and float64.

Potentials, then sorting and dense layers in turn (`lipschitz`); scores are outputs of the
last dense layer, or minima of several outputs each. What the theorem needs of the weights
(slopes, L1 norms) is a statement about whole numbers and is checked as such, so it holds
for the function that the weights define in real arithmetic. What is computed is that
function in float64, with a bound on how far off it can be, for any image:
`LipschitzNetwork.precision`.

**Rounding.** Let u = 2^-53 and gamma(n) = n u / (1 - n u). A sum of n products is off by at
most gamma(n) times the sum of their sizes, in any order and with or without fused
operations (Higham 2002, section 3.1). Images are first scaled by a power of two, which is
exact. So with J potentials of size at most S and P pixels, `<u, image> / mass` is off by at
most gamma(2 P + 2) S; a layer with rows of L1 norm at most one, n inputs of size at most X
and biases of size at most B hands on what its inputs are off by, and adds gamma(n + 1) (X +
B). Sorting and minima add nothing. All of it is doubled, to pay for the arithmetic of the
bound itself and for pixels so small that they underflow.

Two scores at two images are looked at, so a lead that exceeds four times the precision
is one that the program shows at the other image too.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import lipschitz, metrics, potentials, text

# Scores have a precision of 1e-11 or so for images of thousands of pixels; with more terms
# than this the analysis, though valid, would not have been looked at.
_MOST_TERMS = 2**30
_UNIT = 2.0**-53


class Rows(NamedTuple):
    """A dense layer of whole numbers.

    Attributes:
      units: `[E, D]` int16 or int32, in units of `2**-exponent`; a row's sizes add up
        to at most `2**exponent`.
      exponent: 0 to 30.
      bias: `[E]` float64.
    """

    units: np.ndarray
    exponent: int
    bias: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """`[E, D]` float64, exact."""
        return np.ldexp(self.units.astype(np.float64), -self.exponent)


def quantised_rows(rows: np.ndarray, bias: np.ndarray, exponent: int = 15) -> Rows:
    """A layer of whole numbers near given rows: divided by norms above one, rounded.

    What rounding adds to a norm is taken from the largest entry of the row.

    Args:
      rows: `[E, D]` numbers.
      bias: `[E]`.
      exponent: see `Rows`.

    Returns:
      `Rows`.
    """
    rows = np.asarray(rows, np.float64)
    norms = np.maximum(np.abs(rows).sum(1, keepdims=True), 1.0)
    units = np.rint(rows / norms * 2.0**exponent).astype(np.int64)
    each, largest = np.arange(len(rows)), np.abs(units).argmax(1)
    over = np.maximum(np.abs(units).sum(1) - 2**exponent, 0)
    if exponent == 15:  # A single entry of one does not fit into int16.
        over = np.maximum(over, np.abs(units).max(1) - (2**15 - 1))
    units[each, largest] -= np.sign(units[each, largest]) * over
    small = np.int16 if exponent <= 15 else np.int32
    return Rows(units.astype(small), exponent, np.asarray(bias, np.float64))


@dataclasses.dataclass(frozen=True, eq=False)
class LipschitzNetwork(text.Short):
    """Weights of a network that certifies by the lead of its scores.

    Checked in exact arithmetic when it is made: see `potentials.check_quantised` and
    `Rows`.

    Attributes:
      potentials: `[H, W, C, J]` of a signed integer dtype, in units of `2**-exponent`
        pixels.
      exponent: 0 to 24.
      offsets: `[J]` float64, added to what potentials measure.
      hidden: layers after the potentials, each between two sortings.
      last: `[K * pieces, D]`, the layer that makes scores.
      groups: how many numbers are sorted together, before each of these layers.
      pieces: outputs of the last layer, one after another, whose minimum is a score.
      ground_metric: "l1" or "l2", that the slopes of potentials are bounded in.
    """

    potentials: np.ndarray
    exponent: int
    offsets: np.ndarray
    hidden: tuple[Rows, ...]
    last: Rows
    _: dataclasses.KW_ONLY
    groups: tuple[int, ...]
    pieces: int = 1
    ground_metric: str

    def __post_init__(self):
        metrics.check_ground_metric(self.ground_metric)
        potentials.check_quantised(self.potentials, self.exponent, self.ground_metric)
        width = self.potentials.shape[-1]
        _check_bias("offsets", self.offsets, width)
        layers = (*self.hidden, self.last)
        if len(self.groups) != len(layers):
            raise ValueError(
                f"groups={self.groups} are not one for each of the layers."
            )
        for number, (rows, group) in enumerate(zip(layers, self.groups, strict=True)):
            name = "the last layer" if rows is self.last else f"hidden layer {number}"
            _check_rows(name, rows, width)
            if group < 1 or width % group:
                raise ValueError(
                    f"{width} numbers before {name} do not divide into groups of {group}."
                )
            width = len(rows.units)
        classes, rest = divmod(width, self.pieces) if self.pieces > 0 else (0, 0)
        if classes < 2 or rest:
            raise ValueError(
                f"{width} outputs of the last layer are no minima of {self.pieces} each "
                f"for two classes or more."
            )
        if self.potentials[..., 0].size * 2 + 2 > _MOST_TERMS:
            raise ValueError(f"Images of {self.image_shape} have too many pixels.")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(H, W, C)`."""
        return self.potentials.shape[:3]

    @functools.cached_property
    def constants(self) -> np.ndarray:
        """`[K, K]` float64 Lipschitz constants of the differences of scores, exact."""
        units = self.last.units.astype(np.int64)
        found = lipschitz.pairwise_constants(units, self.pieces)
        return np.ldexp(found.astype(np.float64), -self.last.exponent)

    @functools.cached_property
    def precision(self) -> float:
        """How far a computed score can be from the true one; see the head of this file."""
        size = float(
            np.ldexp(np.abs(self.potentials.astype(np.int64)).max(), -self.exponent)
        )
        terms = 2 * self.potentials[..., 0].size + 2
        off = _gamma(terms) * size + _UNIT * (size + _largest(self.offsets))
        size += _largest(self.offsets)
        for rows in (*self.hidden, self.last):
            size += _largest(rows.bias)
            off += _gamma(rows.units.shape[1] + 1) * size
        return 2.0 * off

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Scores of images, each off by at most `precision`.

        Args:
          images: `[N, H, W, C]` float32 or float64, as `images.check_image` has them.

        Returns:
          `[N, K]` float64.

        Raises:
          ValueError: images of another shape.
        """
        return self._found(images)[-1].reshape(len(images), -1, self.pieces).min(-1)

    def numbers(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """What each sorting sorts, `[N, D]` float64 each; as `scores`."""
        return self._found(images)[:-1]

    def _found(self, images):
        images = np.asarray(images)
        self.check_shape(images.shape[1:])
        pixels = images.astype(np.float64).reshape(len(images), -1)
        # By a power of two, so that no sum overflows and no product underflows.
        _, size = np.frexp(pixels.max(1, keepdims=True))
        return _forward(self._weights, self.groups, np.ldexp(pixels, -size))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless images of this shape are what the network reads."""
        if shape != self.image_shape:
            raise ValueError(
                f"Images have shape {shape}, the network reads {self.image_shape}."
            )

    @functools.cached_property
    def _weights(self):
        """Weights and bias of potentials and of each layer, in float64, exact."""
        first = np.ldexp(self.potentials.astype(np.float64), -self.exponent)
        layers = (*self.hidden, self.last)
        return (first, self.offsets), *((rows.weights, rows.bias) for rows in layers)

    def on_device(self) -> jax.tree_util.Partial:
        """The same function in JAX and float32: `images [B, H, W, C] -> scores [B, K]`.

        For attacks, which need its gradients. No certificate is about its values.
        """
        weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self._weights)
        return jax.tree_util.Partial(_OnDevice(self.groups, self.pieces), weights)


@dataclasses.dataclass(frozen=True)
class _OnDevice:
    """Equal for equal layers, so that programs are shared."""

    groups: tuple[int, ...]
    pieces: int

    def __call__(self, weights, images):
        pixels = images.reshape(len(images), -1)
        outputs = _forward(weights, self.groups, pixels)[-1]
        return outputs.reshape(len(images), -1, self.pieces).min(-1)


def _forward(weights, groups, pixels):
    """What is sorted, and the outputs, of `[B, H W C]` pixels of any mass."""
    (first, offsets), *layers = weights
    found = lipschitz.measure(pixels, first) / pixels.sum(1, keepdims=True) + offsets
    steps = [found]
    for (rows, bias), group in zip(layers, groups, strict=True):
        found = lipschitz.sorted_groups(found, group)
        steps.append(found := lipschitz.dense(found, rows, bias))
    return tuple(steps)


def _check_rows(name: str, rows: Rows, width: int) -> None:
    """Refuses a layer that is not of whole numbers with L1 norms of at most one.

    Raises:
      ValueError: the message says which row.
    """
    dtype, shape = rows.units.dtype, rows.units.shape
    if len(shape) != 2 or 0 in shape or dtype not in (np.int16, np.int32):
        raise ValueError(
            f"{name} is stored as {dtype}{shape}, not as a matrix of int16 or int32."
        )
    if not 0 <= rows.exponent <= 30:
        raise ValueError(f"exponent={rows.exponent} of {name} is outside [0, 30].")
    if rows.units.shape[1] != width:
        raise ValueError(f"{name} reads {rows.units.shape[1]} numbers, not {width}.")
    _check_bias(f"the bias of {name}", rows.bias, len(rows.units))
    norms = np.abs(rows.units.astype(np.int64)).sum(1)
    for row in np.flatnonzero(norms > 2**rows.exponent):
        raise ValueError(
            f"Row {row} of {name} has L1 norm {norms[row]} x 2^-{rows.exponent}, more "
            f"than one."
        )


def _check_bias(name: str, bias: np.ndarray, width: int) -> None:
    """Refuses biases that are not `[width]` finite float64.

    Raises:
      ValueError: the message says which.
    """
    if bias.shape != (width,) or bias.dtype != np.float64:
        raise ValueError(f"{name} is {bias.dtype}{bias.shape}, not float64({width},).")
    if not np.isfinite(bias).all():
        raise ValueError(f"{name} holds NaN or infinite numbers.")


def _largest(bias):
    return float(np.abs(bias).max())


def _gamma(terms):
    return terms * _UNIT / (1.0 - terms * _UNIT)
