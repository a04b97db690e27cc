"""Networks whose logits are scores: 1-Lipschitz in W whatever their parameters are.

Potentials, then sorting and dense layers in turn (`wsjax.lipschitz`). Parameters are free;
what the theorem needs of them is made on the way: potentials are divided by their
slope if it is more than one, rows by their L1 norm. `frozen` makes a
`network.LipschitzNetwork` of them, which certificates rest on.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from wsjax import lipschitz, metrics, potentials
from wsjax.network import LipschitzNetwork, quantised_rows


class PotentialNet(nn.Module):
    """Scores of images by what potentials measure.

    Attributes:
      num_classes: number of scores.
      potentials: J, how many.
      widths: of the dense layers between potentials and scores.
      group: how many neighbours are sorted together; divides J and the widths.
      ground_metric: "l1" or "l2", of the slopes.
      spread: how many inputs a row starts with.
    """

    num_classes: int = 10
    potentials: int = 1024
    widths: tuple[int, ...] = (512,)
    group: int = 8
    ground_metric: str = "l2"
    spread: int = 8

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Scores `[B, K]` of images `[B, H, W, C]`; `train` changes nothing."""
        del train
        self._check()
        weights = self.param("potentials", _flat_start, (self.potentials, *images.shape[1:]))
        slopes = jax.lax.stop_gradient(
            potentials.near_slopes(weights, self.ground_metric)
        )
        weights = weights / jnp.maximum(slopes, 1.0)[:, None, None, None]
        mass = images.sum((1, 2, 3), keepdims=True)
        # Offsets start where a picture of the mean is zero, see `started`.
        found = lipschitz.measure(images / mass, weights)
        found = found + self.param("offsets", nn.initializers.zeros, (self.potentials,))
        for number, width in enumerate((*self.widths, self.num_classes)):
            found = lipschitz.sorted_groups(found, self.group)
            shape = width, found.shape[-1]
            rows = self.param(f"rows_{number}", _sparse_rows, shape, self.spread)
            bias = self.param(f"bias_{number}", nn.initializers.zeros, (width,))
            found = lipschitz.dense(found, lipschitz.unit_rows(rows), bias)
        return found

    def constants(self) -> jax.Array:
        """`[K, K]` Lipschitz constants of the differences of scores."""
        rows = self.get_variable("params", f"rows_{len(self.widths)}")
        return lipschitz.pairwise_constants(lipschitz.unit_rows(jnp.asarray(rows)))

    def _check(self):
        metrics.check_ground_metric(self.ground_metric)
        for name, width in (
            ("potentials", self.potentials),
            *(("widths", width) for width in self.widths),
        ):
            if width < 1 or self.group < 1 or width % self.group:
                raise ValueError(
                    f"model.{name}={width} is not a positive multiple of "
                    f"model.group={self.group}."
                )
        if self.spread < 1:
            raise ValueError(f"model.spread={self.spread} must be at least 1.")

    def started(self, params: Any, images: np.ndarray, labels: np.ndarray, seed: int):
        """Parameters that start from Kantorovich potentials of pairs of images.

        Args:
          params: fresh ones.
          images: `[N, H, W, C]` of the training set, in any unit.
          labels: `[N]` int.
          seed: of the pairs.

        Returns:
          Parameters; what potentials measure of the mean image is taken off.

        Raises:
          ValueError: see `potentials.between_classes`.
        """
        found = potentials.between_classes(
            images, labels, self.potentials, self.ground_metric, seed=seed
        )
        mass = images.sum((1, 2, 3), keepdims=True, dtype=np.float64)
        mean = (images / np.where(mass > 0, mass, 1.0)).mean(0)
        offsets = -lipschitz.measure(mean[None], found)[0]
        return {
            **params,
            "potentials": jnp.asarray(found, jnp.float32),
            "offsets": jnp.asarray(offsets, jnp.float32),
        }

    def projected(self, params: Any) -> Any:
        """Parameters nearer to what they stand for: in training, after each update.

        Potentials less steep by one `potentials.sweep`, rows in the unit ball. What is
        left is made on the way through the network; but an optimizer that may leave the
        ball and is scaled back on the way comes less far (docs/potentials.md).
        """
        moved = {"potentials": potentials.sweep(params["potentials"], self.ground_metric)}
        for name, value in params.items():
            if name.startswith("rows"):
                moved[name] = lipschitz.onto_unit_rows(value)
        return {**params, **moved}

    def frozen(self, params: Any, exponent: int = 10) -> LipschitzNetwork:
        """The network that certificates rest on, in whole numbers.

        Args:
          params: trained ones.
          exponent: potentials become multiples of `2**-exponent` pixels.

        Returns:
          A `LipschitzNetwork` of slopes and norms that are exact.
        """
        given = {name: np.asarray(value, np.float64) for name, value in params.items()}
        weights = given["potentials"]
        steep = np.maximum(potentials.slopes(weights, self.ground_metric), 1.0)
        weights = weights / steep[:, None, None, None]
        # About their middle they need fewer bits. Of images of mass one, any number
        # that all pixels have in common is measured as it is.
        middle = (weights.max((1, 2, 3)) + weights.min((1, 2, 3))) / 2
        units = potentials.quantised(
            weights - middle[:, None, None, None], self.ground_metric, exponent
        )
        return LipschitzNetwork(
            units,
            exponent,
            given["offsets"] + middle,
            tuple(
                quantised_rows(given[f"rows_{number}"], given[f"bias_{number}"])
                for number in range(len(self.widths))
            ),
            quantised_rows(
                given[f"rows_{len(self.widths)}"], given[f"bias_{len(self.widths)}"]
            ),
            group=self.group,
            ground_metric=self.ground_metric,
        )


def _flat_start(key, shape):
    """Slopes of less than one in random directions, for images that bring no start."""
    _, height, width, _ = shape
    angles = jax.random.uniform(key, (shape[0], 1, 1, shape[3]), maxval=2 * jnp.pi)
    y, x = np.mgrid[:height, :width, :1][:2] * 0.5
    return y * jnp.sin(angles) + x * jnp.cos(angles)


def _sparse_rows(key, shape, spread):
    """Rows of L1 norm one with few entries: sums of many numbers hardly vary."""
    key_where, key_what = jax.random.split(key)
    chosen = jax.random.uniform(key_where, shape) < spread / shape[1]
    rows = jnp.where(chosen, jax.random.normal(key_what, shape), 0.0)
    return rows / (jnp.abs(rows).sum(1, keepdims=True) + 1e-9)
