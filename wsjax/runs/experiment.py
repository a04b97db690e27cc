"""From a resolved config to objects: examples, model, noise, trained classifier."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wsjax import data, metrics, models, smoothing
from wsjax.attacks import registry
from wsjax.runs import artefact, manifest, streams
from wsjax.runs.config import (
    Config,
    ModelBlock,
    SmoothingBlock,
    TrainBlock,
    pick,
)
from wsjax.runs.examples import Examples
from wsjax.training import learned_noise, objectives, optimizers, steps


def make_model(block: ModelBlock, num_classes: int) -> Any:
    """The Flax module of a config's `model` block.

    Raises:
      ValueError: it has fewer classes than the data set, or a setting that is refused.
    """
    classes = num_classes if block.num_classes is None else block.num_classes
    if classes < num_classes:
        raise ValueError(
            f"model.num_classes={classes} is fewer than the {num_classes} classes of the "
            f"data set, some of whose labels it could not return. Leave it out, or set "
            f"it to {num_classes} or more."
        )
    unit = {} if block.name == "potentials" else {"unit": block.unit}
    return models.create(block.name, classes, **unit, **block.fields)


def certifies_itself(module: Any) -> bool:
    """Whether a network is Lipschitz by construction and needs no noise."""
    return hasattr(module, "frozen")


def check_purpose(module: Any, block: TrainBlock) -> None:
    """Refuses an objective that is not for networks of this kind.

    Raises:
      ValueError: "radius" for a network whose logits are no scores, or noise, or another
        objective, for one whose logits are.
    """
    lipschitz = certifies_itself(module)
    if lipschitz and block.objective != "radius":
        raise ValueError(
            f"train.objective={block.objective!r} does not look at the Lipschitz "
            f"constants of model.name='potentials'; use 'radius'."
        )
    if not lipschitz and block.objective == "radius":
        raise ValueError(
            "train.objective='radius' is for networks that are 1-Lipschitz in W; set "
            "model.name='potentials', or use another objective."
        )


# Images that statistics of what a network will see are taken of.
_SEEN = 2_000


def make_start(
    module: Any, examples: Examples, seed: int, noise: Any = None
) -> Callable | None:
    """What changes fresh variables of a module, or None; the images are read then.

    Args:
      module: from `make_model`.
      examples: the training set.
      seed: of the choice of images, and of their noise.
      noise: what the module is trained under, as `loop.train` takes it.
    """
    if not hasattr(module, "started"):
        return None

    def start(variables):
        if not certifies_itself(module):
            count = min(_SEEN, len(examples.data))
            batch = next(examples.data.train_batches(count, seed=seed, epoch=0))
            key = streams.stream_key(seed, streams.START)
            images = data.as_float(batch.images, examples.data.scale)
            return module.started(variables, _noisy(key, images, noise))
        if examples.data.arrays is None:
            return variables
        images, labels = examples.data.arrays
        params = module.started(variables["params"], images, labels, seed)
        return {**variables, "params": params}

    return start


def _noisy(key, images, noise):
    """A noisy copy of each image, as training starts with them."""
    noise = steps.as_noise(noise)
    draw = jax.jit(
        lambda images: steps.perturb_batch(key, images, noise.law(noise.init()), False)
    )
    return np.asarray(draw(images))


def ground_metric(config: Config) -> str:
    """That of the certificates: of a network that has one, or of the smoothing."""
    if "model" in vars(config) and config.model.name == "potentials":
        default = models.PotentialNet.ground_metric
        return config.model.fields.get("ground_metric", default)
    return config.smoothing.ground_metric


def num_classes(config: Config, examples: Examples) -> int:
    """Number of classes of what is certified: the model's, or that of the data."""
    own = config.model.num_classes if "model" in vars(config) else None
    return own or examples.num_classes


def description(config: Config, examples: Examples) -> dict[str, Any]:
    """What a trained classifier belongs to, for `checkpoints.check_description`."""
    model = config.plain("model")["model"]
    del model["checkpoint"]
    model["num_classes"] = num_classes(config, examples)
    return {
        "model": model,
        "data": examples.name,
        "image_shape": list(examples.image_shape),
    }


def make_optimizer(
    block: TrainBlock,
    total_steps: int,
    learned_noise: bool = False,
    module: Any = None,
) -> Any:
    """The Optax transformation of a config's `train` block, for a module."""
    lipschitz, rates = certifies_itself(module), {}
    if lipschitz:
        bias = block.bias_learning_rate
        rates = {
            "potentials": block.potential_learning_rate,
            "offsets": bias,
            "bias": bias,
        }
    return pick(
        optimizers.make_optimizer,
        block,
        total_steps=total_steps,
        noise_learning_rate=block.noise_learning_rate if learned_noise else None,
        rates=rates,
        project=module.projected if lipschitz else None,
    )


def make_objective(
    block: TrainBlock, ground_metric: str = "l2"
) -> objectives.Objective:
    """The objective of a config's `train` block; the metric is of its `smoothing` block.

    Raises:
      ValueError: as `Objective`, or copies are to share one draw.
    """
    if block.share_noise and block.copies > 1:
        raise ValueError(
            f"train.share_noise=True gives all train.copies={block.copies} copies "
            f"of an image the same noise; use train.copies=1, or share no noise."
        )
    return pick(
        objectives.Objective, block, name=block.objective, ground_metric=ground_metric
    )


