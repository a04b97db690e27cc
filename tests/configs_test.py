"""Tests of the files in configs/: each loads, resolves, and builds all it names."""

import functools
import pathlib
import re
import runpy
import types
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import smoothing, votes
from wsjax.attacks import registry
from wsjax.certifiers.registry import get_kind
from wsjax.data import dataset
from wsjax.runs import attack_report, config, experiment, named_configs
from wsjax.training import learned_noise, steps

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.py"))
# Of certifiers that take neither noise nor training.
UNTRAINED = [ROOT / "configs" / "mnist_nearest.py"]
TRAINED = [path for path in FILES if path not in UNTRAINED]
# Of networks that are Lipschitz by construction.
LIPSCHITZ = sorted((ROOT / "configs").glob("*_potentials.py"))
SMOOTHED = [path for path in TRAINED if path not in LIPSCHITZ]


def each_of(files):
    return parameterized.named_parameters(
        ("_".join(path.relative_to(ROOT / "configs").with_suffix("").parts), path)
        for path in files
    )


EACH_CONFIG, EACH_TRAINED = each_of(FILES), each_of(TRAINED)
EACH_SMOOTHED, EACH_LIPSCHITZ = each_of(SMOOTHED), each_of(LIPSCHITZ)
IMAGES = {
    "digits": ((8, 8, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "imagenet": ((224, 224, 3), 1000),
}


def load(path):
    module = runpy.run_path(str(path))
    return config.resolve(module["get_config"]()), module["__doc__"]


def quick_statistics(images, rank=200, compute=learned_noise.statistics):
    """With a covariance of rank one, which takes no eigenvectors of all pixels."""
    found = compute(images, 0)
    return found._replace(factor=found.mean[None]) if rank else found


class ConfigsTest(chex.TestCase):
    def test_there_is_one_for_every_data_set(self):
        names = {load(path)[0].data.name for path in FILES}
        self.assertEqual(names, set(IMAGES))

    @EACH_SMOOTHED
    def test_noise_and_protocol(self, path):
        settings, _ = load(path)
        shape, _ = IMAGES[settings.data.name]
        if experiment.learns_noise(settings):
            images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
            with mock.patch.object(learned_noise, "statistics", quick_statistics):
                noise = experiment.make_learned_noise(settings, images)
            law = noise.freeze(jax.device_get(noise.init()))
            metric = settings.smoothing.ground_metric
            smooth = smoothing.gaussian_smoothing(law, shape, metric)
            # The certificate is that of the scale, at any probability.
            scale = settings.smoothing.certificate_scale
            expected = scale * stats.norm.ppf(0.9)
            self.assertAlmostEqual(
                smooth.scores.radius(0.9) / expected, 1.0, delta=1e-5
            )
        else:
            smooth = experiment.make_smoothing(settings, shape)
        self.assertGreater(smooth.scores.radius(0.9), 0)
        run = types.SimpleNamespace(classify=jnp.sum, smoothing=smooth)
        kind = get_kind(settings.certify.method)
        certifier = kind.from_run(run, **settings.certify.settings)
        self.assertEqual(certifier.alpha, 0.05)
        self.assertIn(certifier.counting.backend, votes.BACKENDS)

    @EACH_TRAINED
    def test_model(self, path):
        settings, _ = load(path)
        shape, classes = IMAGES[settings.data.name]
        module = experiment.make_model(settings.model, classes)
        logits, _ = jax.eval_shape(
            module.init_with_output, jax.random.key(0), jnp.zeros((2, *shape))
        )
        self.assertEqual(logits.shape, (2, classes))
        self.assertEqual(logits.dtype, jnp.float32)

    @EACH_SMOOTHED
    def test_training(self, path):
        settings, _ = load(path)
        learned = experiment.learns_noise(settings)
        optimizer = experiment.make_optimizer(settings.train, 1000, learned)
        parts = {"model": jnp.zeros(3), "noise": jnp.zeros(2)}
        optimizer.init(parts if learned else parts["model"])
        experiment.make_optimizer(settings.train, 1, learned)
        objective = experiment.make_objective(settings.train)
        if not learned:
            steps.check_objective(objective, None)
            self.assertEqual(settings.train.noise_learning_rate, 0)
        else:
            self.assertGreater(settings.train.noise_learning_rate, 0)
        # So that one to sixteen devices can share a batch.
        self.assertEqual(settings.train.batch_size % 16, 0)

    @EACH_LIPSCHITZ
    def test_training_of_lipschitz_networks(self, path):
        settings, _ = load(path)
        shape, classes = IMAGES[settings.data.name]
        module = experiment.make_model(settings.model, classes)
        experiment.check_purpose(module, settings.train)
        experiment.trace_state(module, shape, settings.train, None)
        objective = experiment.make_objective(settings.train)
        self.assertEqual(objective.name, "radius")
        self.assertEqual(settings.certify.method, "lipschitz")
        self.assertEqual(settings.train.batch_size % 16, 0)

    @EACH_TRAINED
    def test_attack(self, path):
        settings, _ = load(path)
        for name, method in registry.METHODS.items():
            whole = settings.plain()
            whole["attack"]["method"] = name
            built = experiment.make_attack(config.resolve(whole))
            self.assertEqual(built.ground_metric, experiment.ground_metric(settings))
            targets = attack_report.chosen_targets(settings.attack.target, method)
            wanted = settings.attack.target != "base"
            self.assertEqual("smoothed" in targets, method.smoothed and wanted)

    @EACH_CONFIG
    def test_header_has_the_commands(self, path):
        settings, header = load(path)
        name = path.relative_to(ROOT)
        folder = " --config.data.dir=FOLDER" * (settings.data.name != "digits")
        found = re.findall(r"^  python (\w+\.py) +(.*)$", header, re.MULTILINE)
        needed = {"certify.py"} if path in UNTRAINED else {"train.py", "certify.py"}
        self.assertContainsSubset(needed, dict(found))
        for script, arguments in found:
            self.assertTrue((ROOT / script).exists(), script)
            self.assertEqual(arguments, f"--config={name}{folder}")

    @EACH_CONFIG
    def test_overrides_that_headers_and_messages_name_exist(self, path):
        # Only keys that `get_config` returns can be overridden.
        given = runpy.run_path(str(path))["get_config"]()
        _, header = load(path)
        texts = [header, "--config.data.stride"]
        texts += ["--config.model.checkpoint"] * (path in TRAINED)
        for key in re.findall(r"--config\.([\w.]*\w)", " ".join(texts)):
            *blocks, name = key.split(".")
            block = functools.reduce(lambda there, part: there[part], blocks, given)
            self.assertIn(name, block, f"{key} in {path.name}")

    def test_nearest_neighbours_need_the_training_images_alone(self):
        for path in UNTRAINED:
            settings, _ = load(path)
            shape, classes = IMAGES[settings.data.name]
            images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
            data_set = dataset.make_dataset(
                images, np.arange(20) % classes, classes, 255
            )
            run = types.SimpleNamespace(
                training_set=lambda data_set=data_set: types.SimpleNamespace(
                    data=data_set, num_classes=data_set.num_classes
                ),
            )
            kind = get_kind(settings.certify.method)
            certifier = kind.from_run(run, **settings.certify.settings)
            self.assertFalse(certifier.random)
            found = certifier.certify(images[13] / 255)
            self.assertEqual(found.label, 13 % classes)

    def test_paper_recipes_are_the_published_ones(self):
        for name, epsilon in (("mnist", 0.3), ("cifar", 0.001)):
            settings, _ = load(ROOT / "configs" / "paper" / f"{name}.py")
            train = {"learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
            train |= {"batch_size": 128, "num_epochs": 200, "schedule": "constant"}
            whole = settings.plain()
            self.assertEqual(whole["train"] | train, whole["train"])
            protocol = {"n0": 1_000, "n": 10_000, "alpha": 0.05}
            self.assertEqual(whole["certify"] | protocol, whole["certify"])
            self.assertEqual(settings.smoothing.theorem, "published")
            self.assertEqual(settings.attack.method, "sinkhorn")
            published = settings.attack.settings["sinkhorn"]
            self.assertEqual(published["epsilon"], epsilon)
            self.assertTrue(published["abstention_counts"])

    def test_the_published_method_is_under_paper_and_learned_noise_is_not(self):
        for path in SMOOTHED:
            settings, _ = load(path)
            learned = experiment.learns_noise(settings)
            paper = path.parent.name == "paper"
            # Learned noise wants statistics of images that lie in memory, and a
            # classifier that is trained with it.
            streamed = settings.data.name == "imagenet"
            able = settings.train.noisy and not streamed
            self.assertEqual(learned, not paper and able, path)
            if paper:
                self.assertEqual(settings.smoothing.noise, "flow_laplace")
                # The one that stands beside learned noise is trained as that is.
                alike = path.stem == "cifar_fast"
                wanted = "consistency" if alike else "cross_entropy"
                self.assertEqual(settings.train.objective, wanted)


class WorkdirTest(chex.TestCase):
    @parameterized.parameters(
        ("configs/digits.py", "runs/digits"),
        ("configs/paper/mnist.py", "runs/paper-mnist"),
        ("/a/configs/paper/mnist.py:0.01", "runs/paper-mnist-0.01"),
        ("/configs/a/configs/paper/mnist.py", "runs/paper-mnist"),
        ("paper/mnist:0.01", "runs/paper-mnist-0.01"),
        ("elsewhere/mine.py", "runs/mine"),
    )
    def test_default_is_named_after_the_config(self, path, workdir):
        self.assertEqual(named_configs.default_workdir(path), pathlib.Path(workdir))


if __name__ == "__main__":
    absltest.main()
