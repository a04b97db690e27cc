"""Tests of wsjax.fixed."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import Counting, FixedVotes, fixed, make_key, make_smoothing, votes

SHAPE = (2, 3, 1)
IMAGE = np.random.default_rng(0).uniform(0.5, 1.0, SHAPE).astype(np.float32)
LAPLACE = make_smoothing("flow_laplace", 0.1, "l1")
COUNTING = Counting(block_size=8, devices=tuple(jax.local_devices()[:1]))


def plain(images):
    """Three of the pixels as logits."""
    return 9 * images.reshape(len(images), -1)[:, :3]


def check(classify, image=IMAGE):
    fixed.check_fixed(votes.as_argument(classify), image)


class CheckFixedTest(parameterized.TestCase):
    @parameterized.parameters(1e-30, 1.0, 1e20)
    def test_functions_of_each_image_pass(self, unit):
        check(lambda images: unit * plain(images))
        check(lambda images: plain(images).astype(jnp.bfloat16))
        check(lambda images: 0 * plain(images))
        check(jax.jit(plain))
        check(lambda images: jnp.log(-plain(images)))  # No numbers: told elsewhere.

    @parameterized.named_parameters(
        ("centred", lambda x: plain(x - x.mean(0)), "the other images"),
        (
            "standardised",
            lambda x: plain((x - x.mean(0)) / x.std(0)),
            "the other images",
        ),
        ("half_centred", lambda x: plain(x - 0.1 * x.mean(0)), "the other images"),
        ("neighbours", lambda x: plain(x + jnp.roll(x, 1, 0)), "the order"),
        ("places", lambda x: plain(x) + jnp.arange(len(x))[:, None], "the order"),
        (
            "dropout",
            lambda x: plain(x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)),
            "the order",
        ),
    )
    def test_what_depends_on_the_batch_is_refused(self, classify, message):
        with self.assertRaisesRegex(ValueError, f"no fixed function.*with {message}"):
            check(classify)
        certifier = FixedVotes(classify, LAPLACE, n0=20, n=20, counting=COUNTING)
        for ask in (certifier.certify, certifier.predict):
            with self.assertRaisesRegex(ValueError, "no fixed function of an image"):
                ask(IMAGE, make_key(0))

    def test_a_closure_over_what_changes_is_refused(self):
        weights = {"now": np.float32([1, 2, 3])}

        def stale(images):
            return plain(images) * weights["now"]

        def certify():
            certifier = FixedVotes(stale, LAPLACE, n0=20, n=20, counting=COUNTING)
            return certifier.certify(IMAGE, make_key(0))

        first = certify()
        weights["now"] = np.float32([1, 2, 3])  # The same numbers.
        self.assertEqual(certify().radius, first.radius)
        for other in (np.float32([3, 2, 1]), 2.0):
            weights["now"] = other
            with self.assertRaisesRegex(
                ValueError, "another function than when it was"
            ):
                certify()

    def test_new_weights_and_shapes_of_one_function_pass(self):
        def apply(weights, images):
            return plain(images) * weights

        for weights in ([1, 2, 3], [3, 2, 1], [[1, 2, 3]]):
            classify = jax.tree_util.Partial(apply, jnp.float32(weights))
            for image in (IMAGE, np.concatenate([IMAGE, IMAGE])):
                check(classify, image)

    def test_a_classifier_is_tried_once_for_each_certifier(self):
        traced = []

        def classify(images):
            traced.append(len(images))
            return plain(images)

        certifier = FixedVotes(classify, LAPLACE, n0=20, n=20, counting=COUNTING)
        certifier.certify(IMAGE, make_key(0))
        before = len(traced)
        certifier.certify(IMAGE, make_key(1))
        list(certifier.predict_each([IMAGE] * 2, [make_key(2), make_key(3)]))
        self.assertLen(traced, before)


if __name__ == "__main__":
    absltest.main()
