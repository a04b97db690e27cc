"""Trains a base classifier under noise; writes checkpoints and metrics.

  wsjax train --config=digits

The run directory is --workdir, by default runs/NAME_OF_CONFIG. Stop it whenever you
like: the same command goes on where it stopped, and ends with the same weights.
Then run `wsjax certify` and `wsjax attack` with the same config and workdir.
"""

import functools
import logging

from wsjax.data.augment import AUGMENTATIONS
from wsjax.runs import cli, experiment, manifest, streams
from wsjax.runs import config as configs
from wsjax.runs.config import pick
from wsjax.runs.examples import Examples
from wsjax.training import checkpoints, loop, steps

_log = logging.getLogger("wsjax")


def main(config, workdir):
    """Trains what a config describes; see the module."""
    train_set = Examples(config.data, "train")
    test_set = Examples(config.data, "test")
    settings = config.train
    # Everything is built before anything is recorded: a run directory should not
    # remember a config that cannot work.
    module = experiment.make_model(config.model, train_set.num_classes)
    lipschitz = experiment.certifies_itself(module)
    experiment.check_purpose(module, settings)
    learned = not lipschitz and experiment.learns_noise(config)
    if lipschitz:
        noise = None
    elif learned:
        noise = experiment.make_learned_noise(config, train_set.training_images())
    else:
        smoothing = experiment.make_smoothing(config, train_set.image_shape)
        noise = smoothing.perturb if settings.noisy else None
    experiment.make_optimizer(settings, 1, learned, module)
    metric = experiment.ground_metric(config)
    objective = experiment.make_objective(settings, metric)
    steps.check_objective(objective, noise)
    # Traced, not run: settings of the model and of the noise that do not fit.
    experiment.trace_state(module, train_set.image_shape, settings, noise)
    pick(loop.check_settings, settings, train_data=train_set.data)
    run = manifest.record(
        workdir,
        "train",
        config.plain("data", "model", "smoothing", "train"),
        data_checksum=train_set.checksum,
        may_differ=configs.MAY_DIFFER,
        check=functools.partial(checkpoints.check_run, workdir),
    )
    described = experiment.description(config, train_set)
    checkpoints.write_description(workdir, described, run)
    state = pick(
        loop.train,
        settings,
        workdir=workdir,
        module=module,
        make_optimizer=lambda steps: experiment.make_optimizer(
            settings, steps, learned, module
        ),
        perturb=noise,
        train_data=train_set.data,
        test_data=test_set.data,
        key=streams.stream_key(config.seed, streams.TRAIN),
        seed=config.seed,
        augment=AUGMENTATIONS[settings.augment],
        objective=objective,
        start=experiment.make_start(module, train_set, config.seed, noise),
    )
    if lipschitz:
        experiment.save_network(workdir, config, train_set, module, state)
    if learned:
        experiment.save_artefact(workdir, config, train_set, noise, state)
    _log.info("Trained classifier in %s; next: wsjax certify.", workdir)


def start() -> None:
    """Runs it with the command line's flags."""
    cli.run(main)
