"""Which part of a run draws from which branch of its seed.

`jax.random.split(key, n)[i]` equals `fold_in(key, i)`, bit for bit. Splitting a run's
key for training and folding into it for certification would therefore hand both the
same draws, and a certificate needs draws that the classifier has never seen. So the
run's key is only ever folded, with these numbers, and only here.
"""

from collections.abc import Sequence

import jax
import numpy as np

from wsjax.fast_random import make_key

TRAIN, CERTIFY, ATTACK, VERIFY, START = range(5)


def stream_key(seed: int, stream: int) -> jax.Array:
    """The key of one branch (`TRAIN`, `CERTIFY`, ...) of a run's seed."""
    return jax.random.fold_in(make_key(seed), stream)


def image_keys(seed: int, stream: int, indices: Sequence[int]) -> jax.Array:
    """`[N]` keys of images by their indices in a data set, whoever else is run."""
    key = stream_key(seed, stream)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, np.asarray(indices))
