"""The paper's MNIST network, sized by its fields."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers

# Uniform on +-1/sqrt(fan-in), the default of the framework the paper used. With its
# small learning rate the start matters: Flax's defaults train to other accuracies.
_kernel_init = initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def _bias_init(fan_in: int):
    bound = fan_in**-0.5

    def init(key, shape, dtype=None):
        return jax.random.uniform(key, shape, dtype or float, -bound, bound)

    return init


class ConvSmall(nn.Module):
    """Two strided 4 x 4 convolutions and two dense layers, ReLU in between.

    With the default fields this is the MNIST network of Levine & Feizi's (and Wong
    et al.'s) experiments: 166,406 parameters at 28 x 28, no normalisation.

    Attributes:
      num_classes: number of logits.
      widths: channels of the two convolutions.
      hidden: units of the dense layer before the logits.
      unit: "pixels", or "mass" to divide each image by its mean pixel first: noise
        that is a fraction of the mass then looks alike in all images.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (16, 32)
    hidden: int = 100
    unit: str = "pixels"

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[B, K]` of images `[B, H, W, C]`.

        `train` chooses how the first convolution is computed, up to rounding.
        """
        return self._layers_from(0, in_unit(images, self.unit), train)

    def first(self, images: jax.Array) -> dict[str, jax.Array]:
        """What of the network is linear in the images; `rest` makes logits of it.

        That is the first convolution without its bias and, where images are to be
        divided by it, their mean pixel.

        Args:
          images: `[B, H, W, C]`.

        Returns:
          Arrays with a leading axis of size B.
        """
        kernel: jax.Array = self.get_variable("params", "Conv_0")["kernel"]
        products = _first_convolution(images.shape[-1])(
            images, kernel, _STRIDES, _PADDING, dimension_numbers=_LAYOUT
        )
        even = all(size % 2 == 0 for size in products.shape[1:3])
        if even and len(self.widths) > 1 and jax.default_backend() == "cpu":
            products = _windows(products)
        return linear_features(products, images, self.unit)

    def rest(self, features: dict[str, jax.Array]) -> jax.Array:
        """Logits `[B, K]` of what `first` made of images, or of a sum of such."""
        bias: jax.Array = self.get_variable("params", "Conv_0")["bias"]
        x = features_in_unit(features)
        if x.shape[-1] == self.widths[0]:
            return self._layers_from(1, nn.relu(x + bias))
        # Windows reach over the border. What is there has to be 0 after the ReLU, so
        # its bias is minus infinity.
        _, height, width, _ = x.shape
        beyond = _beyond_border(2 * height, 2 * width)[..., None]
        bias = (beyond.astype(x.dtype) + bias).reshape(height, width, -1)
        second: dict[str, jax.Array] = self.get_variable("params", "Conv_1")
        kernel = second["kernel"].reshape(-1, self.widths[1])
        x = nn.relu(nn.relu(x + bias) @ kernel + second["bias"])
        return self._layers_from(2, x)

    @nn.compact
    def _layers_from(self, done, x, train=False):
        """Logits of what the first `done` convolutions made."""
        for number, width in list(enumerate(self.widths))[done:]:
            # By rows where gradients of the weights are not wanted.
            channels = x.shape[-1] if number == 0 and not train else None
            x = nn.Conv(
                width,
                (4, 4),
                strides=_STRIDES,
                padding=_PADDING,
                kernel_init=_kernel_init,
                bias_init=_bias_init(16 * x.shape[-1]),
                conv_general_dilated=_first_convolution(channels),
                name=f"Conv_{number}",
            )(x)
            x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(_dense(self.hidden, x.shape[-1], name="Dense_0")(x))
        return _dense(self.num_classes, self.hidden, name="Dense_1")(x)


_STRIDES, _PADDING = (2, 2), ((1, 1), (1, 1))
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _first_convolution(channels):
    """The fastest convolution of images with that many channels."""
    return _by_rows_on_cpu if channels == 1 else jax.lax.conv_general_dilated


def _windows(images, beyond=0.0, xp=jnp):
    """What each output of a convolution sees, `[B, H // 2, W // 2, 16 * C]`.

    On a CPU that convolution is a matrix product then, a third faster where the windows
    come for little: here they are laid out before images and noise meet.
    """
    _, height, width, _ = images.shape
    padded = xp.pad(images, ((0, 0), *_PADDING, (0, 0)), constant_values=beyond)
    seen = [
        padded[:, row : row + height : 2, column : column + width : 2]
        for row in range(4)
        for column in range(4)
    ]
    return xp.concatenate(seen, axis=-1)


@functools.cache
def _beyond_border(height, width):
    """`[H // 2, W // 2, 16]`: minus infinity where a window is not in the image."""
    return _windows(np.zeros((1, height, width, 1)), -np.inf, np)[0]


def _by_rows_on_cpu(images, kernel, strides, padding, **options):
    """A 4 x 4 convolution of stride 2 and padding 1, by matrix products on a CPU.

    A convolution of one channel has products too small to be fast there. Half of the
    pixels of four rows against a banded matrix do four times the arithmetic in a third
    of the time (measured on AVX2). The arguments are those of
    `jax.lax.conv_general_dilated`.
    """

    def as_it_is(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)

    shape = (tuple(strides), tuple(map(tuple, padding)), kernel.shape[:3])
    _, height, width, _ = images.shape
    if shape != ((2, 2), ((1, 1), (1, 1)), (4, 4, 1)) or height % 2 or width % 4:
        return as_it_is(images, kernel)
    return jax.lax.platform_dependent(images, kernel, cpu=_by_rows, default=as_it_is)


def _by_rows(images, kernel):
    """`[B, H, W, 1]` by `[4, 4, 1, K]` to `[B, H // 2, W // 2, K]`."""
    count, height, width, _ = images.shape
    out, channels, seen = width // 4, kernel.shape[-1], width // 2 + 2
    band = jnp.einsum("xod,rdk->rxok", _taps(seen, out), kernel[:, :, 0])
    padded = jnp.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
    pairs = padded.reshape(count, height // 2 + 1, 2, width + 2)
    halves = jnp.stack([pairs[..., :seen], pairs[..., -seen:]], axis=2)
    halves = halves.reshape(count, height // 2 + 1, 2, 2 * seen)
    fours = jnp.concatenate([halves[:, :-1], halves[:, 1:]], axis=-1)
    rows = fours.reshape(-1, 4 * seen) @ band.reshape(4 * seen, out * channels)
    return rows.reshape(count, height // 2, 2 * out, channels)


@functools.cache
def _taps(seen, out):
    """`[seen, out, 4]`: one where a column is the d-th that an output looks at."""
    x, o, d = np.ogrid[:seen, :out, :4]
    return (x == 2 * o + d).astype(np.float32)


def in_unit(images: jax.Array, unit: str) -> jax.Array:
    """Images `[B, H, W, C]` as they are, or each divided by its mean pixel.

    Noise leaves the mass of an image as it is, and so does an adversary: dividing by
    it is a fixed function of the image.

    Args:
      images: in pixel units.
      unit: "pixels" or "mass".

    Returns:
      `[B, H, W, C]`.

    Raises:
      ValueError: an unknown unit.
    """
    if unit == "pixels":
        return images
    if unit == "mass":
        return images / jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    raise ValueError(f"model.unit={unit!r} is not one of ('pixels', 'mass').")


def linear_features(
    products: jax.Array, images: jax.Array, unit: str
) -> dict[str, jax.Array]:
    """What is linear in images: products, and what `features_in_unit` divides them by.

    Args:
      products: `[B, ...]`, linear in the images.
      images: `[B, H, W, C]`.
      unit: as in `in_unit`.

    Returns:
      Arrays with a leading axis of size B.
    """
    if unit == "pixels":
        return {"products": products}
    return {"products": products, "mean": jnp.mean(images, axis=(1, 2, 3))}


def features_in_unit(features: dict[str, jax.Array]) -> jax.Array:
    """The products `[B, ...]` that images `in_unit` would have."""
    x = features["products"]
    if "mean" not in features:
        return x
    return x / features["mean"].reshape(-1, *(1,) * (x.ndim - 1))


def _dense(units: int, fan_in: int, name: str) -> nn.Dense:
    return nn.Dense(
        units, kernel_init=_kernel_init, bias_init=_bias_init(fan_in), name=name
    )
