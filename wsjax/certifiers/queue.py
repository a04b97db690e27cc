"""The host's queue: several images at work, so that the devices never wait for it."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from wsjax.images import check_image

Work = Callable[[list, list], Generator[None, None, list]]


def run(
    work: Work, images: Iterable[Any], keys: Iterable[Any], batch: int, in_flight: int
) -> Iterator[Any]:
    """Runs `work` on a few batches at a time; yields its results in order.

    Args:
      work: `(images, keys) -> generator`, for up to `batch` images. It yields whenever
        it has queued work on the devices and would wait for that next, and returns one
        result for each image.
      images: checked by `check_image` as they are read, a few batches ahead.
      keys: one for each image.
      batch: images of one call of `work`.
      in_flight: calls of `work` at a time.

    Yields:
      One result per image.

    Raises:
      ValueError: of a bad image, or of `work`. What went wrong with one image does not
        cost the results of those before it.
    """
    # Keys may have no end; an image is never read in vain.
    pairs = zip(images, keys)
    active: deque = deque()
    ended: dict = {}
    started = finished = 0
    reading = True
    while reading or finished < started:
        # Work that never waits ends at once: its results are handed on before more.
        while reading and len(active) < in_flight and finished not in ended:
            given, failure = _read(pairs, batch)
            reading = failure is None and len(given) == batch
            if given:
                task = work(*map(list, zip(*given)))
                reading = _advance(started, task, active, ended) and reading
                started += 1
            if failure is not None:
                ended[started] = failure
                started += 1
        if active:
            number, task = active.popleft()
            reading = _advance(number, task, active, ended) and reading
        while finished in ended:
            result = ended.pop(finished)
            finished += 1
            if isinstance(result, ValueError):
                raise result
            yield from result


def _read(pairs, batch):
    """Up to so many pairs, and the error that ended them early."""
    given = []
    try:
        for image, key in itertools.islice(pairs, batch):
            check_image(image)
            given.append((image, key))
    except ValueError as error:
        return given, error
    return given, None


def _advance(number, task, active, ended):
    """Lets a task work until it would wait; False if it failed."""
    try:
        next(task)
    except StopIteration as stop:
        ended[number] = stop.value
    except ValueError as error:
        ended[number] = error
        return False
    else:
        active.append((number, task))
    return True
