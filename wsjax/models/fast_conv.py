"""A 3 x 3 convolution whose gradient is fast on a CPU."""

import jax
import jax.numpy as jnp

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# Pixels whose products are summed at a time on a CPU: few enough to stay in its caches.
_PIXELS = 1_000


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
    # Products whose sums run down the columns of both sides take half as long again. One
    # side is turned, before the loop, where XLA does not turn it back; of large images
    # it is a loss.
    turned = height * width <= 500
    most = _PIXELS if turned else 2 * _PIXELS
    number = -(-count // max(1, most // (height * width)))
    together = -(-count // number)  # As even as can be.

    def pieces(x):
        # Images of zeros add nothing.
        x = jnp.pad(x, ((0, -count % together), (0, 0), (0, 0), (0, 0)))
        return x.reshape(-1, together, *x.shape[1:])

    def add(total, piece):
        x, g = piece
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows = jnp.concatenate([x[:, :, j : j + width] for j in range(3)], -1)
        taps = [rows[:, i : i + height].reshape(-1, 3 * channels) for i in range(3)]
        g = g if turned else g.T
        return total + jnp.stack([g @ tap for tap in taps]), None

    above = pieces(above)
    above = above.reshape(len(above), -1, above.shape[-1])
    start = jnp.zeros((3, above.shape[-1], 3 * channels), images.dtype)
    above = above.swapaxes(1, 2) if turned else above
    total, _ = jax.lax.scan(add, start, (pieces(images), above))
    return total.swapaxes(1, 2).reshape(3, 3, channels, -1)
