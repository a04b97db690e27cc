"""Tests of wsjax.noise."""

import dataclasses
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import make_key, noise
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
EACH_DTYPE = parameterized.named_parameters(
    (f"{law.__name__}_{dtype.__name__}", law, dtype)
    for law in LAWS
    for dtype in (np.float32, np.float64)
)


SHAPE = (5, 4, 2)


# One compilation per law serves all tests.
@functools.partial(oracles.on_host, static_argnums=(2, 3))
def sample(law, key, shape=SHAPE, dtype=jnp.float32):
    return law.sample(key, shape, dtype)


@functools.partial(oracles.on_host, static_argnums=(2, 3))
def sample_plan(law, key, shape=SHAPE, dtype=jnp.float32):
    return law.sample_plan(key, shape, dtype)


_divergence = oracles.on_host(lambda plan: divergence(plan, SHAPE))
perturb = oracles.on_host(lambda law, key, image: law.perturb(key, image))


@functools.cache
def draw_many(law, dtype, count=8_000):
    """`[count, variables]`: edges of a plan or pixels, under one key each."""
    draw = law.sample_plan if isinstance(law, noise.FlowNoise) else law.sample

    @oracles.on_host
    def draw_all(key):
        keys = jax.random.split(key, count)
        return jax.vmap(lambda key: draw(key, SHAPE, dtype))(keys)

    draws = jax.tree.leaves(draw_all(make_key(0)))
    return np.concatenate([np.reshape(d, (count, -1)) for d in draws], axis=1)


class LawTest(parameterized.TestCase):
    @EACH_DTYPE
    def test_draws_follow_the_law_of_the_theorem(self, law, dtype):
        with jax.enable_x64(dtype == np.float64):
            draws = draw_many(law(0.5), dtype).ravel()

        self.assertEqual(draws.dtype, dtype)
        expected = oracles.flow_law(NAMES[law], 0.5)
        self.assertGreater(stats.kstest(draws[::5], expected.cdf).pvalue, 0.01)

    @EACH_LAW
    def test_every_edge_or_pixel_has_standard_deviation_sigma(self, law):
        draws = draw_many(law(0.5), np.float32)

        # A Laplace sample's standard deviation varies most: by sqrt(5 / 4 n).
        np.testing.assert_allclose(draws.std(axis=0), 0.5, rtol=5 * 0.0125)
        np.testing.assert_allclose(draws.std(), 0.5, rtol=0.01)
        np.testing.assert_allclose(draws.mean(axis=0), 0, atol=5 * 0.5 / 8_000**0.5)

    @EACH_LAW
    def test_no_edges_or_pixels_of_any_channel_correlate(self, law):
        draws = draw_many(law(0.5), np.float32)

        correlations = np.corrcoef(draws.T) - np.eye(draws.shape[1])

        self.assertLess(np.abs(correlations).max(), 5 / 8_000**0.5)


def draw_from_bits(standard, *bits, dtype):
    bits = np.array(bits, np.uint32 if dtype == np.float32 else np.uint64)
    with mock.patch.object(jax.random, "bits", lambda *args: jnp.asarray(bits)):
        return np.asarray(jax.jit(lambda: standard(None, bits.shape, dtype))())


# Of one random bit as the sign and the others as the magnitude.
EACH_SIGNED = parameterized.named_parameters(
    ("laplace", noise.standard_laplace, stats.laplace),
    ("normal", noise.standard_normal, stats.norm),
)


