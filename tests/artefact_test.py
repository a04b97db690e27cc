"""Tests of wsjax.runs.artefact, and of what a config may ask of a stored classifier."""

import errno
import itertools
import json
import os
import pathlib
import pickle
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized
from safetensors import safe_open
from safetensors.numpy import save_file

from wsjax import gaussian, smoothing
from wsjax.runs import artefact, config, experiment, trained
from wsjax.runs.examples import Examples
from wsjax.training import checkpoints, learned_noise, steps

SHAPE = (4, 5, 3)
MODEL = {"name": "mlp", "widths": (6,), "num_classes": 3}
SCALE = 0.05
EACH_LAW = parameterized.parameters("view", "spectrum", "unfiltered")


def view(seed=0):
    """Features that differ more along the diagonal: the metrics have other worst pairs."""
    height, width, _ = SHAPE
    rng = np.random.default_rng(seed)
    features, readout = rng.normal(scale=0.2, size=(2, 7, *SHAPE))
    features[0] += np.add.outer(np.arange(height), np.arange(width))[..., None]
    return gaussian.GaussianView(features, readout, rng.uniform(size=SHAPE))


def spectral(seed=0, filtered=True):
    height, width, channels = SHAPE
    rng = np.random.default_rng(seed)
    amplitude = rng.uniform(0.1, 1, (height, width, channels, channels))
    amplitude += np.roll(amplitude[::-1, ::-1], (1, 1), axis=(0, 1))
    amplitude += 3 * np.eye(channels)
    amplitude[0, 0] = 0
    if not filtered:
        return gaussian.ColouredGaussian(amplitude)
    gain = rng.uniform(size=amplitude.shape)
    return gaussian.ColouredGaussian(amplitude, gain, rng.uniform(size=SHAPE))


LAWS = {
    "view": view(),
    "spectrum": spectral(),
    "unfiltered": spectral(filtered=False),
}


def slowly(law, metric):
    """`kappa` of a `GaussianView`, from the arrays it draws with, pair by pair."""
    worst, features = 0.0, law.features.astype(np.float64)
    for a, b in itertools.combinations(np.ndindex(law.image_shape[:2]), 2):
        away = np.abs(np.subtract(a, b))
        far = away.sum() if metric == "l1" else np.hypot(*away)
        slopes = np.linalg.norm(features[:, *a] - features[:, *b], axis=0) / far
        worst = max(worst, slopes.max())
    return worst


VARIABLES = {
    "params": {
        "Dense_0": {
            "kernel": np.random.default_rng(0)
            .normal(size=(60, 3))
            .astype(np.float32)
            .T,
            "bias": np.arange(3, dtype=np.float32),
        }
    },
    "batch_stats": {"BatchNorm_0": {"mean": np.array([3, 4], np.int32)}},
    "scale": {"temperature": np.float32(3)},
}
DESCRIPTION = {
    "model": {**MODEL, "widths": [6]},
    "data": "cifar",
    "image_shape": [4, 5, 3],
}
PROVENANCE = {
    "config": {"smoothing": {"noise": "learned_view"}},
    "devices": ["1 x cpu"],
}


def stored(law, metric="l2", **changes):
    scores = smoothing.gaussian_scores(law, SHAPE, metric)
    whole = artefact.Artefact(law, VARIABLES, DESCRIPTION, scores, PROVENANCE)
    return whole._replace(**changes)


class Folder(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)
        self.path = self.folder / artefact.NAME

    def assert_refused(self, pattern, description=DESCRIPTION):
        with self.assertRaisesRegex(checkpoints.CheckpointError, pattern) as caught:
            artefact.load(self.path, description)
        self.assertIn(str(self.path), str(caught.exception))

    def content(self):
        """Arrays and text of the file, read without wsjax."""
        with safe_open(self.path, framework="numpy") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118

    def rewrite(self, arrays=(), text=()):
        """Changes some entries of the file; None takes one away, as is the digest."""
        old_arrays, old_text = self.content()
        old_text.pop("sha256", None)
        arrays, text = {**old_arrays, **dict(arrays)}, {**old_text, **dict(text)}
        arrays = {
            k: np.asarray(v, order="C") for k, v in arrays.items() if v is not None
        }
        text = {k: v for k, v in text.items() if v is not None}
        save_file(arrays, self.path, text)


