"""Attacks a trained classifier, plain and smoothed; writes one row per test image.

  python attack.py --config=configs/digits.py

Run it after train.py (and certify.py, for its curve in the figure) with the same
config and workdir. The attack is that of the paper's experiments: projected gradient
steps onto a growing Wasserstein ball. Rows go to attack_base.tsv and
attack_smoothed.tsv, adversarial images beside them, figures and summary to the run
directory. A stopped run goes on from the rows it wrote.
"""

import dataclasses
import logging
import time

import jax
import numpy as np

from wsjax import attacks
from wsjax.runs import attack_report, cli, experiment, manifest, rows, streams
from wsjax.runs import config as configs
from wsjax.runs.progress import progress
from wsjax.runs.signals import StopFlag

_log = logging.getLogger("wsjax")


def main(config, workdir):
    examples = experiment.Examples(config["data"], "test")
    indices = experiment.chosen_indices(config["data"], len(examples))
    targets = attack_report.chosen_targets(config["attack"]["target"])
    fields = [field.name for field in dataclasses.fields(attacks.SinkhornAttack)]
    settings = attacks.SinkhornAttack(**{k: config["attack"][k] for k in fields})
    trained = cli.trained_dir(workdir)
    classify = experiment.restore_classifier(config, trained, examples)
    smoothing = experiment.restore_smoothing(config, trained, examples)
    manifest.record(
        workdir,
        "attack",
        configs.select(config, "data", "model", "smoothing", "attack"),
        data_checksum=examples.checksum,
        classifier=experiment.fingerprint(classify, smoothing.noise),
        spread=smoothing.spread,
        may_differ=configs.MAY_DIFFER,
    )
    _log.info("Attacking %d images on %s.", len(indices), manifest.devices())
    for target in targets:
        attack(
            workdir,
            target,
            config["seed"],
            examples,
            indices,
            classify,
            smoothing if target == "smoothed" else None,
            settings,
        )
    attack_report.show_attacks(workdir, examples, config["attack"]["pictures"])


def attack(workdir, target, seed, examples, indices, classify, smoothing, settings):
    """Attacks the images of one target that have no row yet."""
    path = workdir / attack_report.rows_name(target)
    folder = workdir / attack_report.folder_name(target)
    folder.mkdir(exist_ok=True)
    key = streams.stream_key(seed, streams.ATTACK)
    fresh = streams.stream_key(seed, streams.VERIFY)
    ask = attack_report.make_ask(classify, smoothing, settings)
    # Attacks on the plain classifier draw nothing and share their gradient steps;
    # smoothed ones go one by one, each with a key of its own.
    size = 1 if smoothing else settings.batch_size
    with rows.RowWriter(path, attack_report.COLUMNS) as writer, StopFlag() as stop:
        todo = [index for index in indices if index not in writer.done]
        with progress(total=len(todo), desc=f"attack {target}", unit="image") as bar:
            for start in range(0, len(todo), size):
                group = todo[start : start + size]
                images = np.stack([examples.checked(index) for index in group])
                labels = np.array([examples[index][1] for index in group])
                before = time.perf_counter()
                result = attacks.sinkhorn_attack(
                    images,
                    labels,
                    classify,
                    key=jax.random.fold_in(key, group[0]),
                    smoothing=smoothing,
                    settings=settings,
                )
                seconds = (time.perf_counter() - before) / len(group)
                distances = attacks.measure(images, result.adversarial)
                for place, index in enumerate(group):
                    np.save(folder / f"{index:06d}.npy", result.adversarial[place])
                    # Ask again, where mass is restored, by votes never seen before.
                    restored = attacks.restore_mass(
                        images[place], result.adversarial[place]
                    )
                    answer = ask(jax.random.fold_in(fresh, index), restored)
                    writer.write(
                        **attack_report.attack_row(
                            index,
                            int(labels[place]),
                            answer,
                            result,
                            distances,
                            place,
                            seconds,
                        )
                    )
                bar.update(len(group))
                stop.check()


if __name__ == "__main__":
    cli.run(main)
