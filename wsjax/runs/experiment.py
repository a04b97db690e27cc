"""From a resolved config to objects: examples, model, noise, trained classifier."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wsjax import metrics, models, smoothing
from wsjax.attacks import registry
from wsjax.runs import artefact, manifest
from wsjax.runs.examples import Examples
from wsjax.training import learned_noise, objectives, optimizers, steps


def make_model(settings: dict[str, Any], num_classes: int) -> Any:
    """The Flax module of a config's `model` block."""
    options = {
        key: value
        for key, value in settings.items()
        if key not in ("name", "checkpoint", "num_classes")
    }
    return models.create(
        settings["name"], settings["num_classes"] or num_classes, **options
    )


def description(config: dict[str, Any], examples: Examples) -> dict[str, Any]:
    """What a trained classifier belongs to, for `checkpoints.check_description`."""
    model = {k: v for k, v in config["model"].items() if k != "checkpoint"}
    model["num_classes"] = model["num_classes"] or examples.num_classes
    return {
        "model": model,
        "data": examples.name,
        "image_shape": list(examples.image_shape),
    }


def make_optimizer(
    settings: dict[str, Any], total_steps: int, learned_noise: bool = False
) -> Any:
    """The Optax transformation of a config's `train` block."""
    keys = ("optimizer", "learning_rate", "momentum", "weight_decay", "schedule")
    return optimizers.make_optimizer(
        total_steps=total_steps,
        noise_learning_rate=settings["noise_learning_rate"] if learned_noise else None,
        **{key: settings[key] for key in keys},
    )


def make_objective(
    settings: dict[str, Any], ground_metric: str = "l2"
) -> objectives.Objective:
    """The training objective of a config's `train` block.

    Args:
      settings: the block.
      ground_metric: of the config's `smoothing` block.

    Raises:
      ValueError: as `Objective`, or copies are to share one draw.
    """
    if settings["share_noise"] and settings["copies"] > 1:
        raise ValueError(
            f"train.share_noise=True gives all train.copies={settings['copies']} copies "
            f"of an image the same noise; use train.copies=1, or share no noise."
        )
    return objectives.Objective(
        settings["objective"],
        ground_metric=ground_metric,
        **{
            key: settings[key]
            for key in (
                "copies",
                "consistency",
                "attack_radius",
                "ball_radius",
                "ball_steps",
                "ball_inner_steps",
                "ball_warmup",
            )
        },
    )


def make_attack(config: dict[str, Any]) -> Any:
    """The settings of the attack that `config.attack.method` names.

    Raises:
      ValueError: there is no such attack, or a setting is outside its range.
    """
    attack = config["attack"]
    method = registry.get_method(attack["method"])
    given = dict(attack[attack["method"]])
    given["ground_metric"] = (
        given["ground_metric"] or config["smoothing"]["ground_metric"]
    )
    return method.make_settings(attack["n"], attack["alpha"], **given)


def make_augment(name: str) -> Callable | None:
    """The augmentation a config names.

    Raises:
      ValueError: there is none of that name.
    """
    if name == "none":
        return None
    if name == "crop_flip":
        from wsjax.data.augment import random_crop_flip

        return random_crop_flip
    if name == "affine":
        from wsjax.data.augment import random_affine

        return random_affine
    raise ValueError(
        f"train.augment={name!r} is not one of ('none', 'crop_flip', 'affine')."
    )


def trace_state(
    module: Any,
    image_shape: tuple[int, int, int],
    settings: dict[str, Any],
    noise: Any = None,
) -> Any:
    """Shapes of a fresh training state, nothing computed.

    Args:
      module: Flax classifier.
      image_shape: `(H, W, C)`.
      settings: the config's `train` block.
      noise: as in `loop.train`.

    Returns:
      A `steps.TrainState` of shapes and dtypes.

    Raises:
      ValueError: settings of the model or of learned noise do not fit the images.
    """
    optimizer = make_optimizer(settings, 1, hasattr(noise, "prepare"))
    return jax.eval_shape(
        lambda key: steps.init_state(key, module, image_shape, optimizer, noise),
        jax.random.key(0),
    )