class StandardTest(parameterized.TestCase):
    @EACH_SIGNED
    def test_extreme_bits_give_finite_float32_values(self, standard, law):
        low, high, low_signed, high_signed = draw_from_bits(
            standard, 0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, dtype=np.float32
        )

        self.assertAlmostEqual(low, law.isf(2.0**-33), places=5)
        self.assertAlmostEqual(low_signed, law.ppf(2.0**-33), places=5)
        self.assertEqual(high, 0.0)
        self.assertEqual(high_signed, 0.0)

    @EACH_SIGNED
    def test_extreme_bits_give_finite_float64_values(self, standard, law):
        with jax.enable_x64(True):
            values = draw_from_bits(
                standard, 0, 1, 0xFFFFFFFFFFFFFFFE, 0xFFFFFFFFFFFFFFFF, dtype=np.float64
            )

        reach = law.isf(2.0**-55)
        np.testing.assert_allclose(values[:2], [reach, -reach])
        np.testing.assert_array_equal(values[2:], 0.0)

    def test_reaches_further_than_the_draws_of_jax(self):
        for standard, reach in (
            (noise.standard_laplace, 22.1),
            (noise.standard_normal, 6.3),
        ):
            (low,) = draw_from_bits(standard, 0, dtype=np.float32)
            self.assertGreater(low, reach)

    @EACH_SIGNED
    def test_every_magnitude_is_as_likely_on_either_side(self, standard, law):
        bits = np.random.default_rng(0).integers(0, 2**31, 10_000, np.uint32)

        positive = draw_from_bits(standard, *bits, dtype=np.float32)
        negative = draw_from_bits(standard, *(bits | 0x80000000), dtype=np.float32)

        self.assertTrue((positive >= 0).all())
        np.testing.assert_array_equal(negative, -positive)

    @EACH_SIGNED
    def test_the_sign_bit_of_float64_is_no_bit_of_the_magnitude(self, standard, law):
        rng = np.random.default_rng(1)
        bits = rng.integers(0, 2**63, 1_000, np.uint64) << np.uint64(1)
        with jax.enable_x64(True):
            positive = draw_from_bits(standard, *bits, dtype=np.float64)
            negative = draw_from_bits(
                standard, *(bits | np.uint64(1)), dtype=np.float64
            )

        self.assertTrue((positive >= 0).all())
        np.testing.assert_array_equal(negative, -positive)

    @EACH_SIGNED
    def test_every_magnitude_is_the_quantile_of_its_bits(self, standard, law):
        # All sizes of magnitude, from the first integer in the tail to the last.
        rng = np.random.default_rng(2)
        bits = np.concatenate(
            [np.arange(100), 2 ** rng.uniform(0, 31, 5_000), 2**31 - 1 - np.arange(100)]
        ).astype(np.uint32)
        bits = np.minimum(bits, 2**31 - 1)

        drawn = draw_from_bits(standard, *bits, dtype=np.float32)

        exact = law.isf((bits + 0.5) * 2.0**-32)
        np.testing.assert_allclose(drawn, exact, rtol=1e-6, atol=1e-7)
        self.assertTrue((np.diff(drawn[np.argsort(bits, kind="stable")]) <= 0).all())

    @EACH_SIGNED
    def test_every_float64_magnitude_is_the_quantile_of_its_bits(self, standard, law):
        magnitudes = 2 ** np.random.default_rng(3).uniform(0, 53, 5_000)
        bits = magnitudes.astype(np.uint64) << np.uint64(11)
        with jax.enable_x64(True):
            drawn = draw_from_bits(standard, *bits, dtype=np.float64)

        exact = law.isf((np.floor(magnitudes) + 0.5) * 2.0**-54)
        np.testing.assert_allclose(drawn, exact, rtol=1e-13, atol=1e-15)

    @parameterized.named_parameters(
        ("laplace", noise.standard_laplace, stats.laplace, (3, 6, 9)),
        ("normal", noise.standard_normal, stats.norm, (2, 3, 4)),
    )
    def test_tails_are_those_of_the_law(self, standard, law, sizes):
        draws = jax.jit(lambda: standard(make_key(3), (1_000_000,), jnp.float32))()

        for size in sizes:
            expected = len(draws) * law.sf(size)
            for side in (np.sum(draws > size), np.sum(draws < -size)):
                self.assertLess(abs(side - expected), 5 * expected**0.5)
        self.assertGreater(stats.kstest(draws[::50], law.cdf).pvalue, 0.01)

    @parameterized.product(
        standard=(
            noise.standard_laplace,
            noise.standard_normal,
            *(law(0.1).sample for law in LAWS),
        ),
        dtype=(jnp.float16, jnp.bfloat16, jnp.int32),
    )
    def test_refuses_other_types(self, standard, dtype):
        with self.assertRaisesRegex(ValueError, "float32 or float64, not"):
            standard(make_key(0), (3, 4, 1), dtype)

    def test_uniform_stays_within_one(self):
        draws = noise.FlowUniform.standard(jax.random.bits(make_key(4), (100_000,)))

        self.assertGreaterEqual(draws.min(), -1.0)
        self.assertLess(draws.max(), 1.0)


