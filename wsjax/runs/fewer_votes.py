"""certify.py with fewer votes: verdicts at fixed radii, and numbers chosen by a pilot."""

import collections
import json
import logging
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from wsjax import evaluation, sequential, smoothing, verdicts
from wsjax.runs import cluster, experiment, manifest, report, rows, streams
from wsjax.runs import config as configs
from wsjax.runs.examples import Examples
from wsjax.runs.progress import progress
from wsjax.runs.signals import StopFlag

VERDICTS = "verdicts.tsv"
# `predict` is the certified class or -1, `radius` the largest of the run's radii at
# which it is certified, or 0. `n_used` counts all votes: those that selected and those
# that decided.
COLUMNS = (
    "idx",
    "label",
    "predict",
    "radius",
    "correct",
    "time",
    "selected",
    "n_used",
    "selection_votes",
    "votes",
)
_AT_RADII = ("n0", "n", "alpha", "first_look", "block_size", "backend")
_ENTRY = "certify at_radii"

_log = logging.getLogger("wsjax")


class Summary(NamedTuple):
    """What a run's verdicts say.

    Attributes:
      images: number of images.
      certified_accuracy: share that is right and certified, by radius.
      mean_votes: mean number of votes per image.
      median_votes: median of it.
      votes_at_once: `n0 + n`, which each image would take without looking.
      times_fewer: `votes_at_once / mean_votes`.
    """

    images: int
    certified_accuracy: dict[str, float]
    mean_votes: float
    median_votes: float
    votes_at_once: int
    times_fewer: float


def check(protocol: dict[str, Any]) -> None:
    """Refuses settings of the `certify` block for fewer votes that mean nothing.

    Args:
      protocol: the resolved block.

    Raises:
      ValueError: one is outside its range, or contradicts another.
    """
    radii, loss = protocol["at_radii"], protocol["max_radius_loss"]
    if not 0 <= loss < 1:
        raise ValueError(
            f"certify.max_radius_loss={loss!r} is outside [0, 1): it is the share of "
            f"the radius to give away for fewer votes, e.g. 0.05, or 0 for all n."
        )
    if radii and loss:
        raise ValueError(
            f"certify.max_radius_loss={loss!r} means nothing to "
            f"certify.at_radii={radii!r}; set it to 0."
        )
    if not all(isinstance(radius, (int, float)) for radius in radii):
        raise ValueError(
            f"certify.at_radii={radii!r} is not a list of numbers, e.g. "
            f'--config.certify.at_radii="(0.05, 0.1)".'
        )
    if protocol["share_draws"] < 1:
        raise ValueError(
            f"certify.share_draws={protocol['share_draws']} is not a positive number of "
            f"images; 1 gives each its own noise."
        )
    if (radii or loss) and (protocol["share_draws"] > 1 or cluster.several()):
        setting = "at_radii" if radii else "max_radius_loss"
        raise ValueError(
            f"certify.{setting} decides for each image alone how many votes it gets: it "
            f"needs certify.share_draws=1 and runs on one process."
        )
    sequential.check_levels(protocol["alpha"], protocol["beta"] or None)
    sequential.looks(protocol["first_look"], protocol["n"])


def certificates(
    keys_and_images: Iterable[tuple[jax.Array, Any]],
    classify,
    smooth: smoothing.Smoothing,
    protocol: dict[str, Any],
    groups: int,
) -> Iterator[smoothing.Certificate]:
    """Certificates by the protocol of a config's `certify` block.

    Args:
      keys_and_images: see `smoothing.certify_each`.
      classify: see there.
      smooth: see there.
      protocol: the resolved block, after `check`.
      groups: of devices, each with images of its own.

    Returns:
      Iterator of one `Certificate` per pair, with `n` votes each or, where
      `max_radius_loss` is not zero, with a number that the selection votes choose.
    """
    keys = ("n0", "n", "alpha", "use_runner_up", "block_size", "backend")
    options = {key: protocol[key] for key in keys}
    loss = protocol["max_radius_loss"]
    if not loss:
        return smoothing.certify_each(
            keys_and_images,
            classify,
            smooth,
            groups=groups,
            share_draws=protocol["share_draws"],
            **options,
        )
    return verdicts.certify_each_frugally(
        keys_and_images, classify, smooth, max_radius_loss=loss, **options
    )


