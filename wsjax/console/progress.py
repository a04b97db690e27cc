"""Progress bars that suit a terminal and a log file."""

import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


def progress(items: Iterable | None = None, **options) -> tqdm:
    """A `tqdm` bar with rate and ETA; into a log file, a line now and then."""
    interval = 1.0 if sys.stderr.isatty() else 20.0
    return tqdm(items, mininterval=interval, maxinterval=interval, **options)


def timed(results: Iterable[Any], batch: int = 1) -> Iterator[tuple[Any, float]]:
    """Results and the seconds each took; those of one batch share its time."""
    results, before = iter(results), time.perf_counter()
    while True:
        # The first one of a batch is what is waited for.
        group = list(itertools.islice(results, 1))
        now = time.perf_counter()
        group += itertools.islice(results, batch - 1 if group else 0)
        if not group:
            return
        for result in group:
            yield result, (now - before) / len(group)
        before = now
