"""Tests of wsjax.training.checkpoints, and of restoring classifiers from them."""

import errno
import gc
import os
import pathlib
import shutil
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from absl.testing import absltest, parameterized

from wsjax import models
from wsjax.runs import config, experiment, trained
from wsjax.training import checkpoints, steps

SHAPE = (8, 8, 1)
OPTIMIZER = optax.sgd(0.1, 0.9)
MODEL = {"name": "conv_small", "widths": [2, 3], "hidden": 4}
CONFIG = config.resolve(
    {
        "data": {"name": "digits"},
        "model": MODEL,
        "smoothing": {"noise": "flow_laplace", "sigma": 0.01, "ground_metric": "l2"},
        "train": {"learning_rate": 0.1, "batch_size": 8, "num_epochs": 1},
        "certify": {"n0": 10, "n": 10, "alpha": 0.05},
    }
)


def with_widths(widths):
    """The config with another network."""
    whole = CONFIG.plain()
    whole["model"]["widths"] = widths
    return config.resolve(whole)


def state_like(shape=SHAPE, optimizer=OPTIMIZER, **changes):
    """Shapes and dtypes of a state of `MODEL`, apart from changed settings."""
    module = models.create(**{"num_classes": 10, **MODEL, **changes})
    return jax.eval_shape(
        lambda key: steps.init_state(key, module, shape, optimizer), jax.random.key(0)
    )


def random_state(step=7, seed=0):
    """A state of `MODEL` at some step."""
    rng = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda x: jax.numpy.asarray(rng.normal(size=x.shape), x.dtype), state_like()
    )
    return state._replace(step=jax.numpy.int32(step))


class Digits:
    """As much of `Examples` as restoring looks at."""

    name, num_classes, image_shape = "digits", 10, SHAPE


