"""JAX's default random numbers, several times faster on a CPU.

On a CPU, JAX compiles the rounds of its default generator (Threefry-2x32) as a loop
that streams every array through memory five times. The same rounds written out one
after another fuse into a single pass. Accelerators do that already, so `make_key`
uses the rewritten generator on a CPU only. The random bits are the same on every
platform, and so are the integers and keys made of them; floats are the same up to the
rounding of the arithmetic that follows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as extend_random

# Rotation distances of the five groups of four rounds, and the key-schedule parity
# constant: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)

_THREEFRY = "threefry2x32"  # JAX's name of its default generator.


def make_key(seed: int) -> jax.Array:
    """The key `jax.random.key(seed)`, with the fastest equal generator in place.

    Args:
      seed: whole number from 0 to 2^32 - 1.

    Returns:
      A scalar typed key. Bits drawn from it equal those of `jax.random.key(seed)`
      under JAX's default settings, whatever the backend.

    Raises:
      ValueError: as `check_seed`.
    """
    seed = check_seed(seed)
    if jax.default_backend() == "cpu":
        return jax.random.key(seed, impl=_UNROLLED)
    return jax.random.key(seed, impl=_THREEFRY)


def check_seed(seed: int) -> int:
    """Makes sure that no other seed means the same.

    Args:
      seed: of a key. JAX takes it modulo 2^32 (or 2^64, with 64-bit types).

    Returns:
      The seed.

    Raises:
      ValueError: it is no whole number from 0 to 2^32 - 1.
    """
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**32:
        raise ValueError(
            f"seed={seed!r} is no whole number from 0 to 4294967295: keys have 32 bits "
            f"of a seed, and others would be one of these under another name."
        )
    return int(seed)


def bits_at(key: jax.Array, positions: np.ndarray, bit_width: int = 32) -> jax.Array:
    """The random bits that `jax.random.bits` has at given positions of an array.

    For keys of the default generator, that one or the one of `make_key`, only those
    bits are made; for others the whole array is, and looked up.

    Args:
      key: used up by this call.
      positions: uint32 array, row-major positions in that array, in any order.
      bit_width: 32 or 64.

    Returns:
      uint32 or uint64 of the shape of `positions`:
      `jax.random.bits(key, (size,), ...)[positions]`.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if jax.random.key_impl(key) in (_THREEFRY, jax.random.key_impl(make_key(0))):
        low = jnp.asarray(positions, jnp.uint32)
        high, low = _threefry(jax.random.key_data(key), jnp.zeros_like(low), low)
        return _joined(high, low, bit_width)
    dtype = jnp.dtype(f"uint{bit_width}")
    return jax.random.bits(key, (int(np.max(positions)) + 1,), dtype)[positions]


def words_at(key: jax.Array, positions: jax.Array, count: int) -> jax.Array:
    """Several random words at each position, two for one encryption of a counter.

    Args:
      key: used up by this call.
      positions: uint32 array `[D]`.
      count: even, how many words each.

    Returns:
      `[count, D]` uint32. What a position has depends on nothing but the key.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    low = jnp.asarray(positions, jnp.uint32)
    if jax.random.key_impl(key) in (_THREEFRY, jax.random.key_impl(make_key(0))):
        data = jax.random.key_data(key)
    else:
        # Other generators do not say what stands where: they give the key of this one.
        data = jax.random.bits(key, (2,), jnp.uint32)
    turns = (jnp.full_like(low, turn) for turn in range(count // 2))
    return jnp.stack([word for turn in turns for word in _threefry(data, turn, low)])


def _threefry(key, high, low):
    """Encrypts counters `(high, low)` under a key `[2]`, all uint32."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    high, low = high + schedule[0], low + schedule[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            high = high + low
            low = (low << np.uint32(distance)) | (low >> np.uint32(32 - distance))
            low = low ^ high
        high = high + schedule[(group + 1) % 3]
        low = low + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return high, low


def _counters(shape):
    """Row-major position of every element, as high and low 32-bit words."""
    if np.prod(shape, dtype=object) >= 2**32:
        raise ValueError(
            f"One draw of shape {shape} holds 2**32 or more numbers. Draw blocks "
            f"under keys made by jax.random.fold_in instead."
        )
    low = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        step = np.uint32(stride)
        low = low + step * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        stride *= shape[axis]
    return jnp.zeros_like(low), low


def _seed(seed):
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _split(key, shape):
    return jnp.stack(_threefry(key, *_counters(tuple(shape))), axis=-1)


def _fold_in(key, data):
    data = jnp.asarray(data, jnp.uint32)
    return jnp.stack(_threefry(key, jnp.zeros_like(data), data))


def _random_bits(key, bit_width, shape):
    high, low = _threefry(key, *_counters(tuple(shape)))
    return _joined(high, low, bit_width)


def _joined(high, low, bit_width):
    if bit_width == 64:
        return (high.astype(jnp.uint64) << np.uint64(32)) | low.astype(jnp.uint64)
    return (high ^ low).astype(jnp.dtype(f"uint{bit_width}"))


_UNROLLED = extend_random.define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="wsjax_threefry2x32",
    tag="wft",
)
