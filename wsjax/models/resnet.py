"""Residual networks of He et al. 2016, for CIFAR-sized and ImageNet-sized images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from wsjax.models.conv import in_unit

_he_normal = initializers.variance_scaling(2.0, "fan_out", "normal")


class _Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or 1-3-1 with a bottleneck."""

    width: int
    stride: int
    bottleneck: bool
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(y, width, kernel, stride=1):
            return nn.Conv(
                width,
                (kernel, kernel),
                strides=(stride, stride),
                padding=kernel // 2,
                use_bias=False,
                kernel_init=_he_normal,
                dtype=self.dtype,
            )(y)

        def norm(y):
            return nn.BatchNorm(
                use_running_average=not train, momentum=0.9, dtype=self.dtype
            )(y)

        if self.bottleneck:
            out = 4 * self.width
            y = nn.relu(norm(conv(x, self.width, 1)))
            y = nn.relu(norm(conv(y, self.width, 3, self.stride)))
            y = norm(conv(y, out, 1))
        else:
            out = self.width
            y = nn.relu(norm(conv(x, self.width, 3, self.stride)))
            y = norm(conv(y, self.width, 3))
        if x.shape != y.shape:
            x = norm(conv(x, out, 1, self.stride))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network whose first act is to standardise the channels.

    Attributes:
      num_classes: number of logits.
      stages: residual blocks per stage.
      bottleneck: whether blocks are 1-3-1 convolutions (ResNet-50) or 3-3.
      stem: "cifar" (one 3 x 3 convolution), "strided" (the same with stride 2, for a
        CPU) or "imagenet" (7 x 7, stride 2, pool).
      width: channels of the first stage; each later stage doubles them.
      mean: per-channel mean that is subtracted, pixel units; one entry serves all.
      std: per-channel standard deviation that is divided by.
      unit: "pixels" or "mass", as in `conv.ConvSmall`; `mean` and `std` refer to it.
      dtype: computation type, e.g. "bfloat16"; parameters stay float32, logits are
        float32. The classifier certified is the one in this arithmetic.
    """

    num_classes: int
    stages: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    stem: str = "cifar"
    width: int = 64
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    unit: str = "pixels"
    dtype: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[B, K]` of images `[B, H, W, C]` in pixel units.

        With `train=True` batch statistics normalise and the running ones are
        updated: apply with `mutable=["batch_stats"]`.
        """
        dtype = None if self.dtype is None else jnp.dtype(self.dtype)
        images = in_unit(images, self.unit)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, images.shape[-1]):
                raise ValueError(
                    f"model.{name}={tuple(values)} has {len(values)} entries; it needs "
                    f"one, or one for each of {images.shape[-1]} channels."
                )
        x = (images - jnp.array(self.mean, images.dtype)) / jnp.array(
            self.std, images.dtype
        )
        if self.stem not in ("cifar", "strided", "imagenet"):
            raise ValueError(
                f"model.stem={self.stem!r} is not one of ('cifar', 'strided', "
                f"'imagenet')."
            )
        large = self.stem == "imagenet"
        x = nn.Conv(
            self.width,
            (7, 7) if large else (3, 3),
            strides=(1, 1) if self.stem == "cifar" else (2, 2),
            padding=3 if large else 1,
            use_bias=False,
            kernel_init=_he_normal,
            dtype=dtype,
        )(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype)(x)
        x = nn.relu(x)
        if large:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = _Block(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    dtype=dtype,
                )(x, train)
        x = jnp.mean(x, axis=(1, 2)).astype(jnp.float32)
        return nn.Dense(self.num_classes)(x)
