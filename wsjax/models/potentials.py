"""Networks whose outputs are scores: 1-Lipschitz in W whatever their parameters are.

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

    With `head="scores"` the last layer has one output a class, and a lead is divided by
    the L1 norm of the difference of two rows. With "pairs" it has one output for each
    pair of classes, `h_kj = -h_jk`, which says how far k is ahead of j; a score is the
    minimum of those of its class. If all `h_yj > 0`, then `g_y > 0 > h_jy >= g_j`, so half
    of the lead of y is at least the least of them.

    Attributes:
      num_classes: K, number of scores.
      potentials: J, how many.
      widths: of the dense layers between potentials and scores.
      groups: how many numbers are sorted together, of J and of each of `widths`; divides
        them.
      head: "scores" or "pairs".
      ground_metric: "l1" or "l2", of the slopes.
      start: "pairs", Kantorovich potentials of images of different classes (one after
        another, seconds for small images), or "waves", of random lengths and directions.
      spread: how many inputs a row starts with.
    """

    num_classes: int = 10
    potentials: int = 1024
    widths: tuple[int, ...] = (512,)
    groups: tuple[int, ...] = (8, 4)
    head: str = "pairs"
    ground_metric: str = "l2"
    start: str = "pairs"
    spread: int = 8

    @nn.compact
    def _outputs(self, images):
        """Outputs of the last layer, `[B, K]` or `[B, K (K - 1) / 2]`."""
        self._check()
        weights = self.param(
            "potentials", _flat_start, (*images.shape[1:], self.potentials)
        )
        slopes = jax.lax.stop_gradient(
            potentials.near_slopes(weights, self.ground_metric)
        )
        mass = images.sum((1, 2, 3), keepdims=True)
        # Potentials that are measured on differences from the mean image learn much
        # faster: what all images have in common moves none of them.
        mean = self.param("mean", nn.initializers.zeros, images.shape[1:])
        images = images / mass - jax.lax.stop_gradient(mean)
        found = lipschitz.measure(images, weights / jnp.maximum(slopes, 1.0))
        found = found + self.param("offsets", nn.initializers.zeros, (self.potentials,))
        for number, width in enumerate((*self.widths, self._outputs_wanted)):
            found = lipschitz.sorted_groups(found, self.groups[number])
            shape = width, found.shape[-1]
            rows: Any = self.param(f"rows_{number}", _sparse_rows, shape, self.spread)
            bias = self.param(f"bias_{number}", nn.initializers.zeros, (width,))
            found = lipschitz.dense(found, lipschitz.unit_rows(rows), bias)
        return found

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Scores `[B, K]` of images `[B, H, W, C]`; `train` changes nothing."""
        del train
        found = self._outputs(images)
        return _of_pairs(found, self.num_classes, -1).min(-1) if self._pairs else found

    def leads(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, K, K]`: the radius that each class has against each other one, to train.

        Their least is what is certified, or with `head="pairs"` at most that.
        """
        del train
        found = self._outputs(images)
        if not self._pairs:
            lead = found[:, :, None] - found[:, None]
            return lead / jnp.maximum(self.constants(), 1e-9)
        matrix = jnp.zeros((len(found), self.num_classes, self.num_classes))
        high, low = np.triu_indices(self.num_classes, 1)
        return matrix.at[:, high, low].set(found).at[:, low, high].set(-found)

    def constants(self) -> jax.Array | float:
        """Lipschitz constants of the differences of scores: `[K, K]`, or one for all."""
        if self._pairs:
            return 2.0
        rows: Any = self.get_variable("params", f"rows_{len(self.widths)}")
        return lipschitz.pairwise_constants(lipschitz.unit_rows(jnp.asarray(rows)))

    @property
    def _pairs(self):
        return self.head == "pairs"

    @property
    def _outputs_wanted(self):
        classes = self.num_classes
        return classes * (classes - 1) // 2 if self._pairs else classes

    def _check(self):
        metrics.check_ground_metric(self.ground_metric)
        for name, value, allowed in (
            ("head", self.head, ("scores", "pairs")),
            ("start", self.start, ("pairs", "waves")),
        ):
            if value not in allowed:
                raise ValueError(f"model.{name}={value!r} is not one of {allowed}.")
        widths = self.potentials, *self.widths
        if len(self.groups) != len(widths):
            raise ValueError(
                f"model.groups={tuple(self.groups)} has to name {len(widths)} numbers, one "
                f"for the potentials and one for each of model.widths="
                f"{tuple(self.widths)}."
            )
        for width, group in zip(widths, self.groups, strict=True):
            if width < 1 or group < 1 or width % group:
                raise ValueError(
                    f"model.potentials={self.potentials} and model.widths="
                    f"{tuple(self.widths)} have to be multiples of model.groups="
                    f"{tuple(self.groups)}."
                )
        if self.spread < 1:
            raise ValueError(f"model.spread={self.spread} must be at least 1.")

    def started(self, params: Any, images: np.ndarray, labels: np.ndarray, seed: int):
        """Parameters that start from potentials, as `start` says.

        Args:
          params: fresh ones.
          images: `[N, H, W, C]` of the training set, in any unit.
          labels: `[N]` int.
          seed: of the choice.

        Returns:
          Parameters, with the mean image.

        Raises:
          ValueError: see `potentials.between_classes`.
        """
        if self.start == "waves":
            shape = *images.shape[1:], self.potentials
            found = potentials.waves(shape, self.ground_metric, seed=seed)
        else:
            found = potentials.between_classes(
                images, labels, self.potentials, self.ground_metric, seed=seed
            )
        mass = images.sum((1, 2, 3), keepdims=True, dtype=np.float64)
        mean = (images / np.where(mass > 0, mass, 1.0)).mean(0)
        return {
            **params,
            "potentials": jnp.asarray(found, jnp.float32),
            "mean": jnp.asarray(mean, jnp.float32),
        }

    def projected(self, params: Any) -> Any:
        """Parameters nearer to what they stand for: in training, after each update.

        Potentials less steep by one `potentials.sweep`, rows in the unit ball. What is
        left is made on the way through the network; but an optimizer that may leave the
        ball and is scaled back on the way comes less far (docs/potentials.md).
        """
        moved = {
            "potentials": potentials.sweep(params["potentials"], self.ground_metric)
        }
        for name, value in params.items():
            if name.startswith("rows"):
                # Rows were in the ball before an update: few rounds are enough.
                moved[name] = lipschitz.onto_unit_rows(value, rounds=5)
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
        weights = weights / steep
        # About their middle they need fewer bits. Of images of mass one, any number
        # that all pixels have in common is measured as it is.
        middle = (weights.max((0, 1, 2)) + weights.min((0, 1, 2))) / 2
        units = potentials.quantised(weights - middle, self.ground_metric, exponent)
        # What is measured on differences from the mean image in training.
        mean = given["mean"]
        off = lipschitz.measure(mean[None], np.ldexp(units.astype(float), -exponent))[0]
        offsets = given["offsets"] - off + middle * (1.0 - mean.sum())
        layers: list[Any] = [
            (given[f"rows_{number}"], given[f"bias_{number}"])
            for number in range(len(self.widths) + 1)
        ]
        pieces = 1
        if self._pairs:
            classes, pieces = self.num_classes, self.num_classes - 1
            layers[-1] = tuple(
                np.concatenate(_of_pairs(x, classes, 0)) for x in layers[-1]
            )
        *hidden, last = (quantised_rows(*layer) for layer in layers)
        return LipschitzNetwork(
            units,
            exponent,
            offsets,
            tuple(hidden),
            last,
            groups=tuple(self.groups),
            pieces=pieces,
            ground_metric=self.ground_metric,
        )


