"""No attack on a smoothed classifier succeeds inside a certified radius: digits.

A certificate is wrong with probability alpha at most; alpha is small enough here that
one success inside a radius is a mistake somewhere. The attack finds something for most
images, at some five to ten times its radius: a few votes certify little.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import FixedVotes, make_key, make_smoothing
from wsjax.attacks import FlowAttack, flow_attack, smoothed
from wsjax.data import digits

LEVELS = {"n0": 200, "n": 2000, "alpha": 1e-4}
CASES = (
    ("laplace_l1", "flow_laplace", 0.02, "l1"),
    ("laplace_l2", "flow_laplace", 0.01, "l2"),
    ("power_law", "power_law", 0.005, "l2"),
)


def means_classifier():
    """Logits by the distance to the mean image of each class, in units of mass."""
    train = digits.load("train")
    images = train.images / train.images.sum((1, 2, 3), keepdims=True)
    means = np.stack([images[train.labels == k].mean(0) for k in range(10)])
    means = jnp.asarray(means, jnp.float32)

    def classify(images):
        shares = images / images.sum((1, 2, 3), keepdims=True)
        return -((shares[:, None] - means) ** 2).sum((2, 3, 4))

    return classify


class AttackSoundnessTest(parameterized.TestCase):
    @parameterized.named_parameters(*CASES)
    def test_nothing_is_found_inside_a_radius(self, noise, sigma, metric):
        test = digits.load("test")
        images = (test.images[:3] / np.float32(test.scale)).astype(np.float32)
        classify = means_classifier()
        options = {}
        if "gaussian" in noise or noise == "power_law":
            options = {"gamma": 2.0, "image_shape": images.shape[1:]}
        smoothing = make_smoothing(noise, sigma, metric, **options)
        certifier = FixedVotes(classify, smoothing, **LEVELS)
        certified = list(certifier.certify_each(images, map(make_key, range(3))))
        labels = np.array([result.label for result in certified])
        radii = np.array([result.radius for result in certified])
        self.assertGreaterEqual(np.sum(radii > 0), 3)
        settings = FlowAttack(
            ground_metric=metric,
            max_steps=40,
            num_samples=32,
            num_votes=500,
            start_radius=float(radii.max()),
        )
        found = flow_attack(
            images,
            np.where(labels < 0, 0, labels),
            smoothed(classify, smoothing, n=2000, alpha=0.05),
            key=jax.random.key(7),
            settings=settings,
        )
        ratios = []
        for place in np.flatnonzero(radii > 0):
            judge = FixedVotes(classify, smoothing, n=2000, alpha=0.01)
            answer = judge.predict(found.adversarial[place], make_key(100 + place))
            if answer.label not in (-1, labels[place]):
                ratios.append(found.epsilon[place] / radii[place])
        self.assertNotEmpty(ratios)
        self.assertGreater(min(ratios), 1)
        self.assertLess(min(ratios), 15)


if __name__ == "__main__":
    absltest.main()
