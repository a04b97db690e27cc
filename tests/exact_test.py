"""Tests of exact votes: nothing of an image's rounding is left for a classifier to read."""

import decimal
import fractions
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

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


@functools.cache
def exactly_rounded():
    """Probabilities of the sizes of a rounded normal variable, to 40 digits.

    The error function by its series of positive terms.
    """
    with decimal.localcontext(prec=50):
        pi = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582")

        def inside(j):
            """P(|2^11 G| < j + 1/2)."""
            z_squared = (decimal.Decimal(2 * j + 1) / (2 * exact.STEPS)) ** 2 / 2
            term = total = z_squared.sqrt()
            n = 0
            while term > total * decimal.Decimal("1e-42"):
                n += 1
                term = term * 2 * z_squared / (2 * n + 1)
                total += term
            return 2 / pi.sqrt() * (-z_squared).exp() * total

        within = [inside(j) for j in range(exact.LARGEST)]
        sizes = [b - a for a, b in zip([decimal.Decimal(0), *within], within)]
        return sizes, 1 - within[-1]


class TableTest(chex.TestCase):
    def test_probabilities_are_those_of_a_rounded_normal_variable(self):
        sizes, beyond = exactly_rounded()
        found = exact.sizes_of_63_bits()
        self.assertLen(found, exact.LARGEST)
        self.assertEqual(sum(found), 2**63)
        self.assertGreaterEqual(min(found), 0)
        with decimal.localcontext(prec=50):
            apart = sum(
                abs(decimal.Decimal(n) / 2**63 - p) for n, p in zip(found, sizes)
            )
            total_variation = float((apart + beyond) / 2)
        self.assertLess(total_variation, exact.TABLE_ERROR)
        # What lies beyond is most of it: no bound of this kind is much smaller.
        self.assertGreater(total_variation, exact.TABLE_ERROR / 5)

    def test_columns_add_up_to_the_probabilities_exactly(self):
        thresholds, other = exact.alias_table()
        whole = [0] * exact.LARGEST
        for column, (threshold, size) in enumerate(zip(thresholds, other)):
            self.assertBetween(int(threshold), 0, 2**49)
            whole[column] += int(threshold)
            whole[size] += 2**49 - int(threshold)
        # Each share is rounded down to 2^-63 of a column.
        apart = sum(abs(a - b) for a, b in zip(whole, exact.sizes_of_63_bits()))
        self.assertLessEqual(apart / 2**63 / 2, exact.TABLE_ERROR / 2)
        self.assertEqual(apart, 0)

    def test_bits_are_looked_up_as_the_table_says(self):
        thresholds, other = exact.alias_table()
        rng = np.random.default_rng(0)
        high, low = rng.integers(0, 2**32, (2, 20_000), np.uint32)
        # At the borders of columns, and the ends of all.
        edge = int(thresholds[5])
        for i, part in enumerate((edge - 1, edge, edge + 1)):
            high[i] = (5 << 18) | (part >> 32)
            low[i] = part & 0xFFFFFFFF
        high[3:5], low[3:5] = [0, 2**32 - 1], [0, 2**32 - 1]

        found = np.asarray(exact.looked_up(jnp.asarray(high), jnp.asarray(low)))

        for h, l, value in zip(high.tolist(), low.tolist(), found.tolist()):
            column, negative = h >> 18, (h >> 17) & 1
            part = ((h & 0x1FFFF) << 32) | l
            size = column if part < thresholds[column] else other[column]
            self.assertEqual(value, -size if negative else size)

    def test_draws_have_the_law(self):
        drawn = np.asarray(exact.rounded_normal(jax.random.key(0), 400_000))
        self.assertEqual(drawn.dtype, np.int32)
        count = len(drawn)
        for level in (-2.5, -1.0, -0.001, 0.0003, 0.7, 3.0):
            p = special.ndtr(level)
            share = np.mean(drawn <= math.floor(level * exact.STEPS))
            self.assertAlmostEqual(
                share, p, delta=4.5 * (p * (1 - p) / count) ** 0.5 + 2e-4
            )

    def test_a_shift_changes_no_half_line_more_than_the_theorem_says(self):
        # Whole numbers of 2^-64: the worst events of a shift, one by one.
        sizes = exact.sizes_of_63_bits()
        both = np.array([*sizes[:0:-1], 2 * sizes[0], *sizes[1:]], dtype=object)
        below = np.cumsum(both)
        self.assertEqual(below[-1], 2**64)
        p = np.array([float(fractions.Fraction(int(n), 2**64)) for n in below])
        rest = np.array(
            [float(fractions.Fraction(int(2**64 - n), 2**64)) for n in below]
        )
        for steps in (1, 7, 300, exact.STEPS, 3 * exact.STEPS):
            later = np.concatenate([np.zeros(steps), p[:-steps]])
            later_rest = np.concatenate([np.ones(steps), rest[:-steps]])
            # Phi^{-1}(p - off), from whichever end has the digits.
            high = -special.ndtri(np.minimum(rest + exact.TABLE_ERROR, 1))
            low = special.ndtri(np.maximum(p - exact.TABLE_ERROR, 0))
            score = np.where(p > 0.5, high, low) - steps / exact.STEPS
            bound = special.ndtr(score) - exact.TABLE_ERROR
            self.assertTrue((later >= bound - 1e-16).all(), steps)
            bound_rest = special.ndtr(-score) + exact.TABLE_ERROR
            self.assertTrue((later_rest <= bound_rest + 1e-16).all(), steps)
        # And it says no less than it can: a shorter shift would be found out.
        short = special.ndtr(np.where(p > 0.5, high, low) - 2.99) - exact.TABLE_ERROR
        self.assertTrue((later < short).any())


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
        found = copies(exactly, image, 4_000) / image.sum()
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
            # Others are taken for at least 1e-6 where they can be that likely.
            q = min(max(1 - p, min(1 - p, 1e-6)) + scores.off, 1)
            a, b = special.ndtri(p - scores.off), special.ndtri(q)
            wanted = scores.scale * (a - b) / 2 - scores.slack
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
        prepared = [exactly.noise.prepare(x)[:-1] for x in (self.image, halved)]
        np.testing.assert_array_equal(*prepared)
        of_two = [copies(exactly, x, 3) for x in (self.image, 2 * halved)]
        np.testing.assert_array_equal(*of_two)
        # And of the mass, which is as exact as a float can be.
        for image in (self.image, self.moved):
            bits = exactly.noise.prepare(image)[-1, 0, 0]
            exactly_summed = np.float32(math.fsum(np.float64(image).ravel()))
            self.assertEqual(bits.view(np.float32), exactly_summed)

    @EACH_LAW
    def test_certificates_say_they_are_smaller(self, name):
        ordinary, exactly = smoothings(name)

        def classify(images):
            none = 0 * images[:, 0, 0, 0]
            return jnp.stack([none + 1, none], -1)

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
        smoothing = wsjax.make_smoothing("flow_gaussian", 0.01, "l2", image_shape=SHAPE)
        with self.assertRaisesRegex(ValueError, "no exact votes under.*power_law"):
            exact.exact(smoothing)

    def test_another_shape_than_that_of_the_law_is_refused(self):
        ordinary, _ = smoothings("view")
        with self.assertRaisesRegex(ValueError, "certifies images of shape"):
            exact.exact(ordinary, (28, 28, 1))

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
