"""Classifiers of other frameworks: the same votes, certificates and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import wsjax
from wsjax import make_key, votes
from wsjax.attacks.registry import METHODS

SHAPE, CLASSES = (6, 5, 1), 4
WEIGHTS = np.random.default_rng(0).normal(size=(30, CLASSES)).astype(np.float32)
IMAGE = np.random.default_rng(1).uniform(0.1, 1, SHAPE).astype(np.float32)


def in_numpy(images):
    assert type(images) is np.ndarray and images.dtype == np.float32
    return 9 * images.reshape(len(images), -1) @ WEIGHTS


def in_jax(images):
    return 9 * images.reshape(len(images), -1) @ WEIGHTS


def gradient(images, above):
    return (9 * above @ WEIGHTS.T).reshape(images.shape)


SMOOTHING = wsjax.make_smoothing("flow_laplace", sigma=0.05, ground_metric="l2")


class CountingTest(parameterized.TestCase):
    @parameterized.parameters(None, 7, 64)
    def test_votes_are_those_of_the_same_function_in_jax(self, batch_size):
        classify = wsjax.HostClassifier(in_numpy, batch_size=batch_size)
        key, law = make_key(3), SMOOTHING.noise
        expected = votes.count_votes(key, IMAGE, in_jax, law.perturb, n=130, start=20)
        for block_size in (50, 1000):
            found = votes.count_votes(
                key,
                IMAGE,
                classify,
                law.perturb,
                n=130,
                start=20,
                block_size=block_size,
            )
            np.testing.assert_array_equal(found, expected)
        self.assertGreater(np.count_nonzero(expected), 1)

    def test_several_images_and_stacks_get_rows_of_their_own(self):
        classify = wsjax.HostClassifier(in_numpy)
        images = np.stack([IMAGE, IMAGE[::-1], IMAGE[:, ::-1], 0.5 * IMAGE])
        for given in (images, images.reshape(2, 2, *SHAPE)):
            keys = jax.random.split(jax.random.key(0), len(given))
            args = (keys, given)
            found = votes.count_votes_each(
                *args, classify, SMOOTHING.noise.perturb, n=40
            )
            expected = votes.count_votes_each(
                *args, in_jax, SMOOTHING.noise.perturb, n=40
            )
            np.testing.assert_array_equal(found, expected)

    @parameterized.parameters(
        (wsjax.FixedVotes, {}),
        (wsjax.VotesAtRadii, {"radii": (0.001, 0.002)}),
        (wsjax.PilotVotes, {"max_radius_loss": 0.1}),
    )
    def test_every_kind_that_votes_takes_it(self, kind, settings):
        weak = wsjax.make_smoothing("flow_laplace", sigma=0.005, ground_metric="l2")
        both = [
            kind(c, weak, n0=100, n=500, **settings).certify(IMAGE, make_key(1))
            for c in (wsjax.HostClassifier(in_numpy), in_jax)
        ]
        self.assertEqual(both[0].label, both[1].label)
        self.assertEqual(both[0].radius, both[1].radius)
        self.assertGreater(both[0].radius, 0)

    def test_copies_without_numbers_vote_for_nothing(self):
        def broken(images):
            logits = np.array(in_numpy(images))
            logits[::2, 0] = np.nan
            return logits

        counts = votes.count_votes(
            make_key(0),
            IMAGE,
            wsjax.HostClassifier(broken),
            SMOOTHING.noise.perturb,
            n=20,
            block_size=20,
        )
        self.assertEqual(counts.sum(), 10)

    @parameterized.parameters(
        (lambda x: None, TypeError, "returned nothing"),
        (lambda x: {"logits": x}, TypeError, r"dict with keys \['logits'\]"),
        (lambda x: (x, x), TypeError, "a tuple of 2"),
        (lambda x: "3", TypeError, "a str"),
        (lambda x: x[:, 0, 0, 0], ValueError, r"float32 \(2,\).*\[2, number of"),
        (lambda x: in_numpy(x)[:1], ValueError, r"float32 \(1, 4\)"),
        (lambda x: np.array([["a"], ["b"]]), ValueError, "<U1"),
    )
    def test_refuses_what_is_no_logits(self, function, error, message):
        with self.assertRaisesRegex(error, message):
            wsjax.HostClassifier(function)(np.ones((2, *SHAPE)))

    def test_refuses_settings(self):
        with self.assertRaisesRegex(TypeError, "callable, got int"):
            wsjax.HostClassifier(3)
        with self.assertRaisesRegex(ValueError, "batch_size=0 is not"):
            wsjax.HostClassifier(in_numpy, batch_size=0)


class GradientTest(parameterized.TestCase):
    def test_gradients_and_attacks_are_those_of_the_same_function_in_jax(self):
        classify = wsjax.HostClassifier(in_numpy, gradient, batch_size=3)
        images = np.stack([IMAGE, IMAGE[::-1]])
        above = jnp.arange(8.0).reshape(2, 4)

        def total(classify, images):
            return (above * classify(images)).sum()

        found = jax.jit(jax.grad(lambda x: total(classify, x)))(images)
        expected = jax.grad(lambda x: total(in_jax, x))(images)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

        labels = np.asarray(in_jax(images)).argmax(1)
        attack = METHODS["flow"]
        settings = attack.settings(ground_metric="l2", max_steps=20)
        results = [
            attack.run(images, labels, c, key=make_key(0), settings=settings)
            for c in (classify, in_jax)
        ]
        np.testing.assert_allclose(results[0].epsilon, results[1].epsilon, rtol=1e-4)

    def test_says_so_where_there_is_none(self):
        classify = wsjax.HostClassifier(in_numpy)
        with self.assertRaisesRegex(Exception, "classifier has no gradient"):
            jax.grad(lambda x: classify(x).sum())(jnp.asarray(IMAGE[None]))


if __name__ == "__main__":
    absltest.main()