def _flat_start(key, shape):
    """Slopes of less than one in random directions, for images that bring no start."""
    height, width, *rest = shape
    angles = jax.random.uniform(key, (1, 1, *rest), maxval=2 * jnp.pi)
    y, x = np.mgrid[:height, :width, :1, :1][:2] * 0.5
    return y * jnp.sin(angles) + x * jnp.cos(angles)


def _sparse_rows(key, shape, spread):
    """Rows of L1 norm one with few entries: sums of many numbers hardly vary."""
    key_where, key_what = jax.random.split(key)
    chosen = jax.random.uniform(key_where, shape) < spread / shape[1]
    rows = jnp.where(chosen, jax.random.normal(key_what, shape), 0.0)
    return rows / (jnp.abs(rows).sum(1, keepdims=True) + 1e-9)


def _of_pairs(found, classes, axis):
    """For each class its outputs against all others: one axis of pairs becomes two."""
    xp = found.__array_namespace__()
    number = np.zeros((classes, classes), int)
    number[np.triu_indices(classes, 1)] = np.arange(classes * (classes - 1) // 2)
    sign = np.triu(np.ones((classes, classes)), 1)
    others = ~np.eye(classes, dtype=bool)
    number, sign = (
        x[others].reshape(classes, classes - 1)
        for x in (number + number.T, sign - sign.T)
    )
    found = xp.take(found, xp.asarray(number), axis=axis)
    behind = found.ndim - sign.ndim if axis == 0 else 0
    return found * sign.reshape(*sign.shape, *(1,) * behind).astype(found.dtype)
