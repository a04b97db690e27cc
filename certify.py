"""Certifies a trained base classifier; writes one row per test image.

  python certify.py --config=configs/digits.py

Run it after train.py with the same config and workdir. Rows go to certificates.tsv
in the run directory, the summary to the screen and summary.txt, the curve to
certified_accuracy.png. A stopped run goes on from the rows it wrote. With
--config.certify.at_radii="(0.05, 0.1)" it stops voting about an image once it knows which
of these radii are certified, and writes verdicts.tsv instead.
"""

import logging
import time

import jax

import wsjax
from wsjax.runs import cli, experiment, fewer_votes, manifest, report, rows, streams
from wsjax.runs import config as configs
from wsjax.runs.progress import progress
from wsjax.runs.signals import StopFlag

_PROTOCOL = ("n0", "n", "alpha", "use_runner_up")

_log = logging.getLogger("wsjax")


def main(config, workdir):
    examples = experiment.Examples(config["data"], "test")
    indices = experiment.chosen_indices(config["data"], len(examples))
    protocol = config["certify"]
    wsjax.smoothing.check_protocol(**{k: protocol[k] for k in _PROTOCOL})
    fewer_votes.check(protocol)
    trained = cli.trained_dir(workdir)
    classify = experiment.restore_classifier(config, trained, examples)
    smoothing = experiment.restore_smoothing(config, trained, examples)
    if protocol["at_radii"]:
        return fewer_votes.certify_at_radii(
            config, workdir, examples, indices, classify, smoothing
        )
    manifest.record(
        workdir,
        "certify",
        configs.select(config, "data", "model", "smoothing", "certify"),
        data_checksum=examples.checksum,
        classifier=experiment.fingerprint(classify, smoothing.noise),
        spread=smoothing.spread,
        num_classes=config["model"]["num_classes"] or examples.num_classes,
        may_differ=configs.MAY_DIFFER,
    )
    _log.info("Certifying %d images on %s.", len(indices), manifest.devices())
    run_key = streams.stream_key(config["seed"], streams.CERTIFY)
    path = workdir / report.CERTIFICATES
    with rows.RowWriter(path, report.CERTIFICATE_COLUMNS) as writer, StopFlag() as stop:
        todo = [index for index in indices if index not in writer.done]
        # One key per image: a row does not depend on which others are run.
        pairs = ((jax.random.fold_in(run_key, i), examples.checked(i)) for i in todo)
        results = fewer_votes.certificates(pairs, classify, smoothing, protocol)
        bar = progress(todo, desc="certify", unit="image")
        before = time.perf_counter()
        for index, certificate in zip(bar, results):
            now = time.perf_counter()
            writer.write(
                **report.certificate_row(
                    index, examples[index][1], certificate, now - before
                )
            )
            before = now
            stop.check()
    report.show_certificates(workdir)


if __name__ == "__main__":
    cli.run(main)
