"""From a resolved config to objects: examples, model, noise, trained classifier."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wsjax import data, gaussian, metrics, models, smoothing
from wsjax.attacks import registry
from wsjax.interop import torch_checkpoints
from wsjax.runs import artefact, manifest
from wsjax.training import checkpoints, learned_noise, objectives, optimizers, steps


class Examples:
    """A split of a data set, whether it lies in memory or in a folder of photographs.

    Attributes:
      data: `data.Dataset`, or an ImageNet stream.
      name: of the data set.
      num_classes: number of classes.
      image_shape: `(H, W, C)`.
      checksum: of images and labels in order (for ImageNet: of their names).
    """

    def __init__(self, settings: dict[str, Any], split: str):
        """Opens the split that a config's `data` block describes; errors of `data`."""
        self.name = settings["name"]
        self.data: Any
        if self.name == "imagenet":
            self.data = _open_imagenet(settings, split)
            side = settings["image_size"]
            self.image_shape = (side, side, 3)
        else:
            self.data = data.load(
                self.name,
                split,
                dir=settings["dir"] or None,
                source=settings["source"],
            )
            limit = settings["train_limit"] if split == "train" else 0
            if limit:
                self.data = self.data._replace(
                    images=self.data.images[:limit], labels=self.data.labels[:limit]
                )
            self.image_shape = self.data.images.shape[1:]
        self.checksum = self.data.checksum
        self.num_classes = self.data.num_classes

    def training_images(self) -> np.ndarray:
        """All images `[N, H, W, C]` as they are stored, for statistics.

        Raises:
          ValueError: they do not lie in memory.
        """
        if self.name == "imagenet":
            raise ValueError(
                "Learned noise takes the statistics of the whole training set, which "
                "ImageNet does not fit into memory for; use a named noise."
            )
        return self.data.images

    def __len__(self) -> int:
        return len(self.data if self.name == "imagenet" else self.data.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Image `[H, W, C]` float32 in [0, 1], and its label."""
        if self.name == "imagenet":
            image, label = self.data[index]
        else:
            image, label = self.data.images[index], self.data.labels[index]
        return data.as_float(image, self.data.scale), int(label)

    def checked(self, index: int) -> np.ndarray:
        """Image `index` alone, refused by name if nothing can be certified about it.

        Raises:
          ValueError: as `smoothing.check_image`, with the position.
        """
        image, _ = self[index]
        try:
            smoothing.check_image(image)
        except ValueError as error:
            raise ValueError(f"Test image {index} of {self.name}: {error}") from error
        return image


def _open_imagenet(settings, split):
    kinds: dict[str, Callable] = {
        "files": data.ImageNetFolder,
        "tfds": data.ImageNetTfds,
    }
    if settings["source"] not in kinds:
        raise ValueError(
            f"data.source={settings['source']!r} is not one of {tuple(kinds)}."
        )
    return kinds[settings["source"]](
        settings["dir"],
        split,
        image_size=settings["image_size"],
        resize=settings["resize"],
    )


def chosen_indices(settings: dict[str, Any], count: int) -> range:
    """Positions of the test images to work on: every `stride`-th of `count`.

    Raises:
      ValueError: `stride`, `start` or `limit` is outside its range.
    """
    stride, start, limit = settings["stride"], settings["start"], settings["limit"]
    if stride < 1 or limit < 0 or not 0 <= start < count:
        raise ValueError(
            f"data.stride={stride}, data.start={start}, data.limit={limit} choose "
            f"no image of {count}: stride is at least 1, limit at least 0 (for all), "
            f"start at least 0 and below {count}."
        )
    indices = range(start, count, stride)
    return indices[:limit] if limit else indices


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
    return method.settings(**given)


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


def restore_classifier(
    config: dict[str, Any], workdir: pathlib.Path, examples: Examples
) -> Callable[[jax.Array], jax.Array]:
    """The base classifier of a run directory, or of `config.model.checkpoint`.

    Args:
      config: resolved.
      workdir: where train.py wrote.
      examples: the data it is used on.

    Returns:
      `images [B, H, W, C] -> logits [B, K]`, as `models.classifier` makes it.

    Raises:
      ValueError: nothing is there, or it belongs to another model or data set.
    """
    module = make_model(config["model"], examples.num_classes)
    if learns_noise(config):
        stored = load_artefact(config, workdir, examples)
        return models.classifier(module, stored.variables)
    if config["model"]["checkpoint"]:
        variables = torch_checkpoints.load_variables(
            config["model"]["checkpoint"], module, examples.image_shape
        )
        return models.classifier(module, variables)
    checkpoints.check_description(workdir, description(config, examples))
    # Any schedule gives the right structure: only the variables are used.
    like = trace_state(module, examples.image_shape, config["train"])
    store = checkpoints.Checkpoints(workdir)
    try:
        state = store.restore(like)
    finally:
        store.close()
    return models.classifier(module, state.variables)


def fingerprint(classify: Callable, law: Any = None) -> str:
    """Hex SHA-256 of the arrays of a restored classifier, and of learned noise if any.

    Shapes and dtypes are included.
    """
    digest = hashlib.sha256()
    held = {} if law is None else vars(law)
    arrays = [part for part in held.values() if isinstance(part, np.ndarray)]
    for leaf in [*jax.tree.leaves(classify), *arrays]:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


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
    if settings["noise"] not in smoothing.NOISES:
        raise ValueError(
            f"smoothing.noise={settings['noise']!r} is not one of "
            f"{(*smoothing.NOISES, *LEARNED)}."
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
    _check_learned(settings)
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


def _check_learned(settings):
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
    claim = {
        "ground_metric": metric,
        "kappa": gaussian.kappa(law, law.image_shape, metric),
    }
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
            claim,
            provenance,
        ),
    )


def load_artefact(
    config: dict[str, Any], workdir: pathlib.Path, examples: Examples
) -> artefact.Artefact:
    """The stored classifier and noise of a config with learned noise.

    Raises:
      ValueError: as `artefact.load`; or the config asks for another certificate
        scale or kind of noise than what is stored.
    """
    _check_learned(config["smoothing"])
    path = config["model"]["checkpoint"] or pathlib.Path(workdir) / artefact.NAME
    stored = artefact.load(pathlib.Path(path), description(config, examples))
    settings, claim = config["smoothing"], stored.claim
    scale = 1.0 / claim["kappa"]
    trained = stored.provenance["config"]["smoothing"]["noise"]
    if trained != settings["noise"]:
        raise ValueError(
            f"{path} holds noise {trained!r}, the config says "
            f"smoothing.noise={settings['noise']!r}."
        )
    wanted = settings["certificate_scale"]
    if claim["ground_metric"] == settings["ground_metric"] and not np.isclose(
        scale, wanted, rtol=1e-3
    ):
        raise ValueError(
            f"{path} was trained for the certificate scale {scale:.6g}, the config says "
            f"smoothing.certificate_scale={wanted!r}. Pass --config.smoothing."
            f"certificate_scale={scale:.6g} to certify it as it is."
        )
    return stored


def restore_smoothing(
    config: dict[str, Any], workdir: pathlib.Path, examples: Examples
) -> smoothing.Smoothing:
    """The `Smoothing` that belongs to `restore_classifier`'s classifier.

    For learned noise, the law is read from the stored file and `kappa` computed anew.

    Raises:
      ValueError: as `make_smoothing` or `load_artefact`.
    """
    if not learns_noise(config):
        return make_smoothing(config, examples.image_shape)
    return smoothing.gaussian_smoothing(
        load_artefact(config, workdir, examples).law,
        examples.image_shape,
        config["smoothing"]["ground_metric"],
    )
