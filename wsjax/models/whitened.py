"""A network on whitened patches, for images of the size of CIFAR-10's.

Few products for what it reaches: an image is seen at 31 x 31 once, and halved by each
group. The form is that of Page's and Jordan's networks (D. Page 2018, "How to train your
ResNet"; K. Jordan 2024, arXiv:2404.00498).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers

from wsjax.models.conv import in_unit
from wsjax.models.fast_conv import conv3x3

_he_normal = initializers.variance_scaling(2.0, "fan_in", "normal")

# Added to the variances of patches, as a fraction of the largest: directions in which
# there is next to nothing are not blown up.
_FLOOR = 1e-3


class WhitenedNet(nn.Module):
    """Whitened 2 x 2 patches, then groups of two 3 x 3 convolutions, then a maximum.

    Each group halves the image after its first convolution. What whitens patches is
    no parameter but statistics of training images (`started`), kept with the running
    ones of normalisation.

    Attributes:
      num_classes: number of logits.
      widths: channels of each group.
      unit: "pixels" or "mass", as in `conv.ConvSmall`.
      dtype: computation type, e.g. "bfloat16"; parameters stay float32, logits are
        float32. The classifier certified is the one in this arithmetic.
    """

    num_classes: int = 10
    widths: Sequence[int] = (64, 256, 256)
    unit: str = "pixels"
    dtype: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[B, K]` of images `[B, H, W, C]` in pixel units.

        With `train=True` batch statistics normalise and the running ones are
        updated: apply with `mutable=["batch_stats"]`.
        """
        dtype = None if self.dtype is None else jnp.dtype(self.dtype)

        def conv(x, width):
            return nn.Conv(
                width,
                (3, 3),
                use_bias=False,
                kernel_init=_he_normal,
                dtype=dtype,
                conv_general_dilated=_conv3x3,
            )(x)

        def activated(x):
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                use_scale=False,
                dtype=dtype,
            )
            return nn.gelu(norm(x))

        if min(images.shape[1:3]) <= 2 ** len(self.widths):
            raise ValueError(
                f"model.widths={tuple(self.widths)} halves images of "
                f"{images.shape[1]} x {images.shape[2]} pixels {len(self.widths)} times, "
                f"which takes more than {2 ** len(self.widths)} along each axis."
            )
        x = in_unit(images, self.unit)
        count = 4 * x.shape[-1]
        shape = (2, 2, x.shape[-1], 2 * count)
        kernel = self.variable("batch_stats", "whitening", _both_signs, shape)
        mean = self.variable("batch_stats", "patch", jnp.zeros, shape[2:3])
        bias = self.param("whitened_bias", initializers.zeros, (2 * count,))
        x = (x - mean.value).astype(dtype)
        x = jax.lax.conv_general_dilated(
            x,
            kernel.value.astype(x.dtype),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = nn.gelu(x + bias.astype(x.dtype))
        for width in self.widths:
            x = activated(_halved(conv(x, width)))
            x = activated(conv(x, width))
        x = jnp.max(x, axis=(1, 2)).astype(jnp.float32)
        return nn.Dense(self.num_classes, use_bias=False)(x)

    def started(self, variables: Any, images: np.ndarray) -> Any:
        """Variables with the whitening of images as the network will see them.

        Args:
          variables: fresh ones.
          images: `[N, H, W, C]` in pixel units, noisy and filtered if they will be.

        Returns:
          Variables.
        """
        seen = np.asarray(in_unit(jnp.asarray(images), self.unit), np.float64)
        channels = seen.shape[-1]
        mean = seen.mean((0, 1, 2))
        patches = np.lib.stride_tricks.sliding_window_view(seen - mean, (2, 2), (1, 2))
        flat = np.moveaxis(patches, 3, -1).reshape(-1, 4 * channels)
        values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
        rows = vectors / np.sqrt(values + _FLOOR * values[-1])
        kernel = np.concatenate([rows, -rows], 1).reshape(2, 2, channels, -1)
        statistics = {
            **variables["batch_stats"],
            "whitening": jnp.asarray(kernel, jnp.float32),
            "patch": jnp.asarray(mean, jnp.float32),
        }
        return {**variables, "batch_stats": statistics}


def _conv3x3(images, kernel, strides, padding, **options):
    """`fast_conv.conv3x3` with the arguments of `jax.lax.conv_general_dilated`."""
    del strides, padding, options
    return conv3x3(images, kernel)


def _both_signs(shape):
    """The patches themselves, and minus them: what there is without statistics."""
    eye = np.eye(4 * shape[2], dtype=np.float32)
    return jnp.asarray(np.concatenate([eye, -eye], 1).reshape(shape))


def _halved(x):
    """The largest of each 2 x 2 pixels; a last odd row or column is left out.

    By slices: gradients of windowed maxima are many times slower on a CPU.
    """
    height, width = 2 * (x.shape[1] // 2), 2 * (x.shape[2] // 2)
    rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])
