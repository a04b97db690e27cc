"""Tests of exact votes under the paper's noise."""

import decimal
import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize, sparse, stats

import wsjax
from wsjax import exact, exact_flow, fast_random

SHAPE = (5, 6, 2)
EACH_LAW = parameterized.named_parameters(
    ("laplace", "flow_laplace", False),
    ("wrapped", "flow_laplace", True),
    ("uniform", "flow_uniform", False),
    ("uniform_wrapped", "flow_uniform", True),
    ("pixels", "pixel_laplace", False),
)


def smoothings(name, wrap=False, *, theorem="tight", metric="l2", shape=SHAPE):
    ordinary = wsjax.make_smoothing(name, 0.01, metric, theorem, wrap)
    return ordinary, exact.exact(ordinary, shape)


def images_of_equal_mass(seed=0):
    """Two of whole numbers over 256, alike in the mass of each channel."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 200, (2, *SHAPE))
    short = images[0].sum((0, 1)) - images[1].sum((0, 1))
    at = np.unravel_index(images.sum((0, 3)).argmax(), SHAPE[:2])
    images[0][at] += np.maximum(-short, 0)
    images[1][at] += np.maximum(short, 0)
    return [(image / 256).astype(np.float32) for image in images]


def whole_of(smoothing, image):
    prepared = smoothing.noise.prepare(image)
    return prepared[:-1].reshape(image.shape).astype(np.int64)


def copies(smoothing, image, count, seed=3):
    keys = jax.random.split(wsjax.make_key(seed), count)
    prepared = smoothing.noise.prepare(image)
    return np.asarray(jax.vmap(smoothing.noise.perturb, (0, None))(keys, prepared))


class DrawTest(chex.TestCase):
    def test_the_least_of_n_variables_has_the_law_it_should(self):
        # Of P(X >= 1 - y) = 2^y - 1, in 50 digits.
        tail = [2**50, *exact_flow.tail_of_50_bits(), 0]
        of_each = [a - b for a, b in itertools.pairwise(tail)]
        self.assertLen(of_each, 10)
        self.assertGreater(min(of_each), 0)
        with decimal.localcontext(prec=50):

            def error(y):
                powers = sum(p * y ** (n + 1) for n, p in enumerate(of_each))
                return powers / 2**50 - (2**y - 1)

            ys = [decimal.Decimal(i) / 1000 for i in range(1001)]
            errors = [error(y) for y in ys]
            # All its ups and downs; what lies between is smooth.
            off = sum(abs(b - a) for a, b in itertools.pairwise(errors)) / 2
        self.assertEqual(errors[0], 0)
        self.assertEqual(errors[-1], 0)
        with_leading_zeros = float(off) + 2.0**-50
        self.assertLess(with_leading_zeros, exact_flow.LAPLACE_ERROR)
        self.assertGreater(with_leading_zeros, exact_flow.LAPLACE_ERROR / 20)

    def test_words_make_the_number_that_they_say(self):
        rng = np.random.default_rng(0)
        words = rng.integers(0, 2**32, (10, 3_000), np.uint32)
        top = np.uint32(2**32 - 2**22)
        words[5:8, :1000] &= ~top  # Long runs of zeros.
        words[8:10, :300] &= ~(top << np.uint32(3))
        words[8:10, :5] = 0
        for i, tail in enumerate(exact_flow.tail_of_50_bits()):
            for by in (-1, 0, 1):  # Next to each threshold.
                for w in range(5):
                    ten = (tail + by) >> (40 - 10 * w) & 1023
                    at = 2000 + 3 * i + by
                    words[w, at] = (ten << 22) | (int(words[w, at]) & (2**22 - 1))

        found = np.asarray(exact_flow.laplace_of(jnp.asarray(words)))

        for column, value in zip(words.T.tolist(), found.tolist()):
            bits = "".join(f"{word >> 22:010b}" for word in column)
            number = int(bits[:50], 2)
            terms = 1 + sum(number < t for t in exact_flow.tail_of_50_bits())
            least = min(word & (2**22 - 1) for word in column[:terms])
            zeros = len(bits[51:]) - len(bits[51:].lstrip("0"))
            size = (zeros << 22) + least
            self.assertEqual(value, -1 - size if bits[50] == "1" else size)

    def test_laplace_draws_have_the_law(self):
        at = np.arange(400_000, dtype=np.uint32)
        drawn = np.asarray(exact_flow.laplace_at(wsjax.make_key(0), at))
        self.assertEqual(drawn.dtype, np.int32)
        scale = 2**22 / math.log(2)
        self.assertGreater(stats.kstest((drawn + 0.5) / scale, "laplace").pvalue, 0.01)
        # The lowest bits are even to 2^-20.
        counts = np.bincount(drawn & 15, minlength=16)
        self.assertGreater(stats.chisquare(counts).pvalue, 0.01)

    def test_uniform_draws_have_the_law(self):
        at = np.arange(200_000, dtype=np.uint32)
        drawn = np.asarray(exact_flow.uniform_at(wsjax.make_key(1), at))
        law = stats.uniform(-(2**23), 2**24)
        self.assertGreater(stats.kstest(drawn + 0.5, law.cdf).pvalue, 0.01)
        self.assertBetween(drawn.min(), -(2**23), -(2**23) + 2_000)
        self.assertBetween(drawn.max(), 2**23 - 2_000, 2**23 - 1)

    @parameterized.parameters("threefry2x32", "rbg")
    def test_words_depend_on_key_and_position_alone(self, generator):
        key = jax.random.key(3, impl=generator)
        words = np.asarray(fast_random.words_at(key, np.arange(50, dtype=np.uint32), 4))
        chosen = np.array([7, 49, 0], np.uint32)
        again = fast_random.words_at(key, chosen, 4)
        np.testing.assert_array_equal(again, words[:, chosen])
        self.assertLen(np.unique(words), words.size)
        if generator == "threefry2x32":  # The first two are JAX's own, side by side.
            own = jax.random.bits(key, (50,), jnp.uint32)
            np.testing.assert_array_equal(words[0] ^ words[1], own)


class TheoremTest(chex.TestCase):
    @EACH_LAW
    def test_whole_images_are_as_far_apart_as_the_theorem_says(self, name, wrap):
        _, exactly = smoothings(name, wrap, metric="l1")
        step = exactly.noise.step
        for seed in range(3):
            a, b = map(np.float64, images_of_equal_mass(seed))
            change = whole_of(exactly, b) - whole_of(exactly, a)
            distance = wsjax.exact_distance(a, b, "l1")
            if name == "pixel_laplace":
                shift = np.abs(change).sum()
                wanted = np.abs(b / b.sum() - a / a.sum()).sum()
                slack = 2 * exactly.scores.slack
                self.assertLessEqual(wanted, 2 * distance + 1e-9)
            else:
                np.testing.assert_array_equal(change.sum((0, 1)), 0)
                shift, plan = least_flow(change)
                np.testing.assert_allclose(plan, np.rint(plan), atol=1e-6)
                wanted, slack = distance, exactly.scores.slack
            self.assertLessEqual(shift * step, wanted + slack)
            self.assertAlmostEqual(shift * step, wanted, delta=1e-6)
            self.assertLess(slack, 1e-3 * wanted)

    @parameterized.parameters("flow_laplace", "pixel_laplace")
    def test_slack_counts_a_step_for_each_edge(self, name):
        # Of an image whose sums round up, against one whose sums round down.
        ordinary, exactly = smoothings(name, metric="l1", shape=(1, 7, 1))
        step, scores = exactly.noise.step, exactly.scores
        edges = 6 if name == "flow_laplace" else 7
        factor = 1 if name == "flow_laplace" else 0.5
        off = edges * exact_flow.LAPLACE_ERROR
        self.assertEqual(scores.off, off)
        least = factor * edges * step
        wanted = least + scores.scale * 1.01e6 * off
        self.assertAlmostEqual(scores.slack / wanted, 1, delta=1e-4)
        self.assertEqual(scores.scale, ordinary.scores.scale)

    def test_sums_go_along_edges(self):
        # Rounding moves mass to the next pixel of the path alone.
        places = np.stack(np.indices((4, 5)), -1)
        path = exact_flow._back_and_forth(places).reshape(-1, 2)
        steps = np.abs(np.diff(path, axis=0)).sum(1)
        np.testing.assert_array_equal(steps, 1)
        np.testing.assert_array_equal(
            exact_flow._back_and_forth(path.reshape(4, 5, 2)), places
        )

    @parameterized.parameters("flow_laplace", "flow_uniform")
    def test_images_of_equal_mass_have_equal_masses_in_whole_numbers(self, name):
        # Float32 sums these up to different numbers, whichever way it goes.
        _, exactly = smoothings(name)
        image = np.full(SHAPE, 2.0**-24, np.float32)
        image[0, 0] = 1, 3
        other = image[::-1, ::-1]
        in_turn = [functools.reduce(np.add, x.ravel()) for x in (image, other)]
        self.assertNotEqual(*in_turn)
        alike = [whole_of(exactly, x).sum((0, 1)) for x in (image, other)]
        np.testing.assert_array_equal(*alike)
        wanted = np.float32(math.fsum(image.ravel()))
        for x in (image, other):
            mass = exactly.noise.prepare(x)[-1, 0, 0].view(np.float32)
            self.assertEqual(mass, wanted)

    def test_whole_images_are_off_by_what_sums_lose(self):
        for name in ("flow_laplace", "flow_uniform", "pixel_laplace"):
            _, exactly = smoothings(name)
            image = images_of_equal_mass()[0]
            wanted = np.float64(image) / math.fsum(image.ravel()) / exactly.noise.step
            off = np.abs(whole_of(exactly, image) - wanted).max()
            self.assertBetween(off, 0.3, 0.501 if name == "pixel_laplace" else 1.001)

    @parameterized.parameters("tight", "published")
    def test_a_shift_changes_no_half_line_more_than_the_theorem_says(self, theorem):
        # One edge: the worst events, with probabilities in closed form.
        shape = (1, 2, 1)
        _, exactly = smoothings(
            "flow_laplace", theorem=theorem, metric="l1", shape=shape
        )
        step, scores = exactly.noise.step, exactly.scores
        self.assertAlmostEqual(step * 2**22 / math.log(2), 0.01 / 2**0.5)

        def at_least(j):  # P(floor(L / h) >= j)
            below = 0.5 * 2.0 ** (-np.abs(j) / 2**22)
            return np.where(j >= 0, below, 1 - below)

        j = np.arange(-8 * 2**22, 2**22, 2**15)
        for shift in (1, 2**18, 2**22):
            p, after = at_least(j), at_least(j + shift)
            p_lower = p - exact_flow.LAPLACE_ERROR
            radius = scores.radius(p_lower)
            # Whatever is certified beyond the shift has to be the answer still.
            certified = radius >= shift * step
            self.assertTrue((after[certified] > 0.5).all())
            if shift > 1 and theorem == "tight":
                self.assertTrue(certified.any())
                ever = (p_lower > 0.5) & (after > 0.5 + 1e-3)
                self.assertGreater(certified[ever].mean(), 0.99)

    def test_radii_lose_slack_and_probabilities_what_the_draws_are_off(self):
        for theorem in ("tight", "published"):
            _, exactly = smoothings("flow_laplace", theorem=theorem)
            scores = exactly.scores
            for p in (0.7, 0.99, 1 - 1e-7, 1.0):
                q = max(1 - p, min(1 - p, 1e-6)) + scores.off
                a, b = p - scores.off, q
                if theorem == "published":
                    lead = math.log(a) - math.log(b)
                else:
                    lead = -math.log(2 * (1 - a)) - math.log(2 * b)
                wanted = scores.scale * lead / 2 - scores.slack
                self.assertAlmostEqual(scores.radius(p) / wanted, 1, delta=1e-6)
        with self.assertRaisesRegex(ValueError, "off=.*set it to 0"):
            wsjax.certificates.ProbabilityScores("identity", 1.0, "l1", off=1e-12)

    @EACH_LAW
    def test_pictures_are_those_of_the_law(self, name, wrap):
        ordinary, exactly = smoothings(name, wrap)
        image = images_of_equal_mass()[0]
        found = copies(exactly, image, 4_000)
        keys = jax.random.split(wsjax.make_key(4), 4_000)
        wanted = np.asarray(jax.vmap(ordinary.perturb, (0, None))(keys, image))
        spread = wanted.std(0)
        gap = (found.mean(0) - wanted.mean(0)) / spread * math.sqrt(len(found) / 2)
        self.assertLess(np.abs(gap).max(), 4.5)
        np.testing.assert_allclose(found.std(0) / spread, 1, atol=0.12)
        if name != "pixel_laplace":  # Noise on edges: neighbours depend on each other.
            across = [
                np.mean((x - x.mean(0))[:, 2, 2] * (x - x.mean(0))[:, 2, 3])
                for x in (found, wanted)
            ]
            self.assertAlmostEqual(across[0] / across[1], 1, delta=0.25)
            masses = found.sum((1, 2)) / image.sum((0, 1))
            np.testing.assert_allclose(masses, 1, rtol=1e-5)


def least_flow(change):
    """Norm and edges of the cheapest real flow with a divergence, channel by channel."""
    height, width = change.shape[:2]
    place = np.arange(height * width).reshape(height, width)
    pairs = [(place[1:], place[:-1]), (place[:, 1:], place[:, :-1])]
    heads, tails = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
    count = len(heads)
    rows, columns = np.append(heads, tails), np.tile(np.arange(count), 2)
    signs = np.repeat([1.0, -1.0], count)
    matrix = sparse.csr_array((signs, (rows, columns)), (height * width, count))
    both = sparse.hstack([matrix, -matrix])
    plans = []
    for channel in np.moveaxis(change, 2, 0):
        solved = optimize.linprog(
            np.ones(2 * count), A_eq=both, b_eq=channel.ravel(), method="highs-ds"
        )
        assert solved.status == 0
        plans.append(solved.x)
    return np.sum(plans), np.concatenate(plans)


class RoundingTest(chex.TestCase):
    """A classifier that knows two images' rounding, against certificates for them.

    They have equal mass, and float32 sums it up to different numbers. Where a pixel is
    black, noise is shown as mass x scale x noise, and noise is a multiple of 2^-25 more
    often than not: of which of the two masses there are more such pixels is seen.
    """

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(1)
        image = (rng.integers(0, 256, (20, 20, 1)) / 255).astype(np.float32)
        image[::2] = 0
        self.image = image
        self.masses = [self.mass_in_floats(image)]
        while True:
            moved = image.copy()
            pixels = moved.ravel()
            a, b = rng.choice(np.flatnonzero(pixels > 0.01), 2, replace=False)
            step = np.float32(rng.integers(1, 64) * 2.0**-22)
            pixels[a] -= step
            pixels[b] += step
            equal = math.fsum(pixels) == math.fsum(image.ravel())
            if equal and self.mass_in_floats(moved) != self.masses[0]:
                break
        self.moved = moved
        self.masses.append(self.mass_in_floats(moved))
        self.distance = wsjax.exact_distance(image, moved, "l2")

    def mass_in_floats(self, image):
        return np.float32(wsjax.image_mass(jnp.asarray(image)))

    def certified(self, smoothing, scale):
        black = np.flatnonzero(self.image.ravel() == 0)
        scale = np.float32(scale)

        def made_by(pixels, mass):
            near = pixels / mass / scale * np.float32(2**25)
            whole = [(jnp.rint(near) + by) * np.float32(2**-25) for by in (-1, 0, 1)]
            fits = functools.reduce(
                jnp.logical_or, [mass * (scale * w) == pixels for w in whole]
            )
            return (fits & (jnp.abs(near) < 2**21)).sum(-1).astype(jnp.float32)

        def classify(images):
            pixels = images.reshape(len(images), -1)[:, black]
            return jnp.stack([made_by(pixels, mass) for mass in self.masses], -1)

        certifier = wsjax.FixedVotes(classify, smoothing, n0=50, n=1_000, alpha=0.001)
        return [
            certifier.certify(image, wsjax.make_key(i))
            for i, image in enumerate((self.image, self.moved))
        ]

    @parameterized.parameters("flow_laplace", "flow_uniform")
    def test_ordinary_votes_certify_what_is_false_and_exact_votes_do_not(self, name):
        ordinary, exactly = smoothings(name, shape=self.image.shape)
        scale = ordinary.noise.scale
        here, there = self.certified(ordinary, scale)
        self.assertEqual((here.label, there.label), (0, 1))
        self.assertGreater(min(here.radius, there.radius), 1_000 * self.distance)

        here, there = self.certified(exactly, scale)

        self.assertEqual(here.label, there.label)

    @EACH_LAW
    def test_what_a_classifier_sees_depends_on_whole_numbers_alone(self, name, wrap):
        _, exactly = smoothings(name, wrap)
        image = images_of_equal_mass()[0]
        prepared = [exactly.noise.prepare(x)[:-1] for x in (image, image / 2)]
        np.testing.assert_array_equal(*prepared)
        of_two = [copies(exactly, x, 3) for x in (image, 2 * (image / 2))]
        np.testing.assert_array_equal(*of_two)
        _, at_hand = smoothings(name, wrap, shape=self.image.shape)
        bits = [at_hand.noise.prepare(x)[-1] for x in (self.image, self.moved)]
        np.testing.assert_array_equal(*bits)

    @parameterized.parameters("flow_laplace", "flow_uniform")
    def test_certificates_say_they_are_smaller(self, name):
        ordinary, exactly = smoothings(name)

        def classify(images):
            none = 0 * images[:, 0, 0, 0]
            return jnp.stack([none + 1, none], -1)

        found = [
            wsjax.FixedVotes(classify, s, n0=20, n=200).certify(
                images_of_equal_mass()[0], wsjax.make_key(0)
            )
            for s in (ordinary, exactly)
        ]
        self.assertEqual(found[0].label, found[1].label)
        self.assertLess(found[1].radius, found[0].radius)
        self.assertGreater(found[1].radius, 0.999 * found[0].radius)


class RefusalTest(parameterized.TestCase):
    def test_a_shape_is_asked_for(self):
        smoothing = wsjax.make_smoothing("flow_laplace", 0.01, "l2")
        with self.assertRaisesRegex(ValueError, r"give image_shape=\(H, W, C\)"):
            exact.exact(smoothing)
        with self.assertRaisesRegex(ValueError, "last axis of size 1"):
            exact.exact(smoothing, (28, 28))
        ours = exact.exact(smoothing, SHAPE)
        self.assertEqual(ours.image_shape, SHAPE)
        with self.assertRaisesRegex(ValueError, "certifies images of shape"):
            ours.check_shape((28, 28, 1))
        with self.assertRaisesRegex(ValueError, "share_draws=1"):
            ours.noise.prepare(np.ones((2, *SHAPE), np.float32))

    def test_too_little_noise_is_refused(self):
        smoothing = wsjax.make_smoothing("flow_laplace", 1e-5, "l2")
        with self.assertRaisesRegex(ValueError, "sigma=1e-05. Smooth with more noise"):
            exact.exact(smoothing, SHAPE).noise.prepare(images_of_equal_mass()[0])

    def test_one_pixel_is_an_image(self):
        _, exactly = smoothings("flow_laplace", shape=(1, 1, 1))
        shown = copies(exactly, np.full((1, 1, 1), 0.25, np.float32), 2)
        np.testing.assert_allclose(shown, 0.25, rtol=1e-6)


if __name__ == "__main__":
    absltest.main()