LEARNED = ("learned_view", "learned_spectrum")


def learns_noise(config: dict[str, Any]) -> bool:
    """Whether the noise belongs to the classifier and is stored with it."""
    return config["smoothing"]["noise"] in LEARNED


def make_smoothing(
    config: dict[str, Any], image_shape: tuple[int, int, int]
) -> smoothing.Smoothing:
    """The `Smoothing` of a config whose noise is not learned.

    Args:
      config: resolved.
      image_shape: of the images to certify.

    Returns:
      The `Smoothing`.

    Raises:
      ValueError: as `smoothing.make_smoothing`, or the noise is a learned one.
    """
    settings = config["smoothing"]
    if settings["noise"] not in smoothing.LAWS:
        raise ValueError(
            f"smoothing.noise={settings['noise']!r} is not one of "
            f"{(*smoothing.LAWS, *LEARNED)}."
        )
    _check_unused(settings, "certificate_scale")
    keys = ("noise", "sigma", "ground_metric", "certificate", "wrap", "gamma")
    return smoothing.make_smoothing(
        **{key: settings[key] for key in keys}, image_shape=image_shape
    )


def make_learned_noise(config: dict[str, Any], images: np.ndarray) -> Any:
    """The noise of a config that is trained with the classifier.

    Args:
      config: resolved, with a noise of `LEARNED`.
      images: `[N, H, W, C]` training images, for their statistics.

    Returns:
      `learned_noise.LearnedView` or `LearnedSpectrum`.

    Raises:
      ValueError: a setting is outside its range.
    """
    settings = config["smoothing"]
    check_learned(settings)
    scale = settings["certificate_scale"]
    if not 0 < scale < float("inf"):
        raise ValueError(
            f"smoothing.certificate_scale={scale!r} is not positive. It is c = 1 / kappa: "
            f"a class probability p certifies c Phi^-1(p) pixels x fraction of mass; "
            f"0.04 to 0.12 is usual for MNIST, 0.0001 to 0.001 for CIFAR-10."
        )
    metrics.check_ground_metric(settings["ground_metric"])
    common = {
        "certificate_scale": scale,
        "ground_metric": settings["ground_metric"],
        "gamma": settings["gamma"],
    }
    if settings["noise"] == "learned_view":
        return learned_noise.LearnedView(
            learned_noise.statistics(images), waves=settings["waves"], **common
        )
    return learned_noise.LearnedSpectrum(
        learned_noise.statistics(images, rank=0),
        bins=settings["bins"],
        couple=settings["couple_channels"],
        wiener=settings["wiener"],
        **common,
    )


def check_learned(settings: dict[str, Any]) -> None:
    """Refuses settings of the `smoothing` block that mean nothing to learned noise."""
    for name in ("sigma", "wrap"):
        _check_unused(settings, name)
    # Raises if there is no such theorem about Gaussian noise.
    smoothing.theorem_about(settings["noise"], settings["certificate"])


def _check_unused(settings, name):
    if settings[name]:
        raise ValueError(
            f"smoothing.{name}={settings[name]!r} means nothing to "
            f"smoothing.noise={settings['noise']!r}; set it to {type(settings[name])()}."
        )


def save_artefact(
    workdir: pathlib.Path,
    config: dict[str, Any],
    examples: Examples,
    noise: Any,
    state: steps.TrainState,
) -> None:
    """Writes what certification needs of a run with learned noise.

    Args:
      workdir: the run directory.
      config: resolved.
      examples: the training set.
      noise: from `make_learned_noise`.
      state: the final state.
    """
    law = noise.freeze(jax.device_get(state.noise))
    metric = config["smoothing"]["ground_metric"]
    scores = smoothing.gaussian_scores(law, law.image_shape, metric)
    provenance = {
        "config": {key: config[key] for key in ("seed", "model", "smoothing", "train")},
        "versions": manifest.versions(),
        "devices": manifest.devices(),
    }
    artefact.save(
        workdir / artefact.NAME,
        artefact.Artefact(
            law,
            jax.tree.map(np.asarray, state.variables),
            description(config, examples),
            scores,
            provenance,
        ),
    )
