"""Images as whole numbers that noise of whole numbers is added to.

What the laws of `exact` and `exact_flow` have in common; the theorems are there.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.noise import NoiseLaw


class WholeNumbers(NoiseLaw):
    """A law whose noise is added to what `prepare` makes of an image.

    Of an image of floats `perturb` makes a copy by the law itself: what gradients need, and
    no certificate may use.

    Attributes:
      law: the law in real arithmetic.
      image_shape: `(H, W, C)` of the images.
    """

    law: Any
    image_shape: Any

    def prepare(self, image: Any) -> np.ndarray:
        """Whole numbers that stand for an image; on the host, in float64.

        Args:
          image: `[H, W, C]` float, nonnegative, of any mass.

        Returns:
          `[D + 1, 1, 1]` int32: those of `numbers`, and the bits of the float32 mass.

        Raises:
          ValueError: another shape, or numbers beyond 2^30.
        """
        pixels = np.asarray(image, np.float64)
        if pixels.shape != self.image_shape:
            raise ValueError(
                f"Exact votes are for one image of shape {self.image_shape} at a time, "
                f"got {pixels.shape}; draws cannot be shared (share_draws=1)."
            )
        # Correctly rounded sums: equal for images whose masses are equal.
        masses = np.array([math.fsum(x.ravel()) for x in np.moveaxis(pixels, 2, 0)])
        mass = math.fsum(masses)
        whole = self.numbers(pixels / mass, masses / mass)
        most = float(np.abs(whole).max())
        if not most < 2**30:
            raise ValueError(f"{self.too_large(most, 2.0**30)} Smooth with more noise.")
        bits = np.float32(mass).reshape(1).view(np.int32)
        return np.append(whole.astype(np.int32), bits)[:, None, None]

    def perturb(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """One noisy picture.

        Args:
          key: used up by this call.
          image: what `prepare` made of one, or an image of floats; see the class.

        Returns:
          `[H, W, C]` float32.
        """
        if jnp.issubdtype(image.dtype, jnp.floating):
            return self.law.perturb(key, image)
        mass = jax.lax.bitcast_convert_type(image[-1, 0, 0], jnp.float32)
        return mass * self.shown(key, image[:-1, 0, 0])

    def numbers(self, pixels: np.ndarray, masses: np.ndarray) -> np.ndarray:
        """Whole numbers, as floats, of an image of mass one.

        Args:
          pixels: `[H, W, C]` float64.
          masses: `[C]`, those of its channels, correctly rounded.

        Returns:
          Float64 array of D.
        """
        raise NotImplementedError

    def too_large(self, number: float, end: float) -> str:
        """A sentence about a number that is too large, and where they end."""
        raise NotImplementedError

    def shown(self, key: jax.Array, whole: jax.Array) -> jax.Array:
        """The picture of mass one that the sums of numbers and noise show.

        Args:
          key: used up by this call.
          whole: `[D]` int32, of `numbers`.

        Returns:
          `[H, W, C]` float32.
        """
        raise NotImplementedError
