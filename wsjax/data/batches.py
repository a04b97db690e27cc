"""Which images make up which batch."""

from collections.abc import Iterator

import numpy as np


def epoch_batches(
    num_examples: int, batch_size: int, *, seed: int, epoch: int, start_step: int = 0
) -> Iterator[np.ndarray]:
    """Shuffles the positions of one training epoch and cuts them into batches.

    The order is a function of `(seed, epoch)` alone, so a run that stopped after
    `s` steps of an epoch continues with `start_step=s` as if it had not. The
    remainder that does not fill a batch is left out; another one each epoch.

    Args:
      num_examples: number of images N.
      batch_size: images per batch, at most N.
      seed: the run's data seed, not negative.
      epoch: number of the epoch, not negative.
      start_step: batches to skip.

    Returns:
      Iterator over `[batch_size]` int64 arrays of positions in `[0, N)`, of
      `N // batch_size - start_step` batches.

    Raises:
      ValueError: no batch fits, `start_step` is beyond the epoch, or a negative
        seed or epoch.
    """
    if not 0 < batch_size <= num_examples:
        raise ValueError(
            f"batch_size={batch_size} is outside [1, {num_examples}], the number of "
            f"training images: an epoch would have no full batch."
        )
    steps = num_examples // batch_size
    if not 0 <= start_step <= steps:
        raise ValueError(
            f"start_step={start_step} is outside [0, {steps}], the steps of one "
            f"epoch. It counts from the start of the epoch, not of the run."
        )
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed={seed} and epoch={epoch} must not be negative.")
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    return iter(order[: steps * batch_size].reshape(steps, batch_size)[start_step:])
