"""Tests of potentials, Lipschitz layers and exact networks against brute force."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from wsjax import exact_distance, lipschitz, network, potentials, transport
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.metrics import pixel_distances
from wsjax.scores import ABSTAIN


def all_pairs(functions, metric):
    """Slopes over all pairs of pixels, by a loop."""
    far = pixel_distances(*functions.shape[:2], metric)
    found = []
    for one in np.moveaxis(functions, -1, 0):
        flat = one.reshape(-1, one.shape[-1]).T
        rises = np.abs(flat[:, :, None] - flat[:, None]).max(0)
        found.append((rises / np.where(far > 0, far, 1.0)).max())
    return np.array(found)


def functions(seed=0, shape=(6, 5, 2, 4)):
    return np.random.default_rng(seed).normal(size=shape) * 3


def images(seed, count=6, shape=(6, 5, 2)):
    """Of equal mass in every channel, many pixels black."""
    rng = np.random.default_rng(seed)
    found = rng.uniform(size=(count, *shape)) ** 3 * (rng.uniform(size=shape) < 0.7)
    return found / found.sum((1, 2), keepdims=True)


def small_network(metric="l2", seed=0, pieces=1):
    rng = np.random.default_rng(seed)
    units = potentials.quantised(functions(seed, (6, 5, 2, 16)), metric, 10)
    return network.LipschitzNetwork(
        units,
        10,
        rng.normal(size=16),
        (network.quantised_rows(rng.normal(size=(8, 16)), rng.normal(size=8) / 9),),
        network.quantised_rows(
            rng.normal(size=(3 * pieces, 8)), rng.normal(size=3 * pieces) / 9
        ),
        groups=(4, 2),
        pieces=pieces,
        ground_metric=metric,
    )


@parameterized.parameters("l1", "l2")
class PotentialsTest(parameterized.TestCase):
    def test_slopes_are_those_of_all_pairs(self, metric):
        steep, expected = (
            f(functions(), metric) for f in (potentials.slopes, all_pairs)
        )
        np.testing.assert_allclose(steep, expected, rtol=1e-12)
        self.assertTrue((steep >= expected).all())

    def test_near_slopes_are_above_and_close(self, metric):
        found = potentials.near_slopes(functions().astype(np.float32), metric)
        ratio = np.asarray(found) / all_pairs(functions(), metric)
        self.assertTrue((ratio > 1 - 1e-6).all())
        self.assertTrue((ratio < potentials.STRETCH[metric] + 1e-6).all())

    def test_projections_are_potentials_and_stay(self, metric):
        found = potentials.project(functions(), metric)
        self.assertTrue((all_pairs(found, metric) <= 1 + 1e-12).all())
        np.testing.assert_allclose(potentials.project(found, metric), found, atol=1e-12)
        swept = np.asarray(potentials.sweep(found.astype(np.float32), metric))
        np.testing.assert_allclose(swept, found, atol=1e-5)

    def test_a_potential_of_a_pair_tells_all_of_its_distance(self, metric):
        one, other = images(1, 2)
        found = transport.exact_potential(one, other, metric)
        self.assertLessEqual(all_pairs(found[..., None], metric)[0], 1 + 1e-9)
        told = (found * (one - other)).sum() / one.sum()
        self.assertAlmostEqual(told, exact_distance(one, other, metric), places=9)

    def test_whole_numbers_are_potentials_and_one_unit_more_is_none(self, metric):
        units = potentials.quantised(functions(), metric, 10)
        potentials.check_quantised(units, 10, metric)
        steep = np.zeros((3, 3, 1, 1), np.int32)
        steep[1, 1] = 1024
        potentials.check_quantised(steep, 10, metric)
        steep[1, 1] += 1
        with self.assertRaisesRegex(ValueError, "rises by 1025 units"):
            potentials.check_quantised(steep, 10, metric)

    def test_scores_move_no_faster_than_mass(self, metric):
        net = small_network(metric)
        found, points = net.scores(images(2)), images(2)
        for one in range(5):
            distance = exact_distance(points[one], points[one + 1], metric)
            change = found[one] - found[one + 1]
            self.assertLessEqual(np.abs(change).max(), distance + 1e-9)
            between = np.abs(change[:, None] - change)
            self.assertTrue((between <= net.constants * distance + 1e-9).all())

    def test_certificates_hold_at_images_moved_towards_others(self, metric):
        net, points = small_network(metric), images(3, 20)
        certifier = LipschitzScores(net)
        certified = list(certifier.certify_each(points))
        for one, certificate in zip(points, certified, strict=True):
            self.assertNotEqual(certificate.label, ABSTAIN)
            for other in points:
                distance = exact_distance(one, other, metric)
                share = min(1.0, 0.999 * certificate.radius / max(distance, 1e-9))
                moved = one + share * (other - one)
                self.assertEqual(certifier.predict(moved).label, certificate.label)


class LayersTest(absltest.TestCase):
    def test_layers_do_not_spread_what_is_near(self):
        rng = np.random.default_rng(5)
        x, y = rng.normal(size=(2, 50, 12))
        y = x + (y - x) * 0.1
        rows = rng.normal(size=(7, 12))
        for layer in (
            lambda z: lipschitz.sorted_groups(z, 4),
            lambda z: lipschitz.soft_minimum(z, 0.3),
            lambda z: lipschitz.maximum_distance(z, rows),
            lambda z: lipschitz.dense(z, lipschitz.unit_rows(rows), np.ones(7)),
            lambda z: lipschitz.dense(z, lipschitz.onto_unit_rows(rows), np.ones(7)),
        ):
            change = np.abs(layer(x) - layer(y)).reshape(50, -1).max(1)
            self.assertTrue((change <= np.abs(x - y).max(1) + 1e-12).all())

    def test_the_projection_onto_rows_is_the_nearest(self):
        rows = np.random.default_rng(6).normal(size=(5, 4))
        found = lipschitz.onto_unit_rows(rows)
        np.testing.assert_allclose(np.abs(found).sum(1), 1.0)
        away = np.linalg.norm(found - rows, axis=1)
        others = np.random.default_rng(7).normal(size=(2000, 1, 4))
        others /= np.abs(others).sum(-1, keepdims=True)
        self.assertTrue((np.linalg.norm(others - rows, axis=-1) >= away - 1e-9).all())

    def test_convolutions_keep_their_constants(self):
        kernel = np.random.default_rng(8).normal(size=(3, 3, 1, 4))
        steps = [
            (dy, dx) for dy in range(8) for dx in range(-7, 8) if (dy, dx) > (0, 0)
        ]
        constant = lipschitz.first_convolution_constant(kernel, 1, steps, "l2")
        maps = np.zeros((64, 10, 10, 4))
        for place in range(64):
            y, x = divmod(place, 8)
            maps[place, y : y + 3, x : x + 3] = kernel[::-1, ::-1, 0]
        worst, far = 0.0, pixel_distances(8, 8, "l2")
        for one in range(64):
            change = np.abs(maps - maps[one]).max(-1).sum((1, 2))
            worst = max(
                worst, (change / np.where(far[one] > 0, far[one], np.inf)).max()
            )
        self.assertLessEqual(worst, constant + 1e-9)
        self.assertGreater(worst, 0.9 * constant)
        reach = lipschitz.convolution_constant(np.abs(kernel), 1)
        self.assertAlmostEqual(reach, np.abs(kernel).sum(2).max(2).sum())


class NetworkTest(absltest.TestCase):
    def test_scores_are_as_precise_as_they_say(self):
        net = small_network(pieces=2)
        points = images(4).astype(np.float32)
        z = points.astype(np.longdouble).reshape(6, -1)
        z = z / z.sum(1, keepdims=True)
        z = z @ net.potentials.astype(np.longdouble).reshape(-1, 16) / 1024
        z += net.offsets
        for rows, group in zip((*net.hidden, net.last), net.groups, strict=True):
            z = np.sort(z.reshape(6, group, -1), 1).reshape(6, -1)
            z = z @ rows.weights.astype(np.longdouble).T + rows.bias
        z = z.reshape(6, 3, 2).min(-1)
        off = np.abs(net.scores(points) - z).max()
        self.assertLess(off, net.precision)
        self.assertLess(net.precision, 1e-11)

    def test_masses_far_from_one_change_nothing(self):
        net, points = small_network(), images(4)
        for scale in (1e-300, 1e-37, 1e37, 1e300):
            found = net.scores(points * scale)
            np.testing.assert_allclose(found, net.scores(points), atol=net.precision)

    def test_rows_become_whole_numbers_near_them_within_one(self):
        rows = np.random.default_rng(9).normal(size=(40, 300)) / 250
        rows[0], rows[1] = 0.0, 0.0
        rows[0, 3] = -1.0
        found = network.quantised_rows(rows, np.zeros(40))
        self.assertEqual(found.units.dtype, np.int16)
        sizes = np.abs(found.units.astype(int)).sum(1)
        self.assertLessEqual(sizes.max(), 2**15)
        self.assertGreater(sizes[0], 2**15 - 2)
        norms = np.maximum(np.abs(rows).sum(1, keepdims=True), 1.0)
        off = np.abs(found.weights - rows / norms)
        self.assertLess(off.mean(), 2.0**-16)
        self.assertLess(off.max(), 2.0**-10)

    def test_a_row_one_unit_too_long_is_refused(self):
        net = small_network()
        units = net.last.units.copy()
        short = 2**15 - np.abs(units.astype(int)).sum(1)[0]
        units[0, 0] += np.sign(units[0, 0]) * short
        last = net.last._replace(units=units)
        dataclasses.replace(net, last=last)
        units[0, 0] += np.sign(units[0, 0])
        with self.assertRaisesRegex(ValueError, "Row 0 of the last layer has L1 norm"):
            dataclasses.replace(net, last=last)

    def test_only_such_networks_certify_themselves(self):
        with self.assertRaisesRegex(TypeError, "a function, not a LipschitzNetwork"):
            LipschitzScores(lambda images: images.sum((1, 2, 3)))

    def test_a_bad_image_does_not_cost_those_before_it(self):
        certifier, points = LipschitzScores(small_network()), list(images(4))
        cases = {
            "NaN or inf": points[0] * np.nan,
            "the network reads": points[0][:, :4],
            r"shape \(6, 5\)": points[0][..., 0],
        }
        for message, bad in cases.items():
            found = certifier.certify_each([*points, bad, *points])
            certified = [next(found) for _ in points]
            alone = [certifier.certify(x) for x in points]
            self.assertEqual(certified, alone)
            with self.assertRaisesRegex(ValueError, message):
                next(found)

    def test_the_device_gives_the_same_scores_but_for_rounding(self):
        net, points = small_network(), images(4).astype(np.float32)
        np.testing.assert_allclose(
            net.on_device()(points), net.scores(points), atol=1e-4
        )


if __name__ == "__main__":
    absltest.main()
