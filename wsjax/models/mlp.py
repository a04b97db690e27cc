"""Dense layers only: for pictures drawn from a view of few coordinates."""

import jax
from flax import linen as nn

from wsjax.models.conv import features_in_unit, in_unit, linear_features


class Mlp(nn.Module):
    """Dense layers with ReLU in between.

    A picture that is drawn from some eighty coordinates has no detail for
    convolutions to find, and matrix products are what every machine does fastest: at
    equal time this trains three times as many epochs as `ConvSmall`.

    Attributes:
      num_classes: number of logits.
      widths: units of the hidden layers.
      unit: "pixels" or "mass", as in `conv.ConvSmall`.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (512, 512)
    unit: str = "pixels"

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[B, K]` of images `[B, H, W, C]`; `train` changes nothing."""
        del train
        x = in_unit(images, self.unit)
        return self._layers_from(0, x.reshape(x.shape[0], -1))

    def first(self, images: jax.Array) -> dict[str, jax.Array]:
        """What of the network is linear in the images: see `ConvSmall.first`."""
        kernel: jax.Array = self.get_variable("params", "Dense_0")["kernel"]
        products = images.reshape(len(images), -1) @ kernel
        return linear_features(products, images, self.unit)

    def rest(self, features: dict[str, jax.Array]) -> jax.Array:
        """Logits `[B, K]` of what `first` made of images, or of a sum of such."""
        x = features_in_unit(features) + self.get_variable("params", "Dense_0")["bias"]
        return self._layers_from(1, nn.relu(x))

    @nn.compact
    def _layers_from(self, done, x):
        """Logits of what the first `done` layers made."""
        for number, width in list(enumerate(self.widths))[done:]:
            x = nn.relu(nn.Dense(width, name=f"Dense_{number}")(x))
        return nn.Dense(self.num_classes, name=f"Dense_{len(self.widths)}")(x)
