"""Tests of exact votes: nothing of an image's rounding is left for a classifier to read."""

import decimal
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import wsjax
from wsjax import ColouredGaussian, GaussianView, exact, gaussian, spectrum
from wsjax.gaussian import StencilGaussian

SHAPE = (6, 7, 2)
EACH_LAW = parameterized.parameters(
    "view", "power_law", "filtered", "stencil", "wrapped"
)


@functools.cache
def law_of(name):
    rng = np.random.default_rng(0)
    mean = rng.dirichlet(np.ones(math.prod(SHAPE))).reshape(SHAPE)
    if name == "view":
        readout = rng.normal(size=(5, *SHAPE)) * 0.02
        # As on the border of digits: what never varies is shown as it is.
        readout[:, 0, 0] = 0
        return GaussianView(rng.normal(size=(5, *SHAPE)) * 30, readout, mean)
    if name == "stencil":
        return StencilGaussian(0.01)
    if name == "wrapped":
        return wsjax.FlowGaussian(0.01, wrap=True)
    root = spectrum.square_root(spectrum.power_law(SHAPE, 0.01, 1.5))
    if name == "power_law":
        return ColouredGaussian(root)
    # Dependent channels, and a filter that is no power of anything.
    mix = np.linalg.cholesky([[1.0, 0.4], [0.4, 0.8]])
    gain = np.broadcast_to(0.6 * np.eye(2) + 0.1, root.shape) / (1 + root)
    return ColouredGaussian(mix @ root, gain, mean)


def smoothings(name, metric="l2"):
    ordinary = wsjax.gaussian_smoothing(law_of(name), SHAPE, metric)
    return ordinary, exact.exact(ordinary)


def some_image(seed=0):
    values = np.random.default_rng(seed).integers(1, 256, SHAPE)
    return (values / 255).astype(np.float32)


def copies(smoothing, image, count, seed=3):
    keys = jax.random.split(wsjax.make_key(seed), count)
    prepared = smoothing.noise.prepare(image)
    return np.asarray(jax.vmap(smoothing.noise.perturb, (0, None))(keys, prepared))


def erfc(x):
    """Of a Decimal, by its power series with 80 digits."""
    with decimal.localcontext(decimal.Context(prec=80)):
        pi = decimal.Decimal(
            "3.14159265358979323846264338327950288419716939937510582097494459230781640628"
            "620899862803"
        )
        term, total, n = x, x, 0
        while abs(term) > decimal.Decimal("1e-70"):
            n += 1
            term *= -x * x / n
            total += term / (2 * n + 1)
        return 1 - 2 * total / pi.sqrt()


class TableTest(chex.TestCase):
    def test_probabilities_are_those_of_the_error_function(self):
        table, off = exact.rounded_normal_table()
        for j in (1, 2, 3, 100, 4096, 10_000, 20_000, len(table) - 2):
            units = (int(table[j, 0]) << 32) + int(table[j, 1])
            x = (decimal.Decimal(j) - decimal.Decimal("0.5")) * decimal.Decimal(
                exact.GRID
            )
            wanted = erfc(x / decimal.Decimal(2).sqrt())
            found = decimal.Decimal(units) / 2**63
            allowed = wanted * decimal.Decimal(exact._OFF) + decimal.Decimal(2.0**-62)
            self.assertLess(abs(found - wanted), allowed, j)
        self.assertLess(off, 2e-9)
        self.assertGreater(off, 2 * math.erfc(exact._LAST / math.sqrt(2)) / 2)

    def test_numbers_are_how_many_entries_the_bits_are_below(self):
        table, _ = exact.rounded_normal_table()
        entries = (table[:, 0].astype(np.uint64) << np.uint64(32)) + table[:, 1]
        # Where the answer changes, on both sides, for each entry there is.
        bits = np.concatenate([entries[:-1] - np.uint64(1), entries[1:]])
        rng = np.random.default_rng(0)
        bits = np.concatenate([bits, rng.integers(0, 2**63, 200_000, np.uint64)])
        wanted = np.searchsorted(-entries[1:].astype(np.int64), -bits.astype(np.int64))
        for sign in (0, 1):
            first = (bits >> np.uint64(32)).astype(np.uint32) | np.uint32(sign << 31)
            second = (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32)
            found = np.asarray(jax.jit(exact.looked_up)(first, second, table))
            # Beyond the last entry there is one more only in the probability that `off` has.
            np.testing.assert_array_equal(found, (-1) ** sign * wanted)

    def test_draws_have_the_moments_of_a_normal_variable(self):
        table, _ = exact.rounded_normal_table()
        draws = np.asarray(exact.rounded_normal(wsjax.make_key(0), 400_000, table))
        z = draws * exact.GRID
        self.assertEqual(draws.dtype, np.int32)
        for power, wanted, error in ((1, 0, 0.005), (2, 1, 0.01), (4, 3, 0.08)):
            self.assertAlmostEqual(np.mean(z**power), wanted, delta=error)


