"""Certifies test images; writes one row for each.

  wsjax certify --config=digits

Run it after `wsjax train` with the same config and workdir. Rows go to certificates.tsv
in the run directory, the summary to the screen and summary.txt, the curve to
certified_accuracy.png. A stopped run goes on from the rows it wrote. With
--config.certify.at_radii="(0.05, 0.1)" it stops voting about an image once it knows which
of these radii are certified, and writes verdicts.tsv instead.

On several processes or hosts, start it once for each, with --distributed where Slurm,
Open MPI or a TPU tells the processes of each other, else with --coordinator=HOST:PORT,
--num_processes=N and --process_id=I. Rows are the same; docs/scaling.md tells more.
"""

import collections
import functools
import logging
from typing import Any

import jax

from wsjax.console.progress import progress, timed
from wsjax.runs import cli, cluster, experiment, manifest, report, streams, trained
from wsjax.runs import config as configs
from wsjax.runs.examples import Examples
from wsjax.runs.rows import check as check_rows
from wsjax.training.checkpoints import fingerprint

_log = logging.getLogger("wsjax")


def main(config, workdir):
    """Certifies the images that a config names; see the module."""
    with cluster.together():
        examples = Examples(config.data, "test")
        indices = config.data.chosen(len(examples))
        folder = cli.trained_dir(workdir)
        certifier = trained.make_certifier(config, folder, examples)
        if cluster.several() and not certifier.several_processes:
            raise ValueError(
                f"certify.method={config.certify.method!r} decides for each image "
                f"alone how many votes it gets, and runs on one process."
            )
    recorded = config.plain("data", "model", "smoothing", "certify")
    identity: dict[str, Any] = {
        "data_checksum": examples.checksum,
        "classifier": fingerprint(certifier.held()),
        "certifier": certifier.recorded(),
        "num_classes": experiment.num_classes(config, examples),
        "num_images": len(examples),
    }
    cluster.check_agreement(recorded, **identity)
    name = report.entry_name(certifier.rows_file)
    path, columns = workdir / certifier.rows_file, report.columns(certifier)
    run = ""
    with cluster.together():
        if cluster.leads():
            run = manifest.record(
                workdir,
                name,
                recorded,
                may_differ=configs.MAY_DIFFER,
                check=functools.partial(check_rows, path, columns),
                **identity,
            )
    with cluster.SharedRows(path, columns, run, indices) as rows:
        certifier = certifier.laid_out_for(len(rows.todo))
        if cluster.leads():
            _log.info("Certifying %d images on %s.", len(indices), manifest.devices())

        def work(items):
            return certify(certifier, examples, items, config.seed)

        # Votes are spread over all processes; whoever works on the host takes turns.
        if certifier.random:
            found = work(rows.until_stopped(rows.todo, every=certifier.batch))
        else:
            found = cluster.in_turn(work, rows)
        bar = progress(
            total=len(rows.todo),
            desc="certify",
            unit="image",
            disable=not cluster.leads(),
        )
        for row in found:
            rows.write(**row)
            bar.update()
            rows.check()
        bar.close()
    if cluster.leads():
        report.show_certificates(workdir, certifier.rows_file)


def certify(certifier, examples, indices, seed):
    """Yields the rows of images, one after another."""
    key = streams.stream_key(seed, streams.CERTIFY)
    asked: collections.deque[tuple[int, int]] = collections.deque()

    def images():
        for index in indices:
            image, label = examples.checked(index)
            asked.append((index, label))
            yield image

    def keys():
        # One per image, or one for all: a row does not depend on which others are run.
        # An image is read before its key.
        while True:
            yield key if certifier.one_key else jax.random.fold_in(key, asked[-1][0])

    results = certifier.certify_each(images(), keys() if certifier.random else None)
    for certificate, seconds in timed(results, certifier.batch):
        index, label = asked.popleft()
        yield report.certificate_row(index, label, certificate, certifier, seconds)


def start() -> None:
    """Runs it with the command line's flags."""
    cli.run(main, several_processes=True, counts_votes=True)