# Orbax leaves half-read arrays behind when a checkpoint turns out to be another's.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
class CheckpointsTest(chex.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.saved_in = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.saved_in.cleanup)
        cls.state = random_state()
        cls.store(pathlib.Path(cls.saved_in.name), cls.state)

    @staticmethod
    def store(folder, *states):
        kept = checkpoints.Checkpoints(folder)
        for state in states:
            kept.save(state)
        kept.close()

    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder) / "run"
        shutil.copytree(self.saved_in.name, self.folder)

    def restore(self, like):
        kept = checkpoints.Checkpoints(self.folder)
        try:
            return kept.restore(like)
        finally:
            kept.close()

    def tearDown(self):
        gc.collect()  # So that what Orbax left behind is missed within this test.
        super().tearDown()

    @parameterized.named_parameters(("shapes", state_like), ("arrays", random_state))
    def test_round_trip_is_exact(self, like):
        restored = self.restore(like())
        chex.assert_trees_all_equal(restored, self.state)
        chex.assert_trees_all_equal_dtypes(restored, self.state)

    def test_the_newest_two_are_kept(self):
        self.store(self.folder, random_state(8, seed=1), random_state(9, seed=2))
        names = {path.name for path in (self.folder / "checkpoints").iterdir()}
        self.assertEqual(names, {"8", "9"})
        chex.assert_trees_all_equal(self.restore(state_like()), random_state(9, seed=2))

    def test_saving_returns_once_it_is_on_disk(self):
        kept = checkpoints.Checkpoints(self.folder)
        self.addCleanup(kept.close)
        kept.save(random_state(8))
        self.assertTrue((self.folder / "checkpoints" / "8").exists())

    def test_a_state_that_is_there_is_not_written_again(self):
        before = os.stat(self.folder / "checkpoints" / "7").st_mtime_ns
        self.store(self.folder, self.state)
        after = os.stat(self.folder / "checkpoints" / "7").st_mtime_ns
        self.assertEqual(before, after)

    def test_one_that_was_never_finished_is_not_seen(self):
        whole = self.folder / "checkpoints" / "7"
        for suffix in ("orbax-checkpoint-tmp", "orbax-checkpoint-tmp-123"):
            rest = whole.with_name(f"9.{suffix}")
            shutil.copytree(whole, rest)
            for path in rest.rglob("*"):
                if path.is_file():
                    os.truncate(path, path.stat().st_size // 2)
        chex.assert_trees_all_equal(self.restore(state_like()), self.state)

    def test_arrays_saved_on_eight_devices_are_restored_on_any(self):
        """Training on eight devices, certifying on one."""
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        spread = jax.device_put(random_state(9, seed=3), everywhere)
        self.assertLen(spread.step.devices(), 8)
        self.store(self.folder, spread)

        placed = self.restore(state_like())
        replicated = self.restore(spread)

        chex.assert_trees_all_equal(placed, random_state(9, seed=3))
        self.assertLen(placed.step.devices(), 1)
        self.assertEqual(replicated.params["Conv_0"]["bias"].sharding, everywhere)
        # The device is a default, not a commitment: both can meet in one program.
        jax.jit(lambda a, b: a + b)(placed.step, spread.step)

        # On another machine, those devices do not exist.
        places = self.folder / "checkpoints" / "9" / "default" / "_sharding"
        text = places.read_text()
        places.write_text(text.replace(r"{\"id\": ", r"{\"id\": 9"))
        self.assertIn("97", places.read_text())
        chex.assert_trees_all_equal(self.restore(state_like()), placed)

    def test_missing(self):
        shutil.rmtree(self.folder / "checkpoints")
        with self.assertRaisesRegex(
            checkpoints.CheckpointError, r"no checkpoint in .*run.*Run `wsjax train`"
        ):
            self.restore(state_like())

    @parameterized.named_parameters(
        ("index", "default/manifest.ocdbt"),
        ("arrays", "default/d/*"),
        ("structure", "default/_METADATA"),
    )
    def test_damaged(self, pattern):
        (path,) = (self.folder / "checkpoints" / "7").glob(pattern)
        os.truncate(path, path.stat().st_size // 2)
        with self.assertRaises(checkpoints.CheckpointError) as caught:
            self.restore(state_like())
        message = str(caught.exception)
        self.assertRegex(message, r"step 7 in .*damaged \(.+\).*delete the folder 7")
        self.assertLess(len(message), 1000)
        self.assertNotIn("\n", message)

    def test_damaged_anywhere(self):
        """Some of its files are not needed; without the others it is refused."""
        step, refused = self.folder / "checkpoints" / "7", 0
        for path in sorted(x for x in step.rglob("*") if x.is_file()):
            whole = path.read_bytes()
            for content in (b"", whole[: len(whole) // 2], bytes(range(256))):
                path.write_bytes(content)
                try:
                    found = self.restore(state_like())
                except checkpoints.CheckpointError:
                    refused += 1
                else:
                    chex.assert_trees_all_equal(found, self.state)
            path.write_bytes(whole)
        self.assertGreater(refused, 6)

    def test_a_changed_bit_of_a_large_array_is_noticed(self):
        """Small ones lie within an index, for which TensorStore has a checksum."""
        rng = np.random.default_rng(0)
        large = {"kernel": jax.numpy.asarray(rng.normal(size=(40, 50)), "float32")}
        state = steps.TrainState(jax.numpy.int32(9), large, {}, ())
        self.store(self.folder, state)
        step = self.folder / "checkpoints" / "9"
        path = max(step.rglob("d/*"), key=lambda path: path.stat().st_size)
        whole = path.read_bytes()
        for place in rng.integers(len(whole), size=5):
            damaged = bytearray(whole)
            damaged[place] ^= 4
            path.write_bytes(damaged)
            with self.assertRaisesRegex(
                checkpoints.CheckpointError, "step 9 in .* changed after.*folder 9"
            ):
                self.restore(state)
        # Those of before there was a digest are taken as they are.
        (step / "_CHECKPOINT_METADATA").write_text("{}")
        self.restore(state)
        path.write_bytes(whole)
        chex.assert_trees_all_equal(self.restore(state), state)

    def test_any_error_of_the_library_is_a_sentence(self):
        with (
            mock.patch.object(
                ocp.CheckpointManager, "restore", side_effect=Exception("cut\nshort")
            ),
            self.assertRaisesRegex(checkpoints.CheckpointError, r"damaged \(cut\)"),
        ):
            self.restore(state_like())

    @parameterized.parameters(
        (
            ValueError("RESOURCE_EXHAUSTED: No space left on device [x]"),
            "No space left",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota exceeded"),
        (Exception("odd\nand long"), "odd"),
    )
    def test_what_cannot_be_written_is_named(self, error, message):
        kept = checkpoints.Checkpoints(self.folder)
        with (
            mock.patch.object(ocp.CheckpointManager, "save", side_effect=error),
            self.assertRaisesRegex(
                OSError, rf"checkpoints/8 could not .*{message}.*; mak"
            ),
        ):
            kept.save(random_state(8))
        with mock.patch.object(ocp.CheckpointManager, "close", side_effect=error):
            kept.close()
        chex.assert_trees_all_equal(self.restore(state_like()), self.state)

    @parameterized.named_parameters(
        ("widths", {"widths": [2, 4]}),
        ("classes", {"num_classes": 3}),
        ("network", {"name": "resnet18", "widths": (), "hidden": ()}),
        ("image", {"shape": (12, 8, 1)}),
        ("optimizer", {"optimizer": optax.adam(0.1)}),
    )
    def test_of_something_else(self, changes):
        if changes.get("name"):
            module = models.create("resnet18", 10, width=2, stages=(1,))
            like = jax.eval_shape(
                lambda key: steps.init_state(key, module, SHAPE, OPTIMIZER),
                jax.random.key(0),
            )
        else:
            like = state_like(**changes)
        with self.assertRaisesRegex(
            checkpoints.CheckpointError, "step 7 in .*(does not fit|other shapes)"
        ):
            self.restore(like)


class DescriptionTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)

    def write(self, **changes):
        described = experiment.description(CONFIG, Digits)
        checkpoints.write_description(self.folder, {**described, **changes}, "mine")

    def assert_refused(self, pattern, chosen=CONFIG):
        with self.assertRaisesRegex(checkpoints.CheckpointError, pattern):
            trained.restore(chosen, self.folder, Digits)

    def test_restores_the_classifier_that_was_trained(self):
        self.write()
        state = random_state()
        saved = state._replace(opt_state=CONFIG_OPTIMIZER.init(state.params))
        CheckpointsTest.store(self.folder, saved)

        classify, _ = trained.restore(CONFIG, self.folder, Digits)

        images = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype(np.float32)
        module = models.create(num_classes=10, **MODEL)
        expected = module.apply({"params": state.params}, images)
        chex.assert_trees_all_close(classify(images), expected, rtol=1e-5)

    def test_missing(self):
        self.assert_refused(r"No trained classifier in .*Run `wsjax train`.*--workdir")

    def test_described_but_never_saved(self):
        self.write()
        self.assert_refused(r"no checkpoint in .*Run `wsjax train`")

    def test_damaged(self):
        self.write()
        path = self.folder / "classifier.json"
        path.write_text(path.read_text()[:30])
        self.assert_refused(r"classifier\.json is damaged")

    @parameterized.parameters("[]", "3", 10**5 * "[", '{"model":' * 10**5)
    def test_foreign(self, text):
        (self.folder / "classifier.json").write_text(text)
        self.assert_refused(r"classifier\.json is damaged")

    def test_checkpoints_of_another_run_are_not_gone_on_from(self):
        """As where `run.json` was deleted and other settings asked for."""
        self.assertFalse(checkpoints.check_run(self.folder, "other"))
        self.write()
        self.assertFalse(checkpoints.check_run(self.folder, "other"))
        CheckpointsTest.store(self.folder, random_state())
        self.assertTrue(checkpoints.check_run(self.folder, "mine"))
        message = r"another training run \(mine, this one is other\).*--workdir"
        with self.assertRaisesRegex(checkpoints.CheckpointError, message):
            checkpoints.check_run(self.folder, "other")
        (self.folder / "classifier.json").unlink()
        with self.assertRaisesRegex(checkpoints.CheckpointError, r"run \(None, this"):
            checkpoints.check_run(self.folder, "mine")

    def test_other_data_set(self):
        self.write(data="mnist", image_shape=[28, 28, 1])
        self.assert_refused(
            r"data: trained 'mnist', config 'digits'; "
            r"image_shape: trained \[28, 28, 1\], config \[8, 8, 1\]"
        )

    def test_other_architecture(self):
        self.write()
        wider = with_widths((4, 3))
        self.assert_refused(r"model: trained .*\[2, 3\].*, config .*\[4, 3\]", wider)

    def test_lists_and_tuples_are_the_same(self):
        self.write()
        same = with_widths((2, 3))
        checkpoints.check_description(self.folder, experiment.description(same, Digits))


CONFIG_OPTIMIZER = experiment.make_optimizer(CONFIG.train, 1)

if __name__ == "__main__":
    absltest.main()
