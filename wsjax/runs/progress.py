"""Progress bars that suit a terminal and a log file."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(items: Iterable | None = None, **options) -> tqdm:
    """A `tqdm` bar with rate and ETA; into a log file, a line now and then."""
    interval = 1.0 if sys.stderr.isatty() else 20.0
    return tqdm(items, mininterval=interval, maxinterval=interval, **options)