def make_attack(config: Config) -> Any:
    """The settings of the attack that `config.attack.method` names.

    Raises:
      ValueError: there is no such attack, or a setting is outside its range.
    """
    attack = config.attack
    method = registry.get_method(attack.method)
    given = dict(attack.settings[attack.method])
    given["ground_metric"] = given["ground_metric"] or ground_metric(config)
    return method.settings(**given)


def trace_state(
    module: Any,
    image_shape: tuple[int, int, int],
    block: TrainBlock,
    noise: Any = None,
) -> Any:
    """Shapes of a fresh training state, nothing computed.

    Args:
      module: Flax classifier.
      image_shape: `(H, W, C)`.
      block: the config's `train` block.
      noise: as in `loop.train`.

    Returns:
      A `steps.TrainState` of shapes and dtypes.

    Raises:
      ValueError: settings of the model or of learned noise do not fit the images.
    """
    optimizer = make_optimizer(block, 1, hasattr(noise, "law"), module)
    try:
        return jax.eval_shape(
            lambda key: steps.init_state(key, module, image_shape, optimizer, noise),
            jax.random.key(0),
        )
    except (TypeError, ArithmeticError) as error:  # Of layers that nothing is left for.
        raise ValueError(
            f"The model does not fit images of shape {tuple(image_shape)} ({error}): "
            f"{module}"
        ) from error


def learns_noise(config: Config) -> bool:
    """Whether the noise belongs to the classifier and is stored with it."""
    return config.smoothing.noise in learned_noise.LEARNED


def make_smoothing(
    config: Config, image_shape: tuple[int, int, int]
) -> smoothing.Smoothing:
    """The `Smoothing` of a config whose noise is not learned, for images of a shape.

    Raises:
      ValueError: as `smoothing.make_smoothing`, or the noise is a learned one.
    """
    block = config.smoothing
    _check_unused(block, "certificate_scale")
    return pick(smoothing.make_smoothing, block, image_shape=image_shape)


def make_learned_noise(config: Config, images: np.ndarray) -> Any:
    """The noise of a config that is trained with the classifier.

    Args:
      config: resolved, with a noise of `learned_noise.LEARNED`.
      images: `[N, H, W, C]` training images, for their statistics.

    Returns:
      `learned_noise.LearnedView` or `LearnedSpectrum`.

    Raises:
      ValueError: a setting is outside its range.
    """
    block = config.smoothing
    check_learned(block)
    if not 0 < block.certificate_scale < float("inf"):
        raise ValueError(
            f"smoothing.certificate_scale={block.certificate_scale!r} is not positive. "
            f"It is c = 1 / kappa: a class probability p certifies c Phi^-1(p) pixels x "
            f"fraction of mass; 0.04 to 0.12 is usual for MNIST, 0.0001 to 0.001 for "
            f"CIFAR-10."
        )
    metrics.check_ground_metric(block.ground_metric)
    kind = learned_noise.LEARNED[block.noise]
    options = vars(block) | {"couple": block.couple_channels}
    return pick(kind, options, statistics=learned_noise.statistics(images, kind.rank))


def check_learned(block: SmoothingBlock) -> None:
    """Refuses settings that mean nothing to learned noise."""
    for name in ("sigma", "wrap"):
        _check_unused(block, name)
    # Raises if there is no such theorem about Gaussian noise.
    smoothing.theorem_about(block.noise, block.theorem)


def _check_unused(block, name):
    value = getattr(block, name)
    if value:
        raise ValueError(
            f"smoothing.{name}={value!r} means nothing to "
            f"smoothing.noise={block.noise!r}; set it to {type(value)()}."
        )


def save_network(
    workdir: pathlib.Path,
    config: Config,
    examples: Examples,
    module: Any,
    state: steps.TrainState,
) -> None:
    """Writes the network that certificates rest on; arguments as `save_artefact`."""
    artefact.save_network(
        workdir / artefact.NAME,
        module.frozen(jax.device_get(state.params)),
        description(config, examples),
        _provenance(config, "model", "train"),
    )


def save_artefact(
    workdir: pathlib.Path,
    config: Config,
    examples: Examples,
    noise: Any,
    state: steps.TrainState,
) -> None:
    """Writes what certification needs of a run with learned noise and its final state."""
    law = noise.freeze(jax.device_get(state.noise))
    metric = config.smoothing.ground_metric
    scores = smoothing.gaussian_scores(law, law.image_shape, metric)
    artefact.save(
        workdir / artefact.NAME,
        artefact.Artefact(
            law,
            jax.tree.map(np.asarray, state.variables),
            description(config, examples),
            scores,
            _provenance(config, "model", "smoothing", "train"),
        ),
    )


def _provenance(config, *blocks):
    return {
        "config": config.plain(*blocks),
        "versions": manifest.versions(),
        "devices": manifest.devices(),
    }