class RoundTripTest(Folder):
    @parameterized.product(law=("view", "spectrum", "unfiltered"), metric=("l1", "l2"))
    def test_gives_back_what_was_saved(self, law, metric):
        saved = stored(LAWS[law], metric)
        artefact.save(self.path, saved)

        found = artefact.load(self.path, DESCRIPTION)

        self.assertEqual(found.law, saved.law)
        self.assertEqual(hash(found.law), hash(saved.law))
        for name in ("features", "readout", "mean", "amplitude", "gain"):
            ours, theirs = (getattr(x.law, name, None) for x in (found, saved))
            self.assertEqual(ours is None, theirs is None)
            np.testing.assert_array_equal(ours, theirs)
        chex.assert_trees_all_equal(found.variables, saved.variables)
        chex.assert_trees_all_equal_shapes_and_dtypes(found.variables, saved.variables)
        self.assertEqual(found[2:], saved[2:])
        self.assertEqual(artefact.read(self.path).scores, saved.scores)
        self.assertEqual(os.listdir(self.folder), [artefact.NAME])

    def test_text_is_of_the_header_and_numbers_are_bare(self):
        """The format: a length, a JSON header, then nothing but the arrays."""
        artefact.save(self.path, stored(LAWS["spectrum"]))
        whole = self.path.read_bytes()
        size = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + size])
        text = header.pop("__metadata__")
        self.assertEqual(text["format"], "wsjax classifier 1")
        self.assertEqual(text["law"], "ColouredGaussian")
        self.assertEqual(json.loads(text["description"]), DESCRIPTION)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        self.assertEqual(max(ends), len(whole) - 8 - size)
        begin, end = header["noise/amplitude"]["data_offsets"]
        bare = np.frombuffer(whole[8 + size + begin : 8 + size + end], np.float32)
        np.testing.assert_array_equal(bare, LAWS["spectrum"].amplitude.ravel())

    def test_the_same_content_is_the_same_file(self):
        """safetensors puts its text into another order each time."""
        artefact.save(self.path, stored(LAWS["view"]))
        whole = self.path.read_bytes()
        size = int.from_bytes(whole[:8], "little")
        self.assertEqual(size % 8, 0)
        header = json.loads(whole[8 : 8 + size])
        self.assertEqual(list(header), sorted(header))
        text = header["__metadata__"]
        self.assertEqual(list(text), sorted(text))
        for _ in range(5):
            artefact.save(self.path, stored(LAWS["view"]))
            self.assertEqual(self.path.read_bytes(), whole)

    def test_its_mode_is_that_of_the_umask(self):
        for umask in (0o022, 0o077):
            before = os.umask(umask)
            try:
                artefact.save(self.path, stored(LAWS["view"]))
            finally:
                os.umask(before)
            self.assertEqual(self.path.stat().st_mode & 0o777, 0o666 & ~umask)

    def test_nothing_is_pickled(self):
        forbidden = mock.Mock(side_effect=AssertionError("pickle was used"))
        names = ("dump", "dumps", "load", "loads", "Pickler", "Unpickler")
        for name in names:
            self.enter_context(mock.patch.object(pickle, name, forbidden))
        self.enter_context(mock.patch.object(np, "load", forbidden))
        artefact.save(self.path, stored(LAWS["view"]))
        self.assertEqual(artefact.load(self.path, DESCRIPTION).law, LAWS["view"])

    @parameterized.named_parameters(
        ("full", OSError(errno.ENOSPC, "No space left on device")),
        ("broken", OSError(errno.EIO, "Input/output error")),
    )
    def test_a_disk_that_fails_leaves_the_old_file(self, failure):
        artefact.save(self.path, stored(LAWS["view"]))
        before = self.path.read_bytes()

        with (
            mock.patch.object(os, "fsync", side_effect=failure),
            self.assertRaises(OSError) as caught,
        ):
            artefact.save(self.path, stored(view(seed=1)))

        self.assertIn(str(failure.args[-1]), str(caught.exception))
        self.assertEqual(self.path.read_bytes(), before)
        self.assertEqual(artefact.load(self.path, DESCRIPTION).law, LAWS["view"])
        # Half a file would take up room that is needed.
        self.assertEqual(os.listdir(self.folder), [artefact.NAME])
        # And the next attempt succeeds.
        artefact.save(self.path, stored(view(seed=1)))
        self.assertEqual(artefact.load(self.path, DESCRIPTION).law, view(seed=1))
        self.assertEqual(os.listdir(self.folder), [artefact.NAME])