class SampleTest(parameterized.TestCase):
    @parameterized.product(law=FLOW_LAWS, wrap=(False, True))
    def test_flow_noise_is_the_random_plan_applied_to_nothing(self, law, wrap):
        law, key = law(0.1, wrap=wrap), make_key(5)

        plan = sample_plan(law, key)
        draw = sample(law, key)

        self.assertEqual(FlowPlan(*(e.shape for e in plan)), flow_shape(SHAPE, wrap))
        chex.assert_shape(draw, SHAPE)
        np.testing.assert_allclose(draw, -_divergence(plan), atol=1e-6)
        by_hand = oracles.carry_each_parcel(np.zeros(SHAPE, np.float32), plan, wrap)
        np.testing.assert_allclose(draw, by_hand, atol=1e-6)

    @parameterized.product(law=FLOW_LAWS, wrap=(False, True))
    def test_flow_noise_keeps_the_mass_of_every_channel(self, law, wrap):
        draw = sample(law(0.1, wrap=wrap), make_key(6))

        np.testing.assert_allclose(draw.sum((0, 1)), 0.0, atol=1e-5)
        self.assertGreater(float(jnp.abs(draw).max()), 0.1)

    @parameterized.parameters((1, 7, 1), (6, 1, 2), (1, 1, 3))
    def test_thin_images_get_noise_along_their_edges_alone(self, *shape):
        draw = sample(noise.FlowLaplace(1.0), make_key(0), shape)

        chex.assert_shape(draw, shape)
        self.assertEqual(bool(np.any(draw)), len(oracles.edges(shape, False)) > 0)

    def test_pixel_noise_does_not_keep_mass(self):
        draw = sample(noise.PixelLaplace(0.1), make_key(6))

        self.assertGreater(np.abs(draw.sum((0, 1))).max(), 0.01)

    @EACH_LAW
    def test_jit_and_vmap_draw_the_same(self, law):
        law = law(0.1)
        keys = jax.random.split(make_key(8), 3)

        @oracles.on_host
        @jax.vmap
        def sample_each(key):
            return law.sample(key, SHAPE, jnp.float32)

        together = sample_each(keys)

        compiled = np.stack([sample(law, k) for k in keys])
        np.testing.assert_allclose(together, compiled, rtol=1e-5, atol=1e-7)

    def test_without_jit_draws_the_same(self):
        law, key = noise.FlowLaplace(0.1), make_key(8)

        eager = law.sample(key, SHAPE, jnp.float32)

        np.testing.assert_allclose(sample(law, key), eager, rtol=1e-5, atol=1e-7)

    @EACH_LAW
    def test_keys_decide(self, law):
        a, b = jax.random.split(make_key(9))

        draw = sample(law(0.1), a)

        np.testing.assert_array_equal(draw, sample(law(0.1), a))
        self.assertGreater(float(np.abs(draw - sample(law(0.1), b)).max()), 1e-3)

    @EACH_LAW
    def test_refuses_what_is_no_image(self, law):
        with self.assertRaisesRegex(ValueError, r"\[H, W, C\].*\(5, 4\)"):
            law(0.1).sample(make_key(0), (5, 4), jnp.float32)


class PerturbTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.image = rng.uniform(size=SHAPE).astype(np.float32)

    @EACH_LAW
    def test_adds_mass_times_one_draw(self, law):
        key = make_key(10)

        noisy = perturb(law(0.1), key, self.image)

        expected = self.image + self.image.sum() * sample(law(0.1), key)
        np.testing.assert_allclose(noisy, expected, atol=1e-5)

    @EACH_LAW
    def test_units_do_not_matter(self, law):
        key = make_key(11)

        in_bytes = perturb(law(0.1), key, 255 * self.image)

        in_units = perturb(law(0.1), key, self.image)
        np.testing.assert_allclose(in_bytes, 255 * in_units, rtol=1e-4, atol=1e-2)

    def test_does_not_clip(self):
        noisy = perturb(noise.FlowLaplace(0.1), make_key(12), self.image)

        self.assertLess(float(noisy.min()), 0.0)
        self.assertGreater(float(noisy.max()), 1.0)

    @EACH_DTYPE
    def test_keeps_the_type_of_the_image(self, law, dtype):
        with jax.enable_x64(dtype == np.float64):
            noisy = jax.eval_shape(
                law(0.1).perturb, make_key(0), jnp.ones(SHAPE, dtype)
            )

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

    @parameterized.parameters((), (0,))
    def test_equal_laws_are_one_argument(self, *static):
        chex.clear_trace_counter()

        @functools.partial(jax.jit, static_argnums=static)
        @chex.assert_max_traces(n=1)
        def scale(law, x):
            return law.scale * x

        for _ in range(3):
            scale(noise.FlowLaplace(0.1), 1.0)

    @EACH_LAW
    def test_numbers_are_no_leaves(self, law):
        leaves, structure = jax.tree.flatten(law(0.1))

        self.assertEmpty(leaves)
        self.assertEqual(jax.tree.unflatten(structure, leaves), law(0.1))
        self.assertNotEqual(structure, jax.tree.structure(law(0.2)))
        if issubclass(law, noise.FlowNoise):
            self.assertNotEqual(structure, jax.tree.structure(law(0.1, wrap=True)))

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


@dataclasses.dataclass(frozen=True)
class Salt(noise.NoiseLaw):
    """The least that makes a law: one pixel gets an amount of mass."""

    amount: float

    def sample(self, key, image_shape, dtype):
        place = jax.random.randint(key, (), 0, np.prod(image_shape))
        return (
            jnp.zeros(image_shape, dtype)
            .ravel()
            .at[place]
            .set(self.amount)
            .reshape(image_shape)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Pepper(noise.NoiseLaw):
    """A law with an array: every pixel has a size of its own."""

    sizes: np.ndarray
    power: int = 1

    arrays = ("sizes",)

    def __post_init__(self):
        self._freeze()

    def sample(self, key, image_shape, dtype):
        return self.sizes * jax.random.uniform(key, image_shape, dtype) ** self.power


class NewLawTest(chex.TestCase):
    """What the docstring of `NoiseLaw` promises to those who add one."""

    sizes = np.random.default_rng(6).uniform(size=SHAPE)

    def test_needs_a_method_alone(self):
        key, image = make_key(0), np.random.default_rng(5).uniform(size=SHAPE)
        image = image.astype(np.float32)
        for law in (Salt(0.5), Pepper(self.sizes)):
            expected = image + image.sum() * law.sample(key, SHAPE, np.float32)
            np.testing.assert_allclose(perturb(law, key, image), expected, rtol=1e-5)

    def test_laws_that_differ_in_arrays_share_a_program(self):
        key, first = make_key(0), Pepper(self.sizes)
        expected = np.asarray(sample(first, key))

        with oracles.compilations() as compiled:
            twice = sample(Pepper(2 * self.sizes), key)
        self.assertEmpty(compiled)
        np.testing.assert_allclose(twice, 2 * expected, rtol=1e-6)
        np.testing.assert_allclose(
            sample(Pepper(self.sizes, 2), key) * self.sizes, expected**2, rtol=1e-5
        )

    def test_laws_with_arrays_are_values(self):
        law = Pepper(self.sizes)

        self.assertEqual(law, Pepper(self.sizes.copy()))
        self.assertEqual(hash(law), hash(Pepper(self.sizes.copy())))
        for other in (Pepper(2 * self.sizes), Pepper(self.sizes, 2), Salt(1.0)):
            self.assertNotEqual(law, other)
        self.assertEqual(jax.tree.map(lambda leaf: leaf, law), law)
        self.assertEqual(law.sizes.dtype, np.float32)
        with self.assertRaisesRegex(ValueError, "read-only"):
            law.sizes[...] = 0

    def test_unchecked_laws_may_be_traced(self):
        key = make_key(0)

        def total(sizes):
            law = Pepper.unchecked(sizes=sizes, power=1)
            return jnp.sum(law.sample(key, SHAPE, jnp.float32))

        slope = jax.grad(total)(jnp.asarray(self.sizes, jnp.float32))

        expected = jax.random.uniform(key, SHAPE)
        np.testing.assert_allclose(slope, expected, rtol=1e-6)


if __name__ == "__main__":
    absltest.main()
