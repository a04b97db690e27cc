"""Certifies a trained base classifier; writes one row per test image.

  python certify.py --config=configs/digits.py

Run it after train.py with the same config and workdir. Rows go to certificates.tsv
in the run directory, the summary to the screen and summary.txt, the curve to
certified_accuracy.png. A stopped run goes on from the rows it wrote. With
--config.certify.at_radii="(0.05, 0.1)" it stops voting about an image once it knows which
of these radii are certified, and writes verdicts.tsv instead.

On several processes or hosts, start it once for each, with --distributed where Slurm,
Open MPI or a TPU tells the processes of each other, else with --coordinator=HOST:PORT,
--num_processes=N and --process_id=I. Rows are the same; docs/scaling.md tells more.
"""

import collections
import logging
import time

import jax

import wsjax
from wsjax import votes
from wsjax.runs import cli, cluster, experiment, fewer_votes, manifest, report, streams
from wsjax.runs import config as configs
from wsjax.runs.examples import Examples, chosen_indices
from wsjax.runs.progress import progress

_PROTOCOL = ("n0", "n", "alpha", "use_runner_up")

_log = logging.getLogger("wsjax")


def main(config, workdir):
    protocol = dict(config["certify"])
    with cluster.together():
        examples = Examples(config["data"], "test")
        indices = chosen_indices(config["data"], len(examples))
        wsjax.smoothing.check_protocol(**{k: protocol[k] for k in _PROTOCOL})
        fewer_votes.check(protocol)
        trained = cli.trained_dir(workdir)
        classify = experiment.restore_classifier(config, trained, examples)
        smoothing = experiment.restore_smoothing(config, trained, examples)
    if protocol["at_radii"]:
        return fewer_votes.certify_at_radii(
            config, workdir, examples, indices, classify, smoothing
        )
    recorded = configs.select(config, "data", "model", "smoothing", "certify")
    identity = {
        "data_checksum": examples.checksum,
        "classifier": experiment.fingerprint(classify, smoothing.noise),
        "spread": smoothing.spread,
        "num_classes": config["model"]["num_classes"] or examples.num_classes,
    }
    cluster.check_agreement(recorded, **identity)
    with cluster.together():
        if cluster.leads():
            manifest.record(
                workdir, "certify", recorded, may_differ=configs.MAY_DIFFER, **identity
            )
    run_key = streams.stream_key(config["seed"], streams.CERTIFY)
    path = workdir / report.CERTIFICATES
    with cluster.SharedRows(path, report.CERTIFICATE_COLUMNS, indices) as rows:
        shared = protocol["share_draws"]
        alone = protocol["max_radius_loss"] > 0  # One image on all devices.
        groups = (
            int(alone)
            or protocol["groups"]
            or votes.choose_groups(
                jax.device_count(),
                -(-len(rows.todo) // shared),
                (shared * protocol["n0"], shared * protocol["n"]),
                protocol["block_size"],
            )
        )
        batch = groups * shared
        if cluster.leads():
            _log.info("Certifying %d images on %s.", len(indices), manifest.devices())
        # One key per image, or one for all: a row does not depend on which others are
        # run.
        labels = collections.deque()  # Of images that have no row yet.

        def pairs():
            for i in rows.until_stopped(rows.todo, every=batch):
                image, label = examples.checked(i)
                labels.append(label)
                yield run_key if shared > 1 else jax.random.fold_in(run_key, i), image

        results = fewer_votes.certificates(
            pairs(), classify, smoothing, protocol, groups
        )
        bar = progress(
            rows.todo, desc="certify", unit="image", disable=not cluster.leads()
        )
        before = time.perf_counter()
        for place, (index, certificate) in enumerate(zip(bar, results)):
            if place % batch == 0:
                # Images of one batch share its time.
                now = time.perf_counter()
                count = min(batch, len(rows.todo) - place)
                seconds, before = (now - before) / count, now
            rows.write(
                **report.certificate_row(index, labels.popleft(), certificate, seconds)
            )
            rows.check()
    if cluster.leads():
        report.show_certificates(workdir)


if __name__ == "__main__":
    cli.run(main, several_processes=True, counts_votes=True)