class RefusalTest(Folder):
    def setUp(self):
        super().setUp()
        artefact.save(self.path, stored(LAWS["view"]))

    @parameterized.named_parameters(
        ("data", {"data": "mnist"}, "data: trained 'cifar', config 'mnist'"),
        (
            "image",
            {"image_shape": [5, 4, 3]},
            r"image_shape: trained \[4, 5, 3\], config \[5, 4, 3\]",
        ),
        (
            "model",
            {"model": {**MODEL, "widths": (7,)}},
            r"model: trained .*\[6\].*, config .*\[7\]",
        ),
    )
    def test_another_classifier(self, changes, message):
        self.assert_refused(
            f"not the classifier this config describes: {message}",
            {**DESCRIPTION, **changes},
        )
        # Tuples and lists are the same.
        artefact.load(self.path, {**DESCRIPTION, "model": MODEL})

    def test_a_file_that_is_not_there(self):
        self.path.unlink()
        self.assert_refused(
            r"There is no .*`wsjax train` writes it.*--config\.model\.check"
        )

    def test_truncated(self):
        whole = self.path.read_bytes()
        for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
            self.path.write_bytes(whole[:size])
            with self.subTest(size=size):
                self.assert_refused("no classifier of this program, or is damaged")

    def test_a_changed_bit_of_any_array(self):
        whole = self.path.read_bytes()
        start = 8 + int.from_bytes(whole[:8], "little")
        for place in np.random.default_rng(0).integers(start, len(whole), 10):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            self.path.write_bytes(damaged)
            self.assert_refused("damaged: its arrays are not those that were written")

    @parameterized.named_parameters(
        ("bytes", bytes(range(256)) * 40),
        ("text", b"<html>404</html>\n"),
        ("json", b'{"format": "wsjax classifier 1"}'),
        ("long_header", b"\xff" * 8 + b"{}"),
    )
    def test_garbage(self, content):
        self.path.write_bytes(content)
        self.assert_refused("no classifier of this program, or is damaged")

    def test_a_pickle_runs_no_code(self):
        victim = self.folder / "created"

        class Hostile:
            def __reduce__(self):
                return os.system, (f"touch {victim}",)

        self.path.write_bytes(pickle.dumps(Hostile()))
        self.assert_refused("no classifier of this program")
        self.assertFalse(victim.exists())

    def test_other_safetensors(self):
        weights = {"model.weight": np.ones((3, 2), np.float32)}
        for text, message in (
            (None, "format is None, not 'wsjax classifier 1'"),
            ({"format": "pt"}, "format is 'pt'"),
            ({"format": "wsjax classifier 2"}, "format is 'wsjax classifier 2'"),
            ({"format": "wsjax network 1"}, "it is for model.name='potentials'"),
        ):
            save_file(weights, self.path, text)
            self.assert_refused(message)

    @parameterized.named_parameters(
        ("law", {"law": "FlowGaussian"}),
        ("other_law", {"law": "ColouredGaussian"}),
        ("no_law", {"law": None}),
        ("no_claim", {"claim": None}),
        ("null_claim", {"claim": "null"}),
        ("listed_claim", {"claim": "[1, 2]"}),
        ("half_claim", {"claim": '{"kappa": 1.0}'}),
        ("worded_claim", {"claim": '{"ground_metric": "l2", "kappa": "low"}'}),
        ("no_json", {"description": "{"}),
        ("listed_description", {"description": "[]"}),
        ("deep_description", {"description": 10**5 * "[" + 10**5 * "]"}),
        ("deep_claim", {"claim": 900 * '{"a":' + "1" + 900 * "}"}),
        ("config", {"provenance": '{"config": 3}'}),
        ("smoothing", {"provenance": '{"config": {"smoothing": 3}}'}),
        ("metric", {"claim": '{"ground_metric": ["l2"], "kappa": 1.0}'}),
        ("no_provenance", {"provenance": None}),
    )
    def test_text_that_makes_no_sense(self, text):
        self.rewrite(text=text)
        self.assert_refused("no classifier of this program, or is damaged")

    @parameterized.named_parameters(
        ("missing", "features", lambda x: None),
        ("flat", "features", np.ravel),
        ("nan", "features", lambda x: np.where(x == x.max(), np.nan, x)),
        ("infinite", "features", lambda x: np.where(x == x.max(), np.inf, x)),
        ("nan_readout", "readout", lambda x: np.where(x == x.max(), np.nan, x)),
        ("nan_mean", "mean", lambda x: np.where(x == x.max(), np.nan, x)),
        ("short", "readout", lambda x: x[1:]),
        ("narrow", "mean", lambda x: x[:, 1:]),
        ("unknown", "colour", lambda x: np.zeros(3)),
    )
    def test_arrays_that_are_no_law(self, name, change):
        arrays, _ = self.content()
        self.rewrite({f"noise/{name}": change(arrays.get(f"noise/{name}"))})
        self.assert_refused("no classifier of this program, or is damaged")

    @parameterized.named_parameters(
        ("nan", lambda x: np.where(x == x.max(), np.nan, x), "NaN"),
        ("constant", lambda x: x + 1, "frequency zero"),
        ("silent", lambda x: 0 * x, "positive"),
        ("lopsided", lambda x: x * np.arange(1, 5)[:, None, None, None], "symmetric"),
    )
    def test_amplitudes_that_are_no_noise(self, change, message):
        artefact.save(self.path, stored(LAWS["spectrum"]))
        arrays, _ = self.content()
        self.rewrite({"noise/amplitude": np.float32(change(arrays["noise/amplitude"]))})
        self.assert_refused(f"or is damaged .*{message}")

    @parameterized.parameters(2.0, 0.5, 1.0001, 0.9999)
    def test_features_of_another_size_than_claimed(self, factor):
        """Half of the features would certify twice the radius, were the claim trusted."""
        arrays, text = self.content()
        self.rewrite({"noise/features": np.float32(factor) * arrays["noise/features"]})
        claimed = json.loads(text["claim"])["kappa"]
        self.assert_refused(
            rf"claims kappa={claimed} \(l2\), but its noise gives \d.*do not"
        )

    @parameterized.parameters(2.0, 0.5)
    def test_amplitudes_of_another_size_than_claimed(self, factor):
        artefact.save(self.path, stored(LAWS["spectrum"], "l1"))
        arrays, _ = self.content()
        amplitude = np.float32(factor) * arrays["noise/amplitude"]
        self.rewrite({"noise/amplitude": amplitude})
        self.assert_refused(r"claims kappa=[\d.]+ \(l1\), but its noise gives \d")

    @parameterized.parameters(0.5, 1 - 1e-6, 1 + 1e-6, 0.0, float("nan"), float("inf"))
    def test_a_claim_that_the_noise_does_not_give(self, factor):
        claim = json.loads(self.content()[1]["claim"])
        claim["kappa"] *= factor
        self.rewrite(text={"claim": json.dumps(claim)})
        self.assert_refused("claims kappa=.*One of the two was changed after training")

    @parameterized.parameters(1e-13, -1e-13)
    def test_the_last_digits_may_differ_between_machines(self, error):
        claim = json.loads(self.content()[1]["claim"])
        claim["kappa"] *= 1 + error
        self.rewrite(text={"claim": json.dumps(claim)})
        self.assertEqual(artefact.load(self.path, DESCRIPTION).law, LAWS["view"])

    def test_a_claim_about_another_metric_than_its_own(self):
        claim = json.loads(self.content()[1]["claim"])
        self.rewrite(text={"claim": json.dumps({**claim, "ground_metric": "l1"})})
        self.assert_refused(r"claims kappa=[\d.]+ \(l1\)")
        self.rewrite(text={"claim": json.dumps({**claim, "ground_metric": "l3"})})
        with self.assertRaisesRegex(ValueError, "ground_metric='l3'"):
            artefact.load(self.path, DESCRIPTION)


