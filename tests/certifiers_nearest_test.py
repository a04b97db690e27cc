"""Tests of wsjax.certifiers.nearest."""

import math
import types

import numpy as np
from absl.testing import absltest, parameterized

import wsjax
from wsjax import scores
from wsjax.certifiers import registry
from wsjax.data.dataset import make_dataset
from wsjax.nearest import Index
from wsjax.transport import exact_distance

SHAPE = (4, 5, 1)


def random_images(seed, number, shape=SHAPE):
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (number, *shape))
    images[rng.uniform(size=images.shape) < 0.5] = 0
    images[:, 1, 1] = 9
    return images.astype(np.uint8)


def certifier_of(number=24, metric="l2", **settings):
    labels = np.arange(number) % 3
    index = Index(random_images(0, number), labels, metric)
    return wsjax.NearestNeighbours(index, **settings)


class CertifyTest(parameterized.TestCase):
    @parameterized.product(
        metric=("l1", "l2"), minimum=((1, 0.0), (3, math.inf), (4, 0.2))
    )
    def test_the_radius_is_half_the_lead(self, metric, minimum):
        certifier = certifier_of(24, metric, neighbours=minimum[0], softness=minimum[1])
        index = certifier.index
        images = random_images(1, 4) / 255
        for image, certificate in zip(images, certifier.certify_each(images)):
            mass = image / image.sum()
            distances = np.array(
                [exact_distance(mass, x / x.sum(), metric) for x in index.images]
            )
            few = [
                np.sort(distances[index.labels == k])[: minimum[0]] for k in range(3)
            ]
            if minimum[1] == 0.2:
                expected = [-0.2 * np.log(np.mean(np.exp(-d / 0.2))) for d in few]
            else:
                expected = [d.mean() for d in few]
            best, second, _ = np.argsort(expected)

            self.assertEqual(certificate.label, best)
            radius = (expected[second] - expected[best]) / 2
            # Below by what both answers, here and there, may be off by.
            most = radius - index.precision / 2
            self.assertBetween(certificate.radius, radius - 1e-9, most + 1e-13)
            self.assertEqual(certifier.predict(image).label, best)
            # The row has what the radius was computed from.
            again = scores.certified_radius(*certificate[3:6])
            self.assertEqual(certificate.radius, again)
            found = certificate.evidence
            self.assertAlmostEqual(found.distance, few[best][0], delta=1e-9)
            self.assertAlmostEqual(found.rival_distance, few[second][0], delta=1e-9)
            self.assertEqual(index.labels[found.nearest], best)
            self.assertEqual(index.labels[found.rival], second)

    def test_a_lead_within_rounding_is_none(self):
        images = random_images(2, 4)
        images[1] = images[0]
        certifier = wsjax.NearestNeighbours(Index(images, np.arange(4), "l2"))
        certificate = certifier.certify(images[0] / 255)
        self.assertEqual((certificate.label, certificate.radius), (wsjax.ABSTAIN, 0.0))
        self.assertIn(certificate.selected, (0, 1))

    def test_where_no_other_class_can_be_reached_all_images_are_certified(self):
        images = random_images(3, 4, (4, 5, 2))
        images[1:, ..., 1] = 0
        index = Index(images, np.arange(4), "l1")
        image = random_images(4, 1, (4, 5, 2))[0] / 255
        certificate = wsjax.NearestNeighbours(index).certify(image)
        self.assertEqual(certificate.label, 0)
        self.assertBetween(certificate.radius, 4 + 5 - 2, 4 + 5)
        self.assertEqual(certificate.evidence.rival, -1)

    def test_where_none_can_be_reached_it_abstains(self):
        images = random_images(3, 4, (4, 5, 2))
        images[..., 1] = 0
        index = Index(images, np.arange(4), "l1")
        image = random_images(4, 1, (4, 5, 2))[0] / 255
        certificate = wsjax.NearestNeighbours(index).certify(image)
        self.assertEqual((certificate.label, certificate.radius), (wsjax.ABSTAIN, 0.0))

    def test_bad_images_are_refused_after_the_results_before_them(self):
        results = certifier_of().certify_each(
            [random_images(1, 1)[0] / 255, np.zeros(SHAPE)]
        )
        self.assertGreater(next(results).radius, 0)
        with self.assertRaisesRegex(ValueError, "all black"):
            next(results)
        with self.assertRaisesRegex(ValueError, "not float32 or float64"):
            certifier_of().certify(random_images(1, 1)[0])
        with self.assertRaisesRegex(ValueError, "those of the index"):
            certifier_of().certify(np.ones((5, 4, 1)))

    @parameterized.parameters(
        ({"neighbours": 9}, "from 1 to 8"),
        ({"softness": -0.1}, "softness=-0.1"),
        ({"num_classes": 2}, "num_classes=2"),
    )
    def test_settings_are_checked_when_it_is_made(self, settings, message):
        with self.assertRaisesRegex(ValueError, message):
            certifier_of(**settings)


class RowsTest(absltest.TestCase):
    def test_cells_are_the_columns_and_are_read_back(self):
        certifier = certifier_of(neighbours=2, softness=math.inf)
        images = random_images(5, 3) / 255
        found = list(certifier.certify_each(images))
        for certificate in found:
            self.assertEqual(set(certifier.cells(certificate)), set(certifier.columns))
        shared = ("lower", "upper", "lipschitz", "radius", "selected")
        rows = {
            **{
                name: np.array([getattr(each, name) for each in found])
                for name in shared
            },
            "idx": np.arange(3),
            "predict": np.array([each.label for each in found]),
        }
        self.assertGreater(rows["radius"].max(), 0)
        recorded = certifier.recorded()
        kind = registry.get_kind(recorded["kind"])
        (outcomes,) = kind.outcomes(rows, recorded)
        np.testing.assert_array_equal(outcomes.radii, rows["radius"])
        np.testing.assert_array_equal(outcomes.labels, rows["predict"])
        np.testing.assert_array_equal(outcomes.predictions, rows["selected"])
        self.assertIsNone(outcomes.passes)
        with self.assertRaisesRegex(ValueError, "image 1 is not that of its bounds"):
            kind.outcomes(rows | {"radius": rows["radius"] * [1, 2, 1]}, recorded)
        self.assertEqual(
            set(kind.settings()), {"neighbours", "softness", "ground_metric"}
        )

    def test_a_run_leaves_out_training_images_that_are_black(self):
        images, labels = random_images(6, 8), np.arange(8) % 2
        images[3] = 0
        examples = types.SimpleNamespace(
            data=make_dataset(images, labels, 5, 255), num_classes=5, name="some"
        )
        run = types.SimpleNamespace(training_set=lambda: examples)

        certifier = wsjax.NearestNeighbours.from_run(
            run, neighbours=3, softness=0.1, ground_metric="l1"
        )

        held, held_labels = certifier.held()
        np.testing.assert_array_equal(held, np.delete(images, 3, 0))
        np.testing.assert_array_equal(held_labels, np.delete(labels, 3))
        self.assertEqual((certifier.num_classes, certifier.neighbours), (5, 3))
        self.assertEqual(certifier.index.ground_metric, "l1")

        examples.data = types.SimpleNamespace(arrays=None)
        with self.assertRaisesRegex(ValueError, "some does not fit into"):
            wsjax.NearestNeighbours.from_run(
                run, neighbours=1, softness=0.0, ground_metric="l1"
            )


if __name__ == "__main__":
    absltest.main()
