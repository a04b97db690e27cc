"""Tests of wsjax.fast_random: the same numbers as JAX's own generator, bit for bit."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import fast_random, make_key

SEEDS = (0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1)
# Odd and even sizes, no axis, an empty axis, more axes than two.
SHAPES = ((), (7,), (3, 4), (2, 1, 5, 3), (3, 0, 2))


def both_keys(seed):
    return make_key(seed), jax.random.key(seed)


class FastRandomTest(parameterized.TestCase):
    def assert_same(self, draw, seed=3):
        """`draw(key)` gives the same arrays of numbers, or keys, under both keys."""
        draw = jax.jit(draw)
        fast, default = (draw(key) for key in both_keys(seed))
        if jnp.issubdtype(default.dtype, jax.dtypes.prng_key):
            fast, default = map(jax.random.key_data, (fast, default))
        self.assertEqual(fast.dtype, default.dtype)
        self.assertEqual(fast.shape, default.shape)
        np.testing.assert_array_equal(fast, default)

    @parameterized.parameters(*SEEDS)
    def test_every_seed_gives_the_same_key(self, seed):
        fast, default = both_keys(seed)

        self.assertEqual(fast.shape, ())
        np.testing.assert_array_equal(
            jax.random.key_data(fast), jax.random.key_data(default)
        )

    @parameterized.parameters(0, 2**32 - 1, np.int64(7))
    def test_every_seed_gives_the_same_numbers(self, seed):
        self.assert_same(lambda key: jax.random.bits(key, (5,)), seed)

    @parameterized.parameters(-1, 2**32, 2**40 + 3, 0.0, True, "0", None)
    def test_seeds_that_are_others_under_another_name_are_refused(self, seed):
        with self.assertRaisesRegex(
            ValueError, f"seed={seed!r} is no whole .*4294967295"
        ):
            make_key(seed)

    @parameterized.parameters(*SHAPES)
    def test_bits_of_every_shape(self, *shape):
        self.assert_same(lambda key: jax.random.bits(key, shape))

    @parameterized.parameters(8, 16, 64)
    def test_bits_of_every_width(self, width):
        with jax.enable_x64(True):
            self.assert_same(lambda key: jax.random.bits(key, (3, 5), f"uint{width}"))

    @parameterized.parameters("float32", "float64")
    def test_uniform(self, dtype):
        with jax.enable_x64(dtype == "float64"):
            self.assert_same(lambda key: jax.random.uniform(key, (4, 5), dtype))

    @parameterized.product(
        law=(jax.random.normal, jax.random.laplace), dtype=("float32", "float64")
    )
    def test_other_laws_up_to_the_rounding_of_their_functions(self, law, dtype):
        # The compiler may round erf_inv and log1p otherwise in another program: on a
        # CPU, JAX 0.12 does so for a few normal numbers in a hundred.
        with jax.enable_x64(dtype == "float64"):
            draw = jax.jit(lambda key: law(key, (37, 3), dtype))
            fast, default = map(draw, both_keys(3))

        self.assertEqual(fast.dtype, dtype)
        np.testing.assert_allclose(fast, default, rtol=4 * np.finfo(dtype).eps)

    @parameterized.named_parameters(
        ("one_into_two", lambda key: jax.random.split(key)),
        ("one_into_many", lambda key: jax.random.split(key, (3, 2))),
        ("fold_in_zero", lambda key: jax.random.fold_in(key, 0)),
        ("fold_in_most", lambda key: jax.random.fold_in(key, np.uint32(2**32 - 1))),
        ("twice", lambda key: jax.random.split(jax.random.fold_in(key, 7))[1]),
    )
    def test_new_keys(self, derive):
        self.assert_same(derive)

    @parameterized.named_parameters(
        ("permutation", lambda key: jax.random.permutation(key, 50)),
        ("randint", lambda key: jax.random.randint(key, (20,), -3, 1000)),
        ("bernoulli", lambda key: jax.random.bernoulli(key, 0.3, (50,))),
        ("categorical", lambda key: jax.random.categorical(key, jnp.arange(4.0))),
    )
    def test_other_functions(self, draw):
        self.assert_same(draw)

    def test_vmap_over_keys(self):
        def draw(key):
            keys = jax.random.split(key, 5)
            return jax.vmap(lambda k: jax.random.uniform(k, (2, 3)))(keys)

        self.assert_same(draw)

    def test_vmap_over_numbers_folded_in(self):
        def draw(key):
            return jax.vmap(
                lambda i: jax.random.bits(jax.random.fold_in(key, i), (3,))
            )(jnp.arange(5))

        self.assert_same(draw)

    def test_draws_inside_a_loop(self):
        def draw(key):
            return jax.lax.fori_loop(
                0,
                4,
                lambda i, bits: (
                    bits ^ jax.random.bits(jax.random.fold_in(key, i), (3,))
                ),
                jnp.zeros((3,), jnp.uint32),
            )

        self.assert_same(draw)

    @parameterized.parameters(("cpu", True), ("gpu", False), ("tpu", False))
    def test_uses_the_rewritten_generator_on_a_cpu_alone(self, backend, rewritten):
        with mock.patch.object(jax, "default_backend", lambda: backend):
            fast = jax.random.key_impl(make_key(0))

        self.assertEqual(fast != jax.random.key_impl(jax.random.key(0)), rewritten)

    def test_refuses_more_numbers_than_a_counter_word_can_tell_apart(self):
        if jax.default_backend() != "cpu":
            self.skipTest("JAX's own generator is in use.")
        draw = jax.jit(lambda key: jax.random.bits(key, (2**16, 2**16)))
        with self.assertRaisesRegex(ValueError, r"\(65536, 65536\).*fold_in"):
            draw.lower(make_key(0))


class BitsAtTest(parameterized.TestCase):
    @parameterized.product(
        kind=("ours", "threefry2x32", "rbg", "raw"), bit_width=(32, 64)
    )
    def test_are_those_of_the_whole_array(self, kind, bit_width):
        if kind == "raw":
            key = jax.random.PRNGKey(3)
        else:
            key = make_key(3) if kind == "ours" else jax.random.key(3, impl=kind)
        positions = np.array([5, 0, 11, 5, 2], np.uint32)

        with jax.enable_x64(bit_width == 64):
            found = fast_random.bits_at(key, positions, bit_width)
            whole = jax.random.bits(key, (3, 4), f"uint{bit_width}").ravel()

        self.assertEqual(found.dtype, f"uint{bit_width}")
        np.testing.assert_array_equal(found, whole[positions])

    def test_under_vmap(self):
        keys = jax.random.split(make_key(4), 3)
        positions = np.array([3, 1], np.uint32)

        found = jax.vmap(lambda key: fast_random.bits_at(key, positions))(keys)

        whole = jax.vmap(lambda key: jax.random.bits(key, (4,)))(keys)
        np.testing.assert_array_equal(found, whole[:, positions])


if __name__ == "__main__":
    absltest.main()
