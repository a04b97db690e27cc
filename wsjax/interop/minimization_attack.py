"""The flow attack behind the calling convention of foolbox's minimization attacks.

For code written against foolbox 3 (https://foolbox.jonasrauber.de); foolbox itself is
not imported. Models are callables that JAX can differentiate, such as foolbox's own
`JAXModel`:

    attack = WassersteinAttack(FlowAttack(ground_metric="l2"))
    raw, clipped, success = attack(model, images, labels, epsilons=[0.05, 0.1])
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wsjax.attacks.flow import FlowAttack, flow_attack
from wsjax.fast_random import check_seed, make_key


@dataclasses.dataclass(frozen=True)
class WassersteinAttack:
    """An attack object that is called with a model, inputs and a criterion.

    Attributes:
      settings: of the attack; a fixed radius is given by `epsilons` instead.
      seed: of random starts, as for `make_key`.
    """

    settings: FlowAttack = dataclasses.field(default_factory=FlowAttack)
    seed: int = 0

    def __post_init__(self):
        if self.settings.radius:
            raise ValueError(
                f"settings.radius={self.settings.radius} fixes one radius; leave it 0 "
                f"and pass epsilons when calling."
            )
        check_seed(self.seed)

    def __call__(
        self,
        model: Callable[[jax.Array], jax.Array],
        inputs: Any,
        criterion: Any,
        *,
        epsilons: float | Sequence[float] | None = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Looks for the nearest adversarial images, and judges them at each radius.

        Args:
          model: images `[N, H, W, C]` to logits; its `bounds`, if it has any, must be
            (0, 1).
          inputs: `[N, H, W, C]` float in [0, 1].
          criterion: labels `[N]`, or an object with `labels` (misclassification) or
            `target_classes` (a targeted attack).
          epsilons: None, a radius, or several; pixels x fraction of mass.

        Returns:
          `(raw, clipped, success)`: adversarial images; the same moved back into the
          ball of each radius; and whether the distance found is at most the radius,
          `[N]`. With several radii the first two are lists and the last is
          `[len(epsilons), N]`.

        Raises:
          ValueError: other bounds, a criterion of another kind, or as `flow_attack`.
        """
        bounds = tuple(getattr(model, "bounds", (0, 1)))
        if bounds != (0, 1):
            raise ValueError(f"model.bounds={bounds} must be (0, 1): pixels are mass.")
        labels, targeted = _labels_of(criterion)
        inputs = np.asarray(inputs)
        found = flow_attack(
            inputs,
            labels,
            model,
            key=make_key(self.seed),
            settings=dataclasses.replace(self.settings, targeted=targeted),
        )
        raw, distance = found.adversarial, found.epsilon
        if epsilons is None:
            return raw, raw, found.success
        several = np.atleast_1d(np.asarray(epsilons, float))
        clipped = []
        for epsilon in several:
            far = np.where(np.isfinite(distance), distance, 0)
            share = np.minimum(1, epsilon / np.maximum(far, np.finfo(float).tiny))
            share = share[:, None, None, None].astype(inputs.dtype)
            clipped.append(inputs + share * (raw - inputs))
        success = found.success & (distance <= several[:, None])
        if np.ndim(epsilons) == 0:
            return raw, clipped[0], success[0]
        return [raw] * len(several), clipped, success


def _labels_of(criterion):
    """Labels `[N]` and whether they are the wanted ones."""
    for name, targeted in (("target_classes", True), ("labels", False)):
        if hasattr(criterion, name):
            labels = getattr(criterion, name)
            # Foolbox wraps arrays in objects with the array under `raw`.
            return np.asarray(getattr(labels, "raw", labels)), targeted
    labels = np.asarray(criterion)
    if labels.ndim != 1:
        raise ValueError(
            f"criterion is neither labels [N] nor an object with labels or "
            f"target_classes: {type(criterion).__name__}."
        )
    return labels, False
