"""What a run certifies or attacks, read from its directory once."""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from wsjax import exact, models, smoothing
from wsjax.certifiers import registry
from wsjax.certifiers.base import Certifier
from wsjax.interop import torch_checkpoints
from wsjax.network import LipschitzNetwork
from wsjax.runs import artefact, experiment
from wsjax.runs.config import Config
from wsjax.runs.examples import Examples
from wsjax.training import checkpoints


class Trained(NamedTuple):
    """A trained classifier and the noise that belongs to it.

    Attributes:
      classify: `images [B, H, W, C] -> logits [B, K]`, as `models.classifier` makes it.
      smoothing: noise law and theorem.
    """

    classify: Callable[[jax.Array], jax.Array]
    smoothing: smoothing.Smoothing


def restore(config: Config, workdir: pathlib.Path, examples: Examples) -> Trained:
    """The classifier of a run directory, or of `config.model.checkpoint`.

    For learned noise the law is read from the same file, and `kappa` computed from it.

    Args:
      config: resolved.
      workdir: where `wsjax train` wrote.
      examples: the data it is used on.

    Returns:
      `Trained`.

    Raises:
      ValueError: nothing is there; it belongs to another model or data set; or the
        config asks for another certificate scale or kind of noise than what is stored.
    """
    module = experiment.make_model(config.model, examples.num_classes)
    if experiment.learns_noise(config):
        return _from_artefact(config, workdir, examples, module)
    path = config.model.checkpoint
    if path:
        variables = torch_checkpoints.load_variables(path, module, examples.image_shape)
    else:
        described = experiment.description(config, examples)
        checkpoints.check_description(workdir, described)
        # Any schedule gives the right structure: only the variables are used.
        like = experiment.trace_state(module, examples.image_shape, config.train)
        store = checkpoints.Checkpoints(workdir)
        try:
            variables = store.restore(like).variables
        finally:
            store.close()
    smooth = experiment.make_smoothing(config, examples.image_shape)
    source = path or workdir
    if config.smoothing.exact:
        smooth = exact.exact(smooth, examples.image_shape)
    return Trained(_classifier(source, module, variables, examples), smooth)


def _from_artefact(config, workdir, examples, module):
    settings = config.smoothing
    experiment.check_learned(settings)
    path = config.model.checkpoint or pathlib.Path(workdir) / artefact.NAME
    described = experiment.description(config, examples)
    stored = artefact.load(pathlib.Path(path), described)
    trained = stored.provenance["config"]["smoothing"]["noise"]
    if trained != settings.noise:
        raise ValueError(
            f"{path} holds noise {trained!r}, the config says "
            f"smoothing.noise={settings.noise!r}."
        )
    scale, metric = stored.scores.scale, settings.ground_metric
    if metric != stored.scores.ground_metric:
        smooth = smoothing.gaussian_smoothing(stored.law, examples.image_shape, metric)
    elif not np.isclose(scale, settings.certificate_scale, rtol=1e-3):
        raise ValueError(
            f"{path} was trained for the certificate scale {scale:.6g}, the config says "
            f"smoothing.certificate_scale={settings.certificate_scale!r}. Pass "
            f"--config.smoothing.certificate_scale={scale:.6g} to certify it as it is."
        )
    else:
        shape = tuple(examples.image_shape)
        smooth = smoothing.Smoothing(stored.law, stored.scores, shape)
    smooth = exact.exact(smooth) if config.smoothing.exact else smooth
    return Trained(_classifier(path, module, stored.variables, examples), smooth)


def _classifier(source, module, variables, examples):
    checkpoints.check_variables(source, variables, module, examples.image_shape)
    return models.classifier(module, variables)


def restore_network(
    config: Config, workdir: pathlib.Path, examples: Examples
) -> LipschitzNetwork:
    """The network of a run directory or released file that needs no noise.

    Arguments and errors as `restore`.
    """
    path = config.model.checkpoint or pathlib.Path(workdir) / artefact.NAME
    described = experiment.description(config, examples)
    return artefact.load_network(pathlib.Path(path), described)


def certifies_itself(config: Config, examples: Examples) -> bool:
    """Whether the config's model needs no noise."""
    module = experiment.make_model(config.model, examples.num_classes)
    return experiment.certifies_itself(module)


class Run:
    """What certifiers are made of (`Certifier.from_run`): each part when asked for."""

    def __init__(self, config: Config, workdir: pathlib.Path, examples: Examples):
        """Remembers; arguments as `restore`."""
        self._config, self._workdir, self._examples = config, workdir, examples

    @functools.cached_property
    def _trained(self):
        return restore(self._config, self._workdir, self._examples)

    @property
    def classify(self) -> Callable[[jax.Array], jax.Array]:
        """The base classifier."""
        return self._trained.classify

    @property
    def smoothing(self) -> smoothing.Smoothing:
        """Noise law and theorem."""
        return self._trained.smoothing

    @property
    def network(self) -> LipschitzNetwork:
        """The network that needs no noise."""
        config, examples = self._config, self._examples
        if not certifies_itself(config, examples):
            raise ValueError(
                f"certify.method='lipschitz' needs a network that is 1-Lipschitz in W: "
                f"model.name='potentials', not {config.model.name!r}."
            )
        return restore_network(config, self._workdir, examples)

    def training_set(self) -> Examples:
        """The training split."""
        return Examples(self._config.data, "train")


def make_certifier(
    config: Config, workdir: pathlib.Path, examples: Examples
) -> Certifier:
    """The certifier of a config's `certify` block; arguments as `restore`.

    Raises:
      ValueError: as `restore`, or a setting is outside its range.
    """
    kind = registry.get_kind(config.certify.method)
    return kind.from_run(Run(config, workdir, examples), **config.certify.settings)
