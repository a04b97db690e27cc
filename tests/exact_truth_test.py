"""Tests of benchmarks/exact_truth.py."""

import itertools
import pathlib
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize

from wsjax import exact_distance, network, potentials
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.metrics import pixel_distances

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import exact_truth


def small_case(metric, shape, groups, pieces, seed):
    """A network of three classes and a few images that it reads."""
    rng = np.random.default_rng(seed)
    count = 4 // groups[0] * groups[0]
    given = 3 * rng.normal(size=(*shape, count))
    images = rng.uniform(size=(40, *shape)) ** 3 * (rng.uniform(size=shape) < 0.8)
    # Numbers that are small for most images, so that orders and answers change.
    units = potentials.quantised(given, metric, 10)
    masses = images / images.sum((1, 2, 3), keepdims=True)
    offsets = -np.median(masses.reshape(40, -1) @ units.reshape(-1, count), 0) / 1024
    net = network.LipschitzNetwork(
        units,
        10,
        offsets,
        (
            network.quantised_rows(
                rng.normal(size=(4, count)), 0.02 * rng.normal(size=4)
            ),
        ),
        network.quantised_rows(rng.normal(size=(3 * pieces, 4)), np.zeros(3 * pieces)),
        groups=groups,
        pieces=pieces,
        ground_metric=metric,
    )
    return net, images


def by_all_orders(net, image, most=np.inf):
    """The truth by a linear program for each order of each group, rival and output."""
    height, width, channels = image.shape
    pixels = height * width
    mass = (image / image.sum()).reshape(pixels, channels)
    far = pixel_distances(height, width, net.ground_metric)
    given = np.ldexp(net.potentials.astype(float), -net.exponent)
    given = given.reshape(pixels, channels, -1)
    # A plan is [channels, from, to]; a number is a row of factors and a constant.
    arrive = np.broadcast_to(
        given.transpose(1, 0, 2)[:, None], (channels, pixels, pixels, given.shape[-1])
    )
    linear = np.moveaxis(arrive, -1, 0).reshape(given.shape[-1], -1)
    leave = np.kron(np.eye(channels * pixels), np.ones(pixels))
    total = np.kron(np.eye(channels), np.kron(np.ones(pixels), np.eye(pixels)))
    cost = np.tile(far.ravel(), channels)
    answer = int(net.scores(image[None])[0].argmax())
    layers = [
        (rows.weights, rows.bias, size)
        for rows, size in zip((*net.hidden, net.last), net.groups, strict=True)
    ]

    def cheapest(conditions):
        """Of plans for which each `factors . plan + constant >= 0`."""
        above = np.concatenate(conditions)
        sides = [above[:, -1]]
        matrix = [-above[:, :-1]]
        if np.isfinite(most):
            matrix, sides = [*matrix, total], [*sides, np.full(len(total), most)]
        solved = optimize.linprog(
            cost,
            np.concatenate(matrix),
            np.concatenate(sides),
            leave,
            mass.T.ravel(),
            method="highs",
        )
        return solved.fun if solved.status == 0 else np.inf

    def walk(numbers, conditions, left):
        if not left:
            outputs = numbers.reshape(-1, net.pieces, numbers.shape[1])
            return min(
                cheapest([*conditions, theirs - own])
                for rival, theirs in enumerate(outputs)
                for own in outputs[answer]
                if rival != answer
            )
        (weights, bias, size), *left = left
        groups = numbers.reshape(size, -1, numbers.shape[1])
        found = np.inf
        for orders in itertools.product(
            itertools.permutations(range(size)), repeat=groups.shape[1]
        ):
            ranked = np.take_along_axis(groups, np.array(orders).T[..., None], 0)
            rising = np.diff(ranked, axis=0).reshape(-1, numbers.shape[1])
            after = weights @ ranked.reshape(numbers.shape)
            after[:, -1] += bias
            found = min(found, walk(after, [*conditions, rising], left))
        return found

    return walk(np.c_[linear, net.offsets], [], layers)


class TruthTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("l1", "l1", (3, 3, 1), (2, 2), 1),
        ("l2", "l2", (3, 3, 1), (2, 2), 2),
        ("groups_of_three", "l2", (2, 3, 1), (3, 2), 1),
        ("two_channels", "l2", (2, 3, 2), (2, 2), 2),
    )
    def test_equals_the_best_of_all_orders(self, *case):
        opened = 0
        for seed in range(2):
            net, images = small_case(*case, seed)
            image = images[seed]
            expected = by_all_orders(net, image)
            found = exact_truth.exact_truth(net, image, np.inf)
            near = exact_truth.exact_truth(net, image, 1.1 * found.distance)
            self.assertAlmostEqual(found.distance, expected, delta=1e-5)
            self.assertAlmostEqual(near.distance, expected, delta=1e-5)
            self.assertAlmostEqual(found.bound, expected, delta=1e-5)
            (certificate,) = LipschitzScores(net).certify_each([image])
            self.assertLessEqual(certificate.radius, found.relaxed + 1e-5)
            self.assertLessEqual(near.relaxed, expected + 1e-5)
            self.assertLessEqual(near.choices, found.choices)
            opened += near.choices
            most = 0.9 * found.image.max()
            capped = exact_truth.exact_truth(net, image, np.inf, most=most)
            expected = by_all_orders(net, image, most / image.sum())
            self.assertAlmostEqual(capped.distance, expected, delta=1e-5)
            self.assertGreater(expected, found.distance)
        self.assertGreater(opened, 0)

    @parameterized.parameters("l1", "l2")
    def test_no_image_of_another_answer_is_nearer_and_there_is_one(self, metric):
        net, images = small_case(metric, (3, 3, 1), (2, 2), 2, 5)
        image = images[0] / images[0].sum()
        found = exact_truth.exact_truth(net, image, np.inf)
        lead = np.sort(net.scores(found.image[None])[0])
        answer = net.scores(image[None])[0].argmax()
        self.assertLess(lead[-1] - lead[-2], 1e-5)
        self.assertAlmostEqual(
            exact_distance(image, found.image, metric), found.distance, delta=1e-5
        )
        nearest = np.inf
        for other in [found.image, *images]:
            step = other / other.sum() - image
            for share in np.linspace(0.0, 1.0, 21):
                moved = image + share * step
                if net.scores(moved[None])[0].argmax() != answer:
                    nearest = min(nearest, exact_distance(image, moved, metric))
                    break
        self.assertGreater(nearest, found.distance - 1e-5)
        self.assertLess(nearest, np.inf)

    def test_claims_that_contradict_each_other_are_refused(self):
        net, images = small_case("l2", (3, 3, 1), (2, 2), 1, 0)
        found = exact_truth.exact_truth(net, images[0], np.inf)
        for times, attack, message in (
            (1.0, 1.01, ""),
            (1.0, 0.9, "No other answer"),
            (1.1, 1.01, "contradict"),
        ):
            certificate = mock.Mock(radius=times * found.distance)
            epsilon = np.array([attack * found.distance])
            with (
                mock.patch.object(exact_truth, "LipschitzScores") as certifier,
                mock.patch.object(exact_truth, "flow_attack") as flow_attack,
            ):
                certifier.return_value.certify_each.return_value = [certificate]
                flow_attack.return_value.epsilon = epsilon
                rows = exact_truth.side_by_side(images[:1], net)
                if message:
                    with self.assertRaisesRegex(ValueError, message):
                        list(rows)
                else:
                    self.assertAlmostEqual(next(rows)["truth"], found.distance, 5)

    def test_leaves_out_what_takes_too_long(self):
        net, images = small_case("l2", (3, 3, 1), (2, 2), 1, 0)
        with self.assertRaisesRegex(TimeoutError, "neither found nor excluded"):
            exact_truth.exact_truth(net, images[0], np.inf, limit=0.0)
        with mock.patch.object(exact_truth, "flow_attack") as flow_attack:
            flow_attack.return_value.epsilon = np.array([np.inf])
            rows = exact_truth.side_by_side(images[:1], net, limit=0.0)
            self.assertEqual(list(rows), [None])

    def test_says_that_there_is_none(self):
        net, images = small_case("l2", (3, 3, 1), (2, 2), 1, 0)
        found = exact_truth.exact_truth(net, images[0], np.inf)
        with self.assertRaisesRegex(ValueError, "No other answer"):
            exact_truth.exact_truth(net, images[0], 0.9 * found.distance)


if __name__ == "__main__":
    absltest.main()
