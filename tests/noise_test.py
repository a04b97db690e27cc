"""Tests of wsjax.noise."""

import dataclasses
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

import oracles
from wsjax import noise
from wsjax.flow import FlowPlan, divergence, flow_shape

FLOW_LAWS = (noise.FlowLaplace, noise.FlowUniform, noise.FlowGaussian)
LAWS = (*FLOW_LAWS, noise.PixelLaplace)
NAMES = {
    noise.FlowLaplace: "flow_laplace",
    noise.FlowUniform: "flow_uniform",
    noise.FlowGaussian: "flow_gaussian",
    noise.PixelLaplace: "pixel_laplace",
}
EACH_LAW = parameterized.named_parameters((law.__name__, law) for law in LAWS)
EACH_FLOW_LAW = parameterized.named_parameters((law.__name__, law) for law in FLOW_LAWS)
# In this module's float64 cases, draws are made under the switch for 64-bit types.
EACH_DTYPE = parameterized.named_parameters(
    (f"{law.__name__}_{dtype.__name__}", law, dtype)
    for law in LAWS
    for dtype in (np.float32, np.float64)
)


def in_precision(dtype):
    return jax.enable_x64(dtype == np.float64)


def variables(law, key, image_shape, dtype):
    """The independent variables of one draw: edges of a plan, or pixels."""
    if isinstance(law, noise.FlowNoise):
        plan = law.sample_plan(key, image_shape, dtype)
        return np.concatenate([np.ravel(edges) for edges in plan])
    return np.ravel(law.sample(key, image_shape, dtype))


def draw_many(law, image_shape, count, seed=0):
    """`[count, variables]`, under one key each."""
    keys = jax.random.split(jax.random.key(seed), count)
    if isinstance(law, noise.FlowNoise):
        plans = jax.vmap(lambda k: law.sample_plan(k, image_shape, jnp.float32))(keys)
        return np.concatenate([np.reshape(e, (count, -1)) for e in plans], axis=1)
    draws = jax.vmap(lambda k: law.sample(k, image_shape, jnp.float32))(keys)
    return np.reshape(draws, (count, -1))


class LawTest(chex.TestCase):
    @EACH_DTYPE
    def test_draws_follow_the_law_of_the_theorem(self, law, dtype):
        sigma = 0.037
        with in_precision(dtype):
            draws = variables(law(sigma), jax.random.key(1), (120, 121, 2), dtype)

        self.assertEqual(draws.dtype, dtype)
        expected = oracles.flow_law(NAMES[law], sigma)
        self.assertGreater(stats.kstest(draws, expected.cdf).pvalue, 0.01)

    @EACH_LAW
    def test_every_edge_or_pixel_has_standard_deviation_sigma(self, law):
        draws = draw_many(law(0.5), (3, 4, 2), 8_000)

        # A Laplace sample's standard deviation varies most: by sqrt(5 / 4 n).
        np.testing.assert_allclose(draws.std(axis=0), 0.5, rtol=5 * 0.0125)
        np.testing.assert_allclose(draws.std(), 0.5, rtol=0.01)
        np.testing.assert_allclose(draws.mean(axis=0), 0, atol=5 * 0.5 / 8_000**0.5)

    @EACH_LAW
    def test_edges_or_pixels_do_not_correlate(self, law):
        draws = draw_many(law(1.0), (3, 4, 2), 8_000)

        correlations = np.corrcoef(draws.T) - np.eye(draws.shape[1])

        self.assertLess(np.abs(correlations).max(), 5 / 8_000**0.5)

    @EACH_LAW
    def test_colour_channels_draw_their_own_noise(self, law):
        draw = law(1.0).sample(jax.random.key(2), (6, 6, 3), jnp.float32)

        for a, b in ((0, 1), (0, 2), (1, 2)):
            self.assertLess(
                abs(np.corrcoef(draw[..., a].ravel(), draw[..., b].ravel())[0, 1]), 0.6
            )