class TheoremTest(chex.TestCase):
    @EACH_LAW
    def test_coordinates_are_as_far_apart_as_the_theorem_says(self, name):
        ordinary, exactly = smoothings(name)
        a, b = some_image(0), some_image(1)
        b *= (a.sum((0, 1)) / b.sum((0, 1))).astype(np.float32)
        ours = [exactly.noise.prepare(x).ravel().astype(np.int64) for x in (a, b)]
        moved = np.linalg.norm((ours[1] - ours[0]).astype(float)) * exact.GRID
        wanted = self._distance(ordinary.noise, b / b.sum() - a / a.sum())
        slack = exactly.scores.slack / exactly.scores.scale
        self.assertAlmostEqual(moved, wanted, delta=slack)
        self.assertLess(slack, 0.01 * wanted)

    def _distance(self, law, change):
        """In standard deviations of the noise, by dense matrices of its own draws."""
        flat = np.float64(change).ravel()
        if isinstance(law, GaussianView):
            return np.linalg.norm(np.float64(law.features).reshape(5, -1) @ flat)
        if isinstance(law, ColouredGaussian):
            law = ColouredGaussian(law.amplitude)  # Before the filter.
            count = math.prod(gaussian.waves_shape(SHAPE))
            columns = jax.vmap(law.noise_of)(
                np.eye(count, dtype=np.float32).reshape(
                    -1, *gaussian.waves_shape(SHAPE)
                )
            )
            root = np.float64(columns).reshape(count, -1)
            covariance = root.T @ root
        else:
            covariance = self._of_stencil(law)
        inverse = np.linalg.pinv(covariance, rcond=1e-6, hermitian=True)
        return math.sqrt(flat @ inverse @ flat)

    def _of_stencil(self, law):
        """Of sums over neighbours on the torus, pixel by pixel."""
        size = math.prod(SHAPE)
        place = np.arange(size).reshape(SHAPE)
        lap = np.zeros((size, size))
        for axis in (0, 1):
            for by in (-1, 1):
                lap[place.ravel(), np.roll(place, by, axis).ravel()] -= 1
        lap += 4 * np.eye(size)
        power = lap if isinstance(law, wsjax.FlowGaussian) else lap @ lap
        return law.sigma**2 * power

    @EACH_LAW
    def test_pictures_are_those_of_the_law(self, name):
        ordinary, exactly = smoothings(name)
        image = some_image()
        pixels = math.prod(SHAPE)
        found = copies(exactly, image, 4_000) / pixels
        scaled = image / image.sum()
        keys = jax.random.split(wsjax.make_key(4), 4_000)
        wanted = np.asarray(jax.vmap(ordinary.perturb, (0, None))(keys, scaled))
        spread = np.maximum(wanted.std(0), 1e-7)
        gap = (found.mean(0) - wanted.mean(0)) / spread * math.sqrt(len(found) / 2)
        self.assertLess(np.abs(gap).max(), 4.5)
        ratio = np.maximum(found.std(0), 1e-7) / spread
        np.testing.assert_allclose(ratio, 1, atol=0.07)

    def test_radii_lose_slack_and_probabilities_what_the_draws_are_off(self):
        ordinary, exactly = smoothings("view")
        scores = exactly.scores
        self.assertEqual(scores.scale, ordinary.scores.scale)
        for p in (0.6, 0.99, 1.0):
            wanted = ordinary.scores.radius(p - scores.off) - scores.slack
            self.assertAlmostEqual(scores.radius(p) / wanted, 1, delta=1e-9)
        self.assertEqual(scores.radius(0.5), 0)
        p = scores.probability_for(0.01)
        self.assertGreaterEqual(scores.radius(p), 0.01)
        self.assertGreater(p, ordinary.scores.probability_for(0.01))

    def test_slack_is_half_a_step_in_each_coordinate_of_both_images(self):
        _, exactly = smoothings("view")
        least = 2 * exactly.scores.scale * math.sqrt(5) * exact.GRID / 2
        self.assertGreater(exactly.scores.slack, least)
        self.assertLess(exactly.scores.slack, 1.001 * least)


