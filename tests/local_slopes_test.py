"""Tests of slopes near an image, against gradients at images nearby and an adversary."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from lipschitz_network_test import all_pairs, images, small_network

from wsjax import exact_distance, lipschitz, network
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.local_slopes import LocalSlopes
from wsjax.metrics import pixel_distances

KINDS = parameterized.product(metric=("l1", "l2"), pieces=(1, 2))


_COMPILED = {}


def gradient(net, image, selected, other):
    """Of the lead in the image, by automatic differentiation of the float32 function."""
    if net not in _COMPILED:
        on_device = net.on_device()

        def lead(pixels, selected, other):
            scores = on_device((pixels / pixels.sum())[None])[0]
            return scores[selected] - scores[other]

        _COMPILED[net] = jax.jit(jax.grad(lead))
    pixels = jnp.asarray(image / image.sum(), jnp.float32)
    return np.asarray(_COMPILED[net](pixels, selected, other))


def moved(net, image, selected, other, metric, far):
    """Mass moved along the steepest ways, a little at a time, by less than `far`."""
    height, width, channels = image.shape
    distances = pixel_distances(height, width, metric)
    image = image / image.sum()
    for _ in range(8):
        slope = gradient(net, image, selected, other).reshape(-1, channels)
        gain = (slope[:, None] - slope) / np.where(distances > 0, distances, 1)[
            ..., None
        ]
        gain = np.where(image.reshape(-1, 1, channels) > 0, gain, -np.inf)
        start, end, channel = np.unravel_index(gain.argmax(), gain.shape)
        flat = image.reshape(-1, channels).copy()
        mass = min(flat[start, channel], far / 8 / distances[start, end])
        flat[start, channel] -= mass
        flat[end, channel] += mass
        image = flat.reshape(image.shape)
    return image


class LocalSlopesTest(parameterized.TestCase):
    @KINDS
    def test_bound_gradients_at_images_nearby(self, metric, pieces):
        net = small_network(metric, pieces=pieces)
        slopes, points = LocalSlopes(net), images(2)
        seen = []
        for image, within in zip(points, (0.0, 0.02, 0.05, 0.2, 0.5, 1.0)):
            image = image / image.sum()
            bounds = slopes.bounds(image, 0, within)
            self.assertEqual(bounds[0], 0.0)
            for other in (1, 2):
                near = [moved(net, image, 0, other, metric, within)]
                for goal in points / points.sum((1, 2, 3), keepdims=True):
                    share = within / max(exact_distance(image, goal, metric), 1e-9)
                    near.append(image + min(share, 1.0) * (goal - image))
                steep = max(
                    all_pairs(gradient(net, x, 0, other)[..., None], metric)[0]
                    for x in near
                )
                self.assertLessEqual(steep, bounds[other] + 1e-5)
                seen.append(bounds[other] / net.constants[0, other])
        # They say more than the constants do, and less further out.
        self.assertLess(min(seen), 0.7)
        self.assertGreater(max(seen), 1.2 * min(seen))

    @KINDS
    def test_radii_are_larger_and_hold(self, metric, pieces):
        net, points = small_network(metric, pieces=pieces), images(3, 12)
        certifier = LipschitzScores(net, local=True)
        plain = list(LipschitzScores(net).certify_each(points))
        found = list(certifier.certify_each(points))

        gains = [b.radius / a.radius for a, b in zip(plain, found, strict=True)]
        self.assertGreaterEqual(min(gains), 1 - 1e-9)
        self.assertGreater(max(gains), 1.1)
        for image, one in zip(points, found, strict=True):
            self.assertEqual(one.label, one.selected)
            for other in range(3):
                if other != one.label:
                    away = moved(
                        net, image, one.label, other, metric, 0.999 * one.radius
                    )
                    self.assertEqual(certifier.predict(away).label, one.label)
                    whole = image / image.sum()
                    self.assertLess(exact_distance(whole, away, metric), one.radius)

    def test_linear_leads_are_certified_by_their_slope(self):
        # Nothing is sorted, so the best radius is the lead over the slope of a function.
        net = small_network("l1")
        net = network.LipschitzNetwork(
            *(net.potentials, net.exponent, net.offsets, net.hidden, net.last),
            groups=(1, 1),
            ground_metric="l1",
        )
        weights = np.ldexp(net.potentials.astype(float), -net.exponent)
        for rows in (*net.hidden, net.last):
            weights = weights @ rows.weights.T
        for image in images(4):
            found = LipschitzScores(net, local=True).certify(image)
            scores = net.scores(image[None])[0]
            best = min(
                (scores[found.label] - scores[j])
                / all_pairs(
                    (weights[..., found.label] - weights[..., j])[..., None], "l1"
                )[0]
                for j in range(3)
                if j != found.label
            )
            self.assertLessEqual(found.radius, best)
            self.assertGreater(found.radius, 0.999 * best)

    def test_numbers_that_cannot_meet_keep_their_place(self):
        # Two potentials far apart: the maximum of them is the second, whose slope counts.
        up = np.zeros((1, 4, 1, 2), np.int32)
        up[0, :, 0, 0] = [0, 4, 8, 12]
        up[0, :, 0, 1] = [0, 1, 2, 3]
        rows = network.quantised_rows(np.array([[0.0, 1.0], [0.0, 0.0]]), np.zeros(2))
        net = network.LipschitzNetwork(
            up, 2, np.array([0.0, 2.0]), (), rows, groups=(2,), ground_metric="l1"
        )
        self.assertEqual(lipschitz.sorted_groups(np.array([[1.0, 0.0]]), 2)[0, 1], 1.0)
        image = np.array([1.0, 0, 0, 0]).reshape(1, 4, 1)
        near, far = (LocalSlopes(net).bounds(image, 0, s)[1] for s in (0.9, 1.1))
        self.assertAlmostEqual(near, 0.25, delta=1e-4)
        self.assertAlmostEqual(far, 1.0, delta=1e-4)


if __name__ == "__main__":
    absltest.main()