class StandardLaplaceTest(parameterized.TestCase):
    def draw_from_bits(self, *bits, dtype):
        bits = jnp.array(bits, jnp.uint32 if dtype == np.float32 else jnp.uint64)
        with mock.patch.object(jax.random, "bits", lambda *args: bits):
            return np.asarray(noise.standard_laplace(None, bits.shape, dtype))

    def test_extreme_bits_give_finite_float32_values(self):
        low, high, low_signed, high_signed = self.draw_from_bits(
            0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, dtype=np.float32
        )

        self.assertAlmostEqual(low, 32 * np.log(2), places=5)
        self.assertAlmostEqual(low_signed, -32 * np.log(2), places=5)
        self.assertEqual(high, 0.0)
        self.assertEqual(high_signed, 0.0)

    def test_extreme_bits_give_finite_float64_values(self):
        with jax.enable_x64(True):
            values = self.draw_from_bits(
                0, 1, 0xFFFFFFFFFFFFFFFE, 0xFFFFFFFFFFFFFFFF, dtype=np.float64
            )

        np.testing.assert_allclose(values[:2], [54 * np.log(2), -54 * np.log(2)])
        np.testing.assert_array_equal(values[2:], 0.0)

    def test_every_magnitude_is_as_likely_on_either_side(self):
        bits = np.random.default_rng(0).integers(0, 2**31, 10_000, np.uint32)

        positive = self.draw_from_bits(*bits, dtype=np.float32)
        negative = self.draw_from_bits(*(bits | 0x80000000), dtype=np.float32)

        self.assertTrue((positive >= 0).all())
        np.testing.assert_array_equal(negative, -positive)

    def test_the_sign_bit_of_float64_is_no_bit_of_the_magnitude(self):
        rng = np.random.default_rng(1)
        bits = rng.integers(0, 2**63, 1_000, np.uint64) << np.uint64(1)
        with jax.enable_x64(True):
            positive = self.draw_from_bits(*bits, dtype=np.float64)
            negative = self.draw_from_bits(*(bits | np.uint64(1)), dtype=np.float64)

        self.assertTrue((positive >= 0).all())
        np.testing.assert_array_equal(negative, -positive)

    def test_tails_are_those_of_the_law(self):
        draws = noise.standard_laplace(jax.random.key(3), (2_000_000,), jnp.float32)

        for size in (3, 6, 9):
            expected = len(draws) * np.exp(-size) / 2
            for side in (np.sum(draws > size), np.sum(draws < -size)):
                self.assertLess(abs(side - expected), 5 * expected**0.5)

    @parameterized.parameters(jnp.float16, jnp.bfloat16, jnp.int32)
    def test_refuses_other_types(self, dtype):
        with self.assertRaisesRegex(ValueError, "float32 or float64, not"):
            noise.standard_laplace(jax.random.key(0), (3,), dtype)

    def test_uniform_stays_within_one(self):
        draws = noise.standard_uniform(jax.random.key(4), (100_000,), jnp.float32)

        self.assertGreaterEqual(draws.min(), -1.0)
        self.assertLess(draws.max(), 1.0)


class SampleTest(chex.TestCase):
    @parameterized.product(
        law=FLOW_LAWS, wrap=(False, True), shape=((5, 4, 1), (3, 6, 3), (1, 7, 1))
    )
    def test_flow_noise_is_the_random_plan_applied_to_nothing(self, law, wrap, shape):
        law, key = law(0.1, wrap=wrap), jax.random.key(5)

        plan = law.sample_plan(key, shape, jnp.float32)
        draw = law.sample(key, shape, jnp.float32)

        self.assertEqual(FlowPlan(*(e.shape for e in plan)), flow_shape(shape, wrap))
        chex.assert_shape(draw, shape)
        chex.assert_type(draw, jnp.float32)
        np.testing.assert_array_equal(draw, -divergence(plan, shape))
        np.testing.assert_allclose(
            draw,
            oracles.carry_each_parcel(np.zeros(shape, np.float32), plan, wrap),
            atol=1e-6,
        )

    @parameterized.product(law=FLOW_LAWS, wrap=(False, True))
    def test_flow_noise_keeps_the_mass_of_every_channel(self, law, wrap):
        draw = law(1.0, wrap=wrap).sample(jax.random.key(6), (9, 8, 3), jnp.float32)

        np.testing.assert_allclose(draw.sum((0, 1)), 0.0, atol=1e-4)
        self.assertGreater(float(jnp.abs(draw).max()), 1.0)

    def test_pixel_noise_does_not_keep_mass(self):
        draw = noise.PixelLaplace(1.0).sample(jax.random.key(6), (9, 8, 1), jnp.float32)

        self.assertGreater(abs(float(draw.sum())), 0.1)

    @parameterized.product(law=FLOW_LAWS, wrap=(False, True))
    def test_flow_noise_has_the_covariance_of_its_edges(self, law, wrap):
        law, count = law(0.5, wrap=wrap), 10_000
        keys = jax.random.split(jax.random.key(7), count)

        draws = jax.vmap(lambda k: law.sample(k, (3, 3, 1), jnp.float32))(keys)

        matrix = oracles.incidence((3, 3, 1), wrap)
        expected = 0.25 * matrix @ matrix.T
        actual = np.cov(np.reshape(draws, (count, -1)).T)
        np.testing.assert_allclose(actual, expected, atol=0.06)

    @EACH_FLOW_LAW
    def test_a_single_pixel_gets_no_flow_noise(self, law):
        draw = law(1.0).sample(jax.random.key(0), (1, 1, 3), jnp.float32)

        np.testing.assert_array_equal(draw, np.zeros((1, 1, 3)))

    @EACH_LAW
    def test_jit_and_vmap_draw_the_same(self, law):
        law, shape = law(0.1), (4, 5, 2)
        keys = jax.random.split(jax.random.key(8), 3)

        one_by_one = np.stack([law.sample(k, shape, jnp.float32) for k in keys])
        compiled = jax.jit(lambda k: law.sample(k, shape, jnp.float32))
        together = jax.vmap(compiled)(keys)
        np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(
            compiled(keys[1]), one_by_one[1], rtol=1e-5, atol=1e-7
        )

    @EACH_LAW
    def test_keys_decide(self, law):
        law, shape = law(0.1), (4, 5, 1)
        a, b = jax.random.split(jax.random.key(9))

        draw = law.sample(a, shape, jnp.float32)

        np.testing.assert_array_equal(draw, law.sample(a, shape, jnp.float32))
        self.assertGreater(
            float(jnp.abs(draw - law.sample(b, shape, jnp.float32)).max()), 1e-3
        )

    @EACH_LAW
    def test_refuses_what_is_no_image(self, law):
        with self.assertRaisesRegex(ValueError, r"\[H, W, C\].*\(5, 4\)"):
            law(0.1).sample(jax.random.key(0), (5, 4), jnp.float32)


class PerturbTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @EACH_LAW
    def test_adds_mass_times_one_draw(self, law):
        law, key = law(0.01), jax.random.key(10)
        image = np.random.default_rng(0).uniform(size=(5, 4, 3)).astype(np.float32)

        noisy = self.variant(law.perturb)(key, image)

        draw = law.sample(key, image.shape, image.dtype)
        chex.assert_type(noisy, jnp.float32)
        np.testing.assert_allclose(noisy, image + image.sum() * draw, atol=1e-5)

    @EACH_LAW
    def test_units_do_not_matter(self, law):
        law, key = law(0.01), jax.random.key(11)
        image = np.random.default_rng(1).uniform(size=(5, 4, 1)).astype(np.float32)

        in_bytes = law.perturb(key, 255 * image)

        np.testing.assert_allclose(in_bytes, 255 * law.perturb(key, image), rtol=1e-4)

    def test_does_not_clip(self):
        image = np.full((8, 8, 1), 0.5, np.float32)

        noisy = noise.FlowLaplace(0.1).perturb(jax.random.key(12), image)

        self.assertLess(float(noisy.min()), 0.0)
        self.assertGreater(float(noisy.max()), 1.0)

    @EACH_DTYPE
    def test_keeps_the_type_of_the_image(self, law, dtype):
        with in_precision(dtype):
            noisy = law(0.1).perturb(jax.random.key(0), jnp.ones((3, 2, 1), dtype))

        self.assertEqual(noisy.dtype, dtype)


class NoiseLawTest(chex.TestCase):
    @EACH_LAW
    def test_laws_are_values(self, law):
        self.assertEqual(law(0.1), law(0.1))
        self.assertNotEqual(law(0.1), law(0.2))
        self.assertEqual(hash(law(0.1)), hash(law(0.1)))
        with self.assertRaises(dataclasses.FrozenInstanceError):
            law(0.1).sigma = 0.2

    def test_laws_of_different_names_differ(self):
        self.assertLen({law(0.1) for law in LAWS}, len(LAWS))
        self.assertNotEqual(noise.FlowLaplace(0.1), noise.FlowLaplace(0.1, wrap=True))

    def test_equal_laws_are_one_static_argument(self):
        @chex.assert_max_traces(n=1)
        def perturb(law, key, image):
            return law.perturb(key, image)

        perturb = jax.jit(perturb, static_argnums=0)
        for seed in range(3):
            perturb(noise.FlowLaplace(0.1), jax.random.key(seed), jnp.ones((3, 2, 1)))

    @parameterized.product(law=LAWS, sigma=(0, -0.1, np.inf, np.nan, "0.1", None))
    def test_refuses_impossible_spreads(self, law, sigma):
        with self.assertRaisesRegex(ValueError, "positive finite number") as caught:
            law(sigma)
        self.assertIn(f"sigma={sigma!r}", str(caught.exception))

    @parameterized.parameters(
        (noise.FlowLaplace, 0.5**0.5),
        (noise.FlowUniform, 3**0.5),
        (noise.FlowGaussian, 1.0),
        (noise.PixelLaplace, 0.5**0.5),
    )
    def test_scale_belongs_to_the_standard_variable(self, law, factor):
        self.assertAlmostEqual(law(0.2).scale, 0.2 * factor, places=15)


if __name__ == "__main__":
    absltest.main()
