"""Reads items with threads, a bounded number ahead, and hands them out in order."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")


def read_groups(
    read: Callable[[Key], Item],
    groups: Iterable[Iterable[Key]],
    *,
    num_threads: int,
    ahead: int,
) -> Iterator[list[Item]]:
    """Maps `read` over groups of keys, working ahead while the caller computes.

    Threads suffice where `read` releases the interpreter lock, as Pillow does.

    Args:
      read: called from several threads at once. What it raises is raised here, in
        the place of the group concerned.
      groups: the keys, group by group; consumed only `ahead` groups in advance.
      num_threads: number of threads.
      ahead: groups that are read or ready beyond the one handed out, which bounds
        the memory.

    Yields:
      The items of each group, both in the order given.
    """
    pool = futures.ThreadPoolExecutor(num_threads, thread_name_prefix="wsjax-data")
    waiting: collections.deque[list[futures.Future[Item]]] = collections.deque()
    try:
        for group in groups:
            waiting.append([pool.submit(read, key) for key in group])
            if len(waiting) > ahead:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        # Also when the caller stops early, or a read failed.
        pool.shutdown(wait=True, cancel_futures=True)