class Digits:
    """As much of `Examples` as storing and restoring look at."""

    name, num_classes, image_shape = "digits", 3, (8, 8, 1)


IMAGES = np.random.default_rng(0).integers(0, 17, (20, *Digits.image_shape), np.uint8)


def settings(**smoothing):
    return config.resolve(
        {
            "data": {"name": "digits"},
            "model": {"name": "mlp", "widths": (6,)},
            "smoothing": {
                "noise": "learned_view",
                "certificate_scale": SCALE,
                "ground_metric": "l2",
                "waves": 2,
                **smoothing,
            },
            "train": {
                "learning_rate": 0.1,
                "noise_learning_rate": 0.1,
                "batch_size": 8,
                "num_epochs": 1,
            },
            "certify": {"n0": 10, "n": 10, "alpha": 0.05},
        }
    )


class ExperimentTest(Folder):
    """What train.py stores, and what certify.py makes of it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = settings()
        cls.noise = experiment.make_learned_noise(cls.config, IMAGES)
        module = experiment.make_model(cls.config.model, 3)
        state = steps.init_state(
            jax.random.key(1), module, Digits.image_shape, optax.sgd(0.1), cls.noise
        )
        # As if trained: not what it began with.
        rng = np.random.default_rng(0)
        features = state.noise["features"]
        changed = {"features": features + rng.normal(size=features.shape)}
        cls.state = state._replace(noise=jax.tree.map(np.float32, changed))
        cls.module = module

    def setUp(self):
        super().setUp()
        experiment.save_artefact(
            self.folder, self.config, Digits, self.noise, self.state
        )

    def test_stores_the_law_its_claim_and_where_it_came_from(self):
        found = artefact.load(self.path, experiment.description(self.config, Digits))
        self.assertEqual(found.law, self.noise.freeze(self.state.noise))
        scores = found.scores
        self.assertEqual((scores.function, scores.ground_metric), ("gaussian", "l2"))
        self.assertAlmostEqual(scores.scale * slowly(found.law, "l2"), 1.0, delta=1e-9)
        self.assertAlmostEqual(scores.scale / SCALE, 1.0, delta=1e-5)
        chex.assert_trees_all_equal(found.variables, self.state.variables)
        origin = found.provenance
        whole = json.loads(json.dumps(self.config.plain()))
        self.assertEqual(origin["config"]["smoothing"], whole["smoothing"])
        self.assertEqual(origin["config"]["train"], whole["train"])
        self.assertEqual(origin["config"]["seed"], 0)
        self.assertEqual(origin["versions"]["jax"], jax.__version__)
        self.assertEqual(origin["devices"][0], "8 x cpu")

    def test_restores_classifier_and_smoothing(self):
        with mock.patch.object(
            gaussian, "feature_kappa", wraps=gaussian.feature_kappa
        ) as constants:
            classify, smooth = trained.restore(self.config, self.folder, Digits)
        self.assertEqual(constants.call_count, 1)
        images = np.float32(IMAGES[:2]) / 16
        expected = self.module.apply(self.state.variables, images)
        chex.assert_trees_all_equal(classify(images), expected)

        self.assertEqual(smooth.noise, self.noise.freeze(self.state.noise))
        self.assertEqual(smooth.image_shape, (8, 8, 1))
        # A class of probability Phi(1) is certified to the scale, not beyond.
        radius = smooth.scores.radius(0.8413447460685429)
        self.assertBetween(radius, SCALE, SCALE * (1 + 2e-5))

    def test_another_metric_has_its_own_constant(self):
        _, smooth = trained.restore(settings(ground_metric="l1"), self.folder, Digits)
        self.assertEqual(smooth.ground_metric, "l1")
        self.assertAlmostEqual(
            smooth.scores.scale * slowly(smooth.noise, "l1"), 1.0, delta=1e-9
        )
        _, other = trained.restore(self.config, self.folder, Digits)
        self.assertGreaterEqual(smooth.scores.scale, other.scores.scale)

    def test_a_released_file_is_read_from_anywhere(self):
        released = self.folder / "released.safetensors"
        self.path.rename(released)
        elsewhere = self.changed("model", checkpoint=str(released))
        workdir = self.folder / "empty"
        classify, smooth = trained.restore(elsewhere, workdir, Digits)
        self.assertEqual(smooth.noise, self.noise.freeze(self.state.noise))
        chex.assert_trees_all_equal(classify.args[0], self.state.variables)
        with self.assertRaisesRegex(checkpoints.CheckpointError, "There is no"):
            trained.restore(self.config, workdir, Digits)

    def changed(self, block, **settings):
        whole = self.config.plain()
        whole[block] |= settings
        return config.resolve(whole)

    @parameterized.named_parameters(
        (
            "scale",
            {"certificate_scale": 0.06},
            r"trained for the certificate scale 0\.05.*certificate_scale=0\.06",
        ),
        (
            "hardly_another_scale",
            {"certificate_scale": SCALE * 1.01},
            r"scale 0\.05.*certificate_scale=0\.0505",
        ),
        (
            "noise",
            {"noise": "learned_spectrum"},
            "holds noise 'learned_view', the config says smoothing.noise='learned_sp",
        ),
    )
    def test_refuses_another_noise(self, changes, message):
        with self.assertRaisesRegex(ValueError, message) as caught:
            trained.restore(settings(**changes), self.folder, Digits)
        self.assertIn(str(self.path), str(caught.exception))

    @parameterized.named_parameters(
        ("missing", {"Dense_0/kernel": None}, "params/Dense_0/kernel is missing"),
        ("more", {"Dense_9/kernel": np.ones(3)}, "params/Dense_9/kernel is too much"),
        (
            "shape",
            {"Dense_0/kernel": np.ones((3, 2), np.float32)},
            "is float32.3, 2., n",
        ),
        (
            "flat",
            {"Dense_0/bias": np.ones((2, 3), np.float32)},
            "is float32.2, 3., not float",
        ),
        (
            "kind",
            {"Dense_0/bias": np.ones(6, np.int32)},
            "bias is int32.6,., not float32",
        ),
        (
            "nan",
            {"Dense_0/bias": np.full(6, np.nan, np.float32)},
            "bias has NaN or inf",
        ),
        ("clash", {"Dense_0": np.ones(3)}, "damaged"),
        ("clash_below", {"Dense_0/bias/x": np.ones(3)}, "damaged"),
        (
            "none",
            dict.fromkeys(
                [f"Dense_{i}/{x}" for i in (0, 1) for x in ("kernel", "bias")]
            ),
            "is missing; .* is missing",
        ),
    )
    def test_refuses_other_weights(self, changes, message):
        changes = {f"variables/params/{k}": v for k, v in changes.items()}
        self.rewrite(changes)
        with self.assertRaisesRegex(checkpoints.CheckpointError, message) as caught:
            trained.restore(self.config, self.folder, Digits)
        self.assertIn(str(self.path), str(caught.exception))

    def test_refuses_another_data_set_and_model(self):
        class Mnist(Digits):
            name = "mnist"

        wider = self.changed("model", widths=(7,))
        for chosen, examples in ((self.config, Mnist), (wider, Digits)):
            with self.assertRaisesRegex(
                checkpoints.CheckpointError, "trained .* config"
            ):
                trained.restore(chosen, self.folder, examples)


class NoiseSettingsTest(chex.TestCase):
    """Settings of the `smoothing` block that belong to one kind of noise."""

    def test_learned_noise_has_the_settings_of_the_config(self):
        view = experiment.make_learned_noise(
            settings(noise="learned_view", waves=3, gamma=1.5), IMAGES
        )
        self.assertIsInstance(view, learned_noise.LearnedView)
        self.assertEqual((view.waves, view.gamma), (3, 1.5))
        self.assertEqual(len(view.statistics.factor), 64)
        options = {"bins": 0, "couple_channels": False, "wiener": False, "gamma": 0.5}
        spectrum = experiment.make_learned_noise(
            settings(noise="learned_spectrum", ground_metric="l1", **options), IMAGES
        )
        self.assertIsInstance(spectrum, learned_noise.LearnedSpectrum)
        self.assertEqual((spectrum.bins, spectrum.gamma), (0, 0.5))
        self.assertEqual((spectrum.couple, spectrum.wiener), (False, False))
        self.assertEqual(len(spectrum.statistics.factor), 0)
        for noise, metric in ((view, "l2"), (spectrum, "l1")):
            self.assertEqual(noise.certificate_scale, SCALE)
            self.assertEqual(noise.ground_metric, metric)

    @parameterized.named_parameters(
        (
            "no_scale",
            {"certificate_scale": 0.0},
            "certificate_scale=0.0 is not positive",
        ),
        ("negative", {"certificate_scale": -0.1}, "certificate_scale=-0.1 is not"),
        ("nan", {"certificate_scale": float("nan")}, "certificate_scale=nan is not"),
        (
            "infinite",
            {"certificate_scale": float("inf")},
            "certificate_scale=inf is not",
        ),
        (
            "sigma",
            {"sigma": 0.01},
            "sigma=0.01 means nothing to .*'learned_view'.*to 0",
        ),
        ("metric", {"ground_metric": "l3"}, "ground_metric='l3' is not one of"),
    )
    def test_refuses_for_learned_noise(self, changes, message):
        with self.assertRaisesRegex(ValueError, message):
            experiment.make_learned_noise(settings(**changes), IMAGES)

    @parameterized.named_parameters(
        ("no_sigma", {}, "sigma=0.0"),
        (
            "scale",
            {"sigma": 0.1, "certificate_scale": 0.05},
            "certificate_scale=0.05 means nothing to .*flow_lap",
        ),
        ("learned", {"noise": "learned_view"}, "noise='learned_view' is not one of"),
    )
    def test_refuses_for_fixed_noise(self, changes, message):
        unscaled = {"noise": "flow_laplace", "certificate_scale": 0.0}
        chosen = settings(**unscaled | changes)
        with self.assertRaisesRegex(ValueError, message):
            experiment.make_smoothing(chosen, (8, 8, 1))

    @parameterized.parameters(0.0, 1.0, 3.0)
    def test_gamma_reaches_a_power_law(self, gamma):
        chosen = settings(
            noise="power_law", sigma=0.1, certificate_scale=0.0, gamma=gamma
        )
        law = experiment.make_smoothing(chosen, (8, 8, 1)).noise
        ratio = law.spectrum[4, 4, 0, 0] / law.spectrum[0, 4, 0, 0]
        self.assertAlmostEqual(ratio, 2.0**gamma, delta=1e-4)

    def test_learned_noise_needs_the_images_in_memory(self):
        photographs = mock.Mock(data=mock.Mock(arrays=None))
        photographs.name = "imagenet"
        with self.assertRaisesRegex(ValueError, "imagenet does not fit.*named noise"):
            Examples.training_images(photographs)


if __name__ == "__main__":
    absltest.main()
