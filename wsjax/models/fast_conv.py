"""A 3 x 3 convolution whose gradient is fast on a CPU."""

import jax
import jax.numpy as jnp

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# Pixels whose products are summed at a time on a CPU: few enough to stay in its caches.
_PIXELS = 2_000


@jax.custom_vjp
def conv3x3(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of stride 1 that keeps the size, borders zero.

    The gradient of the kernel is a convolution whose window is a whole image, which
    XLA computes at a fifth of the speed of others on a CPU; here it is matrix products
    of a few images at a time there (measured in docs/performance.md).

    Args:
      images: `[B, H, W, C]` float.
      kernel: `[3, 3, C, K]` of the same dtype.

    Returns:
      `[B, H, W, K]`.
    """
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT
    )


def _forward(images, kernel):
    return conv3x3(images, kernel), (images, kernel)


def _backward(kept, above):
    images, kernel = kept
    along = conv3x3(above, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    across = jax.lax.platform_dependent(
        images, above, cpu=_kernel_gradient, default=kernel_gradient_by_convolution
    )
    return along, across


conv3x3.defvjp(_forward, _backward)


def kernel_gradient_by_convolution(images: jax.Array, above: jax.Array) -> jax.Array:
    """Gradient `[3, 3, C, K]` by a convolution in which images are channels.

    Args:
      images: `[B, H, W, C]`.
      above: `[B, H, W, K]`, gradient of what `conv3x3` made of them.
    """
    return jax.lax.conv_general_dilated(
        images,
        above,
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )


def _kernel_gradient(images, above):
    """The same by matrix products, of three taps in a row at a time."""
    count, height, width, channels = images.shape
    together = max(1, min(count, _PIXELS // (height * width)))
    missing = -count % together

    def pieces(x):
        # Images of zeros add nothing.
        x = jnp.pad(x, ((0, missing), (0, 0), (0, 0), (0, 0)))
        return x.reshape(-1, together, *x.shape[1:])

    def add(total, piece):
        x, g = piece
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows = jnp.concatenate([x[:, :, j : j + width] for j in range(3)], -1)
        taps = [rows[:, i : i + height].reshape(-1, 3 * channels) for i in range(3)]
        return total + jnp.stack([t.T @ g.reshape(len(t), -1) for t in taps]), None

    start = jnp.zeros((3, 3 * channels, above.shape[-1]), images.dtype)
    total, _ = jax.lax.scan(add, start, (pieces(images), pieces(above)))
    return total.reshape(3, 3, channels, -1)