def same_mass_other_rounding(image):
    """An image next to it, of equal mass, that float32 sums up to another one."""
    rng = np.random.default_rng(0)
    before = np.float32(wsjax.image_mass(jnp.asarray(image)))
    while True:
        moved = image.copy()
        pixels = moved.ravel()
        a, b = rng.integers(0, pixels.size, 2)
        step = np.float32(rng.integers(1, 64) * 2.0**-22)
        if a // 2 == b // 2 or (a - b) % 2 or pixels[a] <= step:
            continue
        pixels[a] -= step
        pixels[b] += step
        equal = math.fsum(pixels) == math.fsum(image.ravel())
        if equal and np.float32(wsjax.image_mass(jnp.asarray(moved))) != before:
            return moved


class RoundingTest(chex.TestCase):
    """A classifier that knows one image's rounding, against a certificate for it."""

    def setUp(self):
        super().setUp()
        self.image = some_image()
        self.moved = same_mass_other_rounding(self.image)
        self.distance = wsjax.exact_distance(self.image, self.moved, "l2")

    def certified(self, smoothing, shown):
        def classify(images):
            seen = (images[:, 0, 0, 0] == shown).astype(jnp.float32)
            return jnp.stack([seen, 0.5 + 0 * seen], -1)

        certifier = wsjax.FixedVotes(classify, smoothing, n0=50, n=1_000, alpha=0.001)
        return [
            certifier.certify(image, wsjax.make_key(i))
            for i, image in enumerate((self.image, self.moved))
        ]

    def test_ordinary_votes_certify_what_is_false(self):
        ordinary, _ = smoothings("view")
        shown = copies_in_floats(ordinary, self.image)
        here, there = self.certified(ordinary, shown)
        self.assertEqual((here.label, there.label), (0, 1))
        self.assertGreater(min(here.radius, there.radius), 1_000 * self.distance)

    def test_exact_votes_do_not(self):
        _, exactly = smoothings("view")
        for image in (self.image, self.moved):
            shown = copies(exactly, image, 1)[0, 0, 0, 0]
            here, there = self.certified(exactly, shown)
            self.assertEqual(here.label, there.label)

    @EACH_LAW
    def test_what_a_classifier_sees_depends_on_whole_numbers_alone(self, name):
        # Bits of the picture, for the same sums: of images that are prepared alike.
        _, exactly = smoothings(name)
        halved = self.image / 2
        prepared = [exactly.noise.prepare(x) for x in (self.image, halved)]
        np.testing.assert_array_equal(*prepared)
        of_two = [copies(exactly, x, 3) for x in (self.image, halved)]
        np.testing.assert_array_equal(*of_two)

    @EACH_LAW
    def test_certificates_say_they_are_smaller(self, name):
        ordinary, exactly = smoothings(name)

        def classify(images):
            return jnp.stack([images.mean((1, 2, 3)), 0 * images[:, 0, 0, 0]], -1)

        found = [
            wsjax.FixedVotes(classify, s, n0=20, n=200).certify(
                self.image, wsjax.make_key(0)
            )
            for s in (ordinary, exactly)
        ]
        self.assertEqual(found[0].label, found[1].label)
        self.assertLess(found[1].radius, found[0].radius)
        self.assertGreater(found[1].radius, 0.95 * found[0].radius)


def copies_in_floats(smoothing, image):
    """What the corner of an ordinary copy is, whatever the noise."""
    keys = jax.random.split(wsjax.make_key(5), 20)
    corner = np.asarray(jax.vmap(smoothing.perturb, (0, None))(keys, image))[:, 0, 0, 0]
    assert len(set(corner.tolist())) == 1
    return corner[0]


class RefusalTest(parameterized.TestCase):
    def test_other_laws_are_refused_with_what_to_use(self):
        for noise in ("flow_laplace", "flow_uniform", "pixel_laplace", "flow_gaussian"):
            smoothing = wsjax.make_smoothing(noise, 0.01, "l2", image_shape=SHAPE)
            with self.assertRaisesRegex(ValueError, "no exact votes under.*power_law"):
                exact.exact(smoothing)

    def test_draws_are_not_shared(self):
        def classify(images):
            return jnp.stack([images.mean((1, 2, 3)), 0 * images[:, 0, 0, 0]], -1)

        _, exactly = smoothings("view")
        certifier = wsjax.FixedVotes(classify, exactly, n0=20, n=200, share_draws=2)
        keys = [wsjax.make_key(0)] * 2
        with self.assertRaisesRegex(ValueError, "share_draws=1"):
            list(certifier.certify_each([some_image(0), some_image(1)], keys))

    def test_too_little_noise_is_refused(self):
        view = law_of("view")
        law = GaussianView(np.float32(view.features) * 1e6, view.readout, view.mean)
        smoothing = exact.exact(wsjax.gaussian_smoothing(law, SHAPE, "l2"))
        with self.assertRaisesRegex(ValueError, "Smooth with more noise"):
            smoothing.noise.prepare(some_image())


if __name__ == "__main__":
    absltest.main()