def certify_at_radii(
    config: dict[str, Any],
    workdir: pathlib.Path,
    examples: Examples,
    indices: range,
    classify,
    smooth: smoothing.Smoothing,
) -> None:
    """Writes one row of `verdicts.tsv` per image, and the summary; goes on after a stop.

    Args:
      config: resolved, with `certify.at_radii`, after `check`.
      workdir: the run directory.
      examples: the test set.
      indices: of the images.
      classify: base classifier.
      smooth: noise law and theorem.

    Raises:
      ValueError: a setting is outside its range, or the directory holds verdicts of
        another config.
    """
    protocol = config["certify"]
    radii = protocol["at_radii"]
    verdicts.check_radii(radii, smooth)
    manifest.record(
        workdir,
        _ENTRY,
        recorded(config),
        data_checksum=examples.checksum,
        classifier=experiment.fingerprint(classify, smooth.noise),
        spread=smooth.spread,
        num_classes=config["model"]["num_classes"] or examples.num_classes,
        may_differ=configs.MAY_DIFFER,
    )
    _log.info(
        "Certifying %d images at %s on %s.", len(indices), radii, manifest.devices()
    )
    # The draws are the first ones of those that certify.py takes without at_radii.
    run_key = streams.stream_key(config["seed"], streams.CERTIFY)
    with rows.RowWriter(workdir / VERDICTS, COLUMNS) as writer, StopFlag() as stop:
        todo = [index for index in indices if index not in writer.done]
        labels: collections.deque[int] = collections.deque()

        def pairs() -> Iterator[tuple[jax.Array, Any]]:
            for i in todo:
                image, label = examples.checked(i)
                labels.append(label)
                yield jax.random.fold_in(run_key, i), image

        results = verdicts.certify_each_at(
            pairs(),
            classify,
            smooth,
            radii=radii,
            beta=protocol["beta"] or None,
            **{key: protocol[key] for key in _AT_RADII},
        )
        before = time.perf_counter()
        for index, verdict in zip(
            progress(todo, desc="certify", unit="image"), results
        ):
            now = time.perf_counter()
            writer.write(**row(index, labels.popleft(), verdict, now - before))
            before = now
            stop.check()
    show(workdir)


def recorded(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that verdicts depend on."""
    chosen = configs.select(config, "data", "model", "smoothing", "certify")
    unused = ("use_runner_up", "max_radius_loss")
    kept = {k: v for k, v in chosen["certify"].items() if k not in unused}
    return {**chosen, "certify": kept}


def row(
    index: int, label: int, verdict: verdicts.Verdict, seconds: float
) -> dict[str, Any]:
    """One row of `verdicts.tsv`; see `COLUMNS`."""
    return {
        "idx": index,
        "label": label,
        "predict": verdict.label,
        "radius": verdict.radius,
        "correct": verdict.label == label,
        "time": round(seconds, 4),
        "selected": verdict.selected,
        "n_used": int(verdict.selection_votes.sum() + verdict.votes.sum()),
        "selection_votes": rows.format_votes(verdict.selection_votes),
        "votes": rows.format_votes(verdict.votes),
    }


def read_summary(workdir: pathlib.Path) -> Summary:
    """Aggregates the verdicts of a run directory.

    Raises:
      FileNotFoundError: there are none.
      ValueError: no rows yet, or damaged files.
    """
    workdir = pathlib.Path(workdir)
    found = rows.read_rows(workdir / VERDICTS)
    entry = manifest.read(workdir).get(_ENTRY)
    if entry is None:
        raise ValueError(f"{workdir} has verdicts but no entry of theirs in run.json.")
    if len(found) == 0:
        raise ValueError("There are no rows to summarize yet.")
    protocol = entry["config"]["certify"]
    radii, used = np.array(protocol["at_radii"]), found.ints("n_used")
    shares = evaluation.certified_accuracy(
        found.ints("label"), found.ints("predict"), found.floats("radius"), radii
    )
    at_once = protocol["n0"] + protocol["n"]
    return Summary(
        images=len(found),
        certified_accuracy={f"{r:g}": float(s) for r, s in zip(radii, shares)},
        mean_votes=float(np.mean(used)),
        median_votes=float(np.median(used)),
        votes_at_once=at_once,
        times_fewer=float(at_once / np.mean(used)),
    )


def show(workdir: pathlib.Path) -> None:
    """Prints the summary of a run's verdicts; writes `verdicts.txt` and `.json`."""
    summary = read_summary(workdir)
    table = Table(title="Certified test images at fixed radii", title_justify="left")
    table.add_column("run", overflow="fold")
    heads = [f"r>={radius}" for radius in summary.certified_accuracy]
    for head in ("images", *heads, "mean votes", "median votes", "times fewer"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_row(
        workdir.name,
        str(summary.images),
        *(f"{share:.3f}" for share in summary.certified_accuracy.values()),
        f"{summary.mean_votes:.0f}",
        f"{summary.median_votes:.0f}",
        f"{summary.times_fewer:.1f}",
    )
    report.show(table, workdir / "verdicts.txt")
    text = json.dumps(summary._asdict(), indent=2) + "\n"
    (workdir / "verdicts.json").write_text(text)
    print(f"Verdicts and summary: {workdir}")
