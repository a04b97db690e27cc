"""Reads items with threads, a bounded number ahead, and hands them out in order."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def read_groups(
    read: Callable[[int], Item],
    groups: Sequence[np.ndarray],
    *,
    num_threads: int,
    ahead: int,
) -> Iterator[list[Item]]:
    """Maps `read` over groups of indices, working ahead while the caller computes.

    Threads suffice where `read` releases the interpreter lock, as Pillow does.

    Args:
      read: called from several threads at once. What it raises is raised here, in
        the place of the group concerned.
      groups: the indices, group by group.
      num_threads: number of threads.
      ahead: groups that are read or ready beyond the one handed out, which bounds
        the memory.

    Yields:
      The items of each group, both in the order given.

    Raises:
      ImportError: Grain is not installed.
    """
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            "Photographs are read ahead by Grain: pip install 'wsjax[data]'."
        ) from error
    if not len(groups):
        return
    most = ahead * max(map(len, groups))
    options = grain.ReadOptions(min(num_threads, most), most)
    indices = np.concatenate(groups).tolist()
    items = iter(grain.MapDataset.source(indices).map(read).to_iter_dataset(options))
    try:
        for group in groups:
            yield list(itertools.islice(items, len(group)))
    finally:
        # Also when the caller stops early, or a read failed.
        items.close()
