"""Attacks a trained classifier, plain and smoothed; writes one row per test image.

  wsjax attack --config=digits

Run it after `wsjax train` (and `wsjax certify`, for its curve in the figure) with the same
config and workdir. `--config.attack.method` is "flow", the attack of this project, or
one of the published ones: "sinkhorn" (Wong et al.), "capacity" (Hu et al.), "dual" (Wu
et al.). Each method has rows of its own, attack_METHOD_TARGET.tsv, adversarial images
beside them, and a curve in the figure and line in the summary with the others that ran
in this workdir. A stopped run goes on from the rows it wrote.
"""

import functools
import logging
import time

import numpy as np

from wsjax.attacks import registry, victims
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.console.progress import progress
from wsjax.console.signals import StopFlag
from wsjax.runs import attack_report, cli, experiment, manifest, rows, streams, trained
from wsjax.runs import config as configs
from wsjax.runs.examples import Examples
from wsjax.training.checkpoints import fingerprint

_log = logging.getLogger("wsjax")


def main(config, workdir):
    """Attacks the images that a config names; see the module."""
    examples = Examples(config.data, "test")
    indices = config.data.chosen(len(examples))
    name = config.attack.method
    method = registry.get_method(name)
    settings = experiment.make_attack(config)
    targets = attack_report.chosen_targets(config.attack.target, method)
    folder = cli.trained_dir(workdir)
    if trained.certifies_itself(config, examples):
        network = trained.restore_network(config, folder, examples)
        certifier = LipschitzScores(network)
        plain, targets = victims.scored(network), attack_report.only_plain(targets)
        held, recorded = certifier.held(), certifier.recorded()
    else:
        classify, smoothing = trained.restore(config, folder, examples)
        plain = victims.Victim(classify)
        held = (classify, smoothing.noise)
        recorded = {"scores": smoothing.scores.described()}
    cases = [attack_report.Attacked(name, target) for target in targets]

    def check(run):
        return sum(
            len(rows.check(workdir / case.rows, attack_report.COLUMNS, run))
            for case in cases
        )

    run = manifest.record(
        workdir,
        cases[0].entry,
        attack_report.recorded(config),
        data_checksum=examples.checksum,
        classifier=fingerprint(*held),
        certifier=recorded,
        num_classes=experiment.num_classes(config, examples),
        num_images=len(examples),
        may_differ=configs.MAY_DIFFER,
        check=check,
    )
    _log.info("Attacking %d images on %s.", len(indices), manifest.devices())
    votes = {"n": config.attack.n, "alpha": config.attack.alpha}
    for case in cases:
        if case.target == "base":
            # Attacks on the plain classifier share their gradient steps.
            victim, size = plain, settings.batch_size
        else:
            victim, size = victims.smoothed(classify, smoothing, **votes), 1
        attack(
            workdir,
            case,
            run,
            functools.partial(method.run, victim=victim, settings=settings),
            victim,
            examples,
            indices,
            seed=config.seed,
            group_size=size,
        )
    attack_report.show_attacks(workdir, examples, config.attack.pictures)


def attack(workdir, case, run, method, victim, examples, indices, *, seed, group_size):
    """Attacks the images of one target that have no row yet."""
    folder = workdir / case.folder
    folder.mkdir(exist_ok=True)
    with rows.RowWriter(workdir / case.rows, attack_report.COLUMNS, run) as writer:
        todo = [index for index in indices if index not in writer.done]
        with (
            progress(total=len(todo), desc=f"attack {case.title}", unit="image") as bar,
            StopFlag() as stop,
        ):
            for start in range(0, len(todo), group_size):
                group = todo[start : start + group_size]
                pairs = zip(*map(examples.checked, group), strict=True)
                images, labels = map(np.array, pairs)
                for row, moved in attack_group(
                    group, images, labels, method, victim, seed
                ):
                    attack_report.save_image(case.image(workdir, row["idx"]), moved)
                    writer.write(**row)
                bar.update(len(group))
                stop.check()


def attack_group(indices, images, labels, method, victim, seed):
    """Rows and adversarial images of some images; each draws by its index alone."""
    before = time.perf_counter()
    keys = streams.image_keys(seed, streams.ATTACK, indices)
    result = method(images, labels, key=keys)
    seconds = (time.perf_counter() - before) / len(indices)
    # Ask again at a valid image, by votes never seen before.
    judged = attack_report.judge(
        images,
        result.adversarial,
        victim,
        keys=streams.image_keys(seed, streams.VERIFY, indices),
    )
    for place, index in enumerate(indices):
        row = attack_report.attack_row(
            index, int(labels[place]), result, judged, place, seconds
        )
        yield row, result.adversarial[place]


def start() -> None:
    """Runs it with the command line's flags."""
    cli.run(main)
