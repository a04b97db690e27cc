"""Tests of wsjax.training: steps, optimizers, and the loop around them."""

import errno
import logging
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_runs
from absl.testing import absltest, parameterized
from tiny_runs import PERTURB, Tiny, separable, train

from wsjax.console import signals
from wsjax.data import dataset
from wsjax.data.batches import epoch_batches
from wsjax.training import checkpoints, loop, optimizers, steps
from wsjax.training.metrics import MetricsWriter, read_metrics


def jitter(key, image):
    return image + jax.random.normal(key, image.shape)


class NoiseTest(chex.TestCase):
    def test_each_image_draws_its_own(self):
        images = jnp.full((4, 3, 2, 1), 0.5)
        noisy = steps.perturb_batch(jax.random.key(0), images, jitter, False)
        draws = np.asarray(noisy - images).reshape(4, -1)
        for i, j in np.ndindex(4, 4):
            self.assertEqual(np.array_equal(draws[i], draws[j]), i == j)

    def test_share_noise_gives_all_images_one_draw_scaled_by_their_mass(self):
        image = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 3, 1)))
        images = jnp.stack([image, 3 * image])
        noisy = steps.perturb_batch(jax.random.key(0), images, PERTURB, True)
        one, three = noisy - images
        chex.assert_trees_all_close(3 * one, three, atol=1e-5)
        self.assertGreater(float(jnp.abs(one).max()), 1e-3)

    def test_none_leaves_images_as_they_are(self):
        images = jnp.ones((2, 3, 3, 1))
        noisy = steps.perturb_batch(jax.random.key(0), images, None, False)
        chex.assert_trees_all_equal(noisy, images)

    @parameterized.named_parameters(("own", False), ("shared", True))
    def test_step_draws_anew_at_every_step_and_the_same_when_repeated(self, share):
        data, module, key = separable(8), Tiny(), jax.random.key(1)
        still = optax.set_to_zero()
        step = steps.make_train_step(
            module, still, jitter, scale=255.0, share_noise=share
        )
        state = steps.init_state(key, module, (4, 3, 1), still)
        losses = {}
        for number in (0, 1, 2, 1, 0):
            fresh = jax.tree.map(jnp.copy, state)._replace(step=jnp.int32(number))
            after, values = step(fresh, key, data.images, data.labels)
            self.assertEqual(int(after.step), number + 1)
            losses.setdefault(number, []).append(float(values["loss"]))
        self.assertEqual(losses[0][0], losses[0][1])
        self.assertEqual(losses[1][0], losses[1][1])
        self.assertLen({values[0] for values in losses.values()}, 3)


class StepTest(chex.TestCase):
    def test_equals_the_gradient_step_by_definition(self):
        data, module = separable(8), Tiny()
        optimizer = optax.sgd(0.5)
        state = steps.init_state(jax.random.key(0), module, (4, 3, 1), optimizer)
        images, rate = data.images / np.float32(255.0), 0.5

        def loss(params):
            logits, updates = module.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            picked = jax.nn.log_softmax(logits)[np.arange(8), data.labels]
            return -picked.mean(), (logits, updates["batch_stats"])

        slope = jax.jit(jax.grad(loss, has_aux=True))
        gradient, (logits, stats) = slope(state.params)
        params = jax.tree.map(lambda p, g: p - rate * g, state.params, gradient)
        expected_loss = float(loss(state.params)[0])

        step = steps.make_train_step(module, optimizer, None, scale=255.0)
        after, values = step(state, jax.random.key(9), data.images, data.labels)

        chex.assert_trees_all_close(after.params, params, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(after.batch_stats, stats, rtol=1e-4)
        self.assertAlmostEqual(float(values["loss"]), expected_loss, places=5)
        accuracy = np.mean(np.argmax(logits, -1) == data.labels)
        self.assertAlmostEqual(float(values["accuracy"]), accuracy, places=6)

    def test_evaluation_counts_right_answers_on_noisy_copies(self):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (64, 4, 3, 1), dtype=np.uint8)
        labels = rng.integers(0, 2, 64)
        state = steps.init_state(jax.random.key(0), Tiny(), (4, 3, 1), optax.sgd(0.1))
        state.params["Dense_0"]["bias"] = jnp.array([0.6, 0.0])
        key = jax.random.key(1)
        noisy = steps.perturb_batch(key, images / np.float32(255), jitter, False)
        answers = {}
        for name, perturb, shown in (
            ("noisy", jitter, noisy),
            ("clean", None, images / np.float32(255)),
        ):
            measure = steps.make_eval_step(Tiny(), perturb, scale=255.0)
            answers[name] = int((measure(state, key, images, labels) > 0).sum())
            logits = Tiny().apply(state.variables, shown, train=False)
            self.assertEqual(answers[name], np.sum(np.argmax(logits, -1) == labels))
        self.assertNotEqual(answers["noisy"], answers["clean"])

    def test_donates_the_state(self):
        data, module, optimizer = separable(8), Tiny(), optax.sgd(0.1)
        state = steps.init_state(jax.random.key(0), module, (4, 3, 1), optimizer)
        step = steps.make_train_step(module, optimizer, PERTURB, scale=255.0)
        step(state, jax.random.key(0), data.images, data.labels)
        for leaf in jax.tree.leaves((state.params, state.batch_stats)):
            self.assertTrue(leaf.is_deleted())

    def test_augments_before_the_noise(self):
        data, module, order = separable(8), Tiny(), []

        def augment(_, images):
            order.append(("augment", images.shape))
            return images

        def perturb(_, image):
            order.append(("perturb", image.shape))
            return image

        optimizer = optax.sgd(0.1)
        state = steps.init_state(jax.random.key(0), module, (4, 3, 1), optimizer)
        step = steps.make_train_step(
            module, optimizer, perturb, scale=255.0, augment=augment
        )
        step(state, jax.random.key(0), data.images, data.labels)
        self.assertEqual(order, [("augment", (8, 4, 3, 1)), ("perturb", (4, 3, 1))])


class OptimizerTest(chex.TestCase):
    @parameterized.named_parameters(
        ("plain", 0.0, 0.0), ("momentum", 0.9, 0.0), ("decay", 0.9, 0.3)
    )
    def test_sgd_adds_decay_to_the_gradient_before_momentum(self, momentum, decay):
        rng = np.random.default_rng(0)
        weights = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
        optimizer = optimizers.make_optimizer(
            optimizer="sgd",
            learning_rate=0.2,
            total_steps=9,
            momentum=momentum,
            weight_decay=decay,
        )
        params = jax.tree.map(jnp.asarray, weights)
        state = optimizer.init(params)
        velocity = jax.tree.map(np.zeros_like, weights)
        for _ in range(4):
            gradient = jax.tree.map(lambda w: rng.normal(size=w.shape), weights)
            for name, weight in weights.items():
                step = gradient[name] + decay * weight
                velocity[name] = momentum * velocity[name] + step
                weights[name] = weight - 0.2 * velocity[name]
            changes, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, changes)
        chex.assert_trees_all_close(params, weights, rtol=1e-4)

    def test_adam_decays_apart_from_the_gradient(self):
        rng = np.random.default_rng(1)
        weight, params = 2.0, jnp.float32(2.0)
        optimizer = optimizers.make_optimizer(
            optimizer="adam", learning_rate=0.1, total_steps=9, weight_decay=0.5
        )
        state, first, second = optimizer.init(params), 0.0, 0.0
        for t in range(1, 5):
            gradient = rng.normal()
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            scaled = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
            weight -= 0.1 * (scaled + 0.5 * weight)
            changes, state = optimizer.update(jnp.float32(gradient), state, params)
            params = optax.apply_updates(params, changes)
        self.assertAlmostEqual(float(params), weight, places=4)

    def test_muon_is_for_kernels_of_convolutions_and_adam_for_the_rest(self):
        rng = np.random.default_rng(2)
        shapes = {"kernel": (3, 3, 2, 5), "head": (5, 4), "bias": (5,)}
        params = {n: jnp.asarray(rng.normal(size=s)) for n, s in shapes.items()}
        gradient = {n: jnp.asarray(rng.normal(size=s)) for n, s in shapes.items()}
        optimizer = optimizers.make_optimizer(
            optimizer="muon",
            learning_rate=0.1,
            adam_learning_rate=0.02,
            total_steps=9,
        )
        changes, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
        # Orthogonal up to what five rounds of Newton and Schulz leave.
        stretched = np.linalg.svd(changes["kernel"].reshape(18, 5))[1]
        self.assertLess(stretched.max() / stretched.min(), 1.8)
        self.assertLess(0.06, stretched.min())
        for name in ("head", "bias"):
            # What Adam does first with Nesterov's momentum.
            first = 0.02 * (0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9))
            chex.assert_trees_all_close(
                changes[name], -first * np.sign(gradient[name]), rtol=1e-3
            )

    @parameterized.named_parameters(
        ("constant", "constant", {0: 0.4, 50: 0.4, 100: 0.4}),
        ("cosine", "cosine", {0: 0.4, 25: 0.2 + 0.2 * 0.5**0.5, 50: 0.2, 100: 0.0}),
        ("one_cycle", "one_cycle", {0: 0.4 / 25, 30: 0.4, 65: 0.2, 100: 0.4 / 25e4}),
    )
    def test_schedule_passes_through(self, schedule, rates):
        optimizer = optimizers.make_optimizer(
            optimizer="sgd",
            learning_rate=0.4,
            total_steps=100,
            momentum=0.0,
            schedule=schedule,
        )
        update = jax.jit(optimizer.update)
        state = optimizer.init(jnp.float32(1.0))
        for step in range(101):
            change, state = update(jnp.float32(1.0), state, jnp.float32(1.0))
            if step in rates:
                self.assertAlmostEqual(-float(change), rates[step], places=5)

    @parameterized.named_parameters(
        ("optimizer", {"optimizer": "sdg"}, "'sdg'.*'sgd', 'adam'"),
        ("schedule", {"schedule": "cos"}, "'cos'.*'constant', 'cosine', 'one_cycle'"),
        ("rate", {"learning_rate": 0.0}, "learning_rate=0.0"),
        ("nan_rate", {"learning_rate": float("nan")}, "learning_rate=nan"),
        ("decay", {"weight_decay": -0.1}, "weight_decay=-0.1"),
        ("muon", {"optimizer": "muon"}, "adam_learning_rate=0.0"),
    )
    def test_refuses(self, wrong, message):
        right = {"optimizer": "sgd", "learning_rate": 0.1, "total_steps": 10}
        with self.assertRaisesRegex(ValueError, message):
            optimizers.make_optimizer(**{**right, **wrong})


class LoopTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)
        for patch in tiny_runs.compiling_once():
            self.enter_context(patch)

    def test_learns_a_separable_set_and_records_it(self):
        state = train(self.folder, num_epochs=12)
        lines = read_metrics(self.folder)
        losses = [line["loss"] for line in lines if "loss" in line]
        self.assertEqual([line["step"] for line in lines if "loss" in line], [50])
        self.assertLess(losses[-1], 0.3)
        measured = [line for line in lines if "epoch" in line]
        self.assertEqual([line["epoch"] for line in measured], list(range(1, 13)))
        self.assertEqual([line["step"] for line in measured], list(range(5, 61, 5)))
        self.assertGreater(measured[-1]["noisy_accuracy"], 0.95)
        self.assertEqual(int(state.step), 60)

    def test_every_epoch_is_shuffled_anew_and_split_over_the_devices(self):
        seen, make = [], steps.make_train_step

        def make_spy(*args, **kwargs):
            step = make(*args, **kwargs)

            def spy(state, key, images, labels):
                shards = {shard.data.shape for shard in images.addressable_shards}
                self.assertEqual(shards, {(1, 4, 3, 1)})
                seen.append((np.asarray(images), np.asarray(labels)))
                return step(state, key, images, labels)

            return spy

        with mock.patch.object(steps, "make_train_step", make_spy):
            train(self.folder, num_epochs=2)

        data = separable()
        for epoch in range(2):
            positions = epoch_batches(40, 8, seed=3, epoch=epoch)
            for index, (images, labels) in zip(positions, seen[5 * epoch :]):
                np.testing.assert_array_equal(images, data.images[index])
                np.testing.assert_array_equal(labels, data.labels[index])
        self.assertLen(seen, 10)

    def test_a_stream_trains_like_the_same_images_in_memory(self):
        class Stream(dataset.Dataset):
            arrays = None

        def streamed(*args, **kwargs):
            held = separable(*args, **kwargs)
            return Stream(**vars(held))

        # Of arrays, which are on the devices already, a step moves indices alone.
        with mock.patch.object(dataset.Dataset, "train_batches", None):
            expected = train(self.folder / "arrays", num_epochs=1)
        with mock.patch.object(tiny_runs, "separable", streamed):
            actual = train(self.folder / "stream", num_epochs=1)
        chex.assert_trees_all_equal(actual, expected)
        self.assertEqual(*(read_metrics(self.folder / n) for n in ("stream", "arrays")))

    def test_metrics_leave_out_an_unfinished_line(self):
        lines = ['{"step": 1, "loss": 0.5}', '{"step": 2, "loss": 0.25}']
        text = "\n".join(lines) + "\n"
        for size in range(len(lines[0]) + 1, len(text)):
            (self.folder / "metrics.jsonl").write_text(text[:size])
            self.assertEqual(read_metrics(self.folder), [{"step": 1, "loss": 0.5}])
        self.assertEqual(read_metrics(self.folder / "elsewhere"), [])

    def test_damaged_metrics_are_named(self):
        good = b'{"step": 1}\n'
        for bad in (
            b"",
            b"[]",
            b"{",
            b'{"a": 1}',
            b'{"step": "1"}',
            b"\xff",
            10**5 * b"[",
        ):
            (self.folder / "metrics.jsonl").write_bytes(good + bad + b"\n" + good)
            with self.assertRaisesRegex(
                ValueError, r"metrics.jsonl, line 2 is damaged .*delete that line"
            ):
                read_metrics(self.folder)

    def test_a_full_disk_is_told_and_hangs_nothing(self):
        full = OSError(errno.ENOSPC, "No space left on device")
        for broken in ("_file", "_board"):
            folder = self.folder / broken
            folder.mkdir()
            writer = MetricsWriter(folder, 0)
            failing = mock.Mock(write=mock.Mock(side_effect=full))
            with mock.patch.object(writer, broken, failing):
                for step in range(20):
                    with self.assertRaisesRegex(
                        OSError, "metrics.jsonl could not be wr"
                    ):
                        writer.write(step, {"loss": 0.5})
            writer.close()

    def test_tensorboard_gets_what_the_file_gets(self):
        from tensorboardX.proto import event_pb2

        writer = MetricsWriter(self.folder, 3)
        writer.write(4, {"loss": 0.5, "accuracy": 0.25})
        writer.close()
        (path,) = (self.folder / "tensorboard").iterdir()
        content, events = path.read_bytes(), []
        while content:  # Length, checksum, event, checksum.
            size = int.from_bytes(content[:8], "little")
            events.append(event_pb2.Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
        _, start, *written = events
        self.assertEqual((start.step, start.session_log.status), (4, 1))
        found = [
            (e.step, v.tag, v.simple_value) for e in written for v in e.summary.value
        ]
        self.assertEqual(found, [(4, "loss", 0.5), (4, "accuracy", 0.25)])

    def test_measures_the_share_of_all_test_images(self):
        # 30 images in batches of 500: the padding must count for nothing.
        state = train(self.folder, num_epochs=1, perturb=None)
        data = separable(30, seed=1)
        logits = Tiny().apply(state.variables, data.images / np.float32(255))
        (line,) = (line for line in read_metrics(self.folder) if "epoch" in line)
        expected = np.mean(np.argmax(logits, -1) == data.labels)
        self.assertAlmostEqual(line["noisy_accuracy"], expected)

    def test_compiles_each_step_once(self):
        compiled, own = [], optax.sgd(0.1)

        class Notes(logging.Handler):
            def emit(self, record):
                text = record.getMessage()
                if text.startswith("Finished XLA compilation of jit(step)"):
                    compiled.append(text)

        logger, handler = logging.getLogger("jax"), Notes()
        logger.addHandler(handler)
        self.addCleanup(logger.removeHandler, handler)
        with jax.log_compiles():
            # An optimizer of its own: nothing is compiled for it yet.
            train(self.folder, num_epochs=4, make_optimizer=lambda _: own, perturb=None)
        self.assertLen(compiled, 2, "one training step, one evaluation step")

    def test_eight_devices_train_like_one(self):
        self.assertEqual(jax.local_device_count(), 8)
        many = train(self.folder / "8")
        with mock.patch.object(jax, "local_devices", lambda: jax.devices()[:1]):
            one = train(self.folder / "1")
        self.assertLen(jax.tree.leaves(many.params)[0].devices(), 8)
        self.assertLen(jax.tree.leaves(one.params)[0].devices(), 1)
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, many),
            jax.tree.map(np.asarray, one),
            rtol=1e-3,
            atol=1e-5,
        )

    def test_a_run_may_go_on_with_fewer_devices(self):
        expected = train(self.folder / "left_alone", num_epochs=2)
        with (
            mock.patch.object(loop, "progress", tiny_runs.Bar),
            mock.patch.object(tiny_runs.Bar, "signal_at", 7),
            self.assertRaises(signals.Stopped),
        ):
            train(self.folder / "moved", num_epochs=2)
        with mock.patch.object(jax, "local_devices", lambda: jax.devices()[:1]):
            moved = train(self.folder / "moved", num_epochs=2)
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, moved.params),
            jax.tree.map(np.asarray, expected.params),
            rtol=1e-3,
            atol=1e-5,
        )

    @parameterized.named_parameters(
        ("too_large", {"batch_size": 48}, "batch_size=48 is more than the 40"),
        ("odd", {"batch_size": 12}, "batch_size=12 does not divide among 8 devices"),
        ("no_batch", {"batch_size": 0}, "batch_size=0 must be at least 1"),
        ("no_epoch", {"num_epochs": 0}, "num_epochs=0 must"),
        ("never_kept", {"checkpoint_every": 0}, "checkpoint_every=0 must"),
        ("never_measured", {"evaluate_every": 0}, "evaluate_every=0 must"),
    )
    def test_refuses(self, wrong, message):
        with self.assertRaisesRegex(ValueError, message):
            train(self.folder, **wrong)

    def test_a_diverging_loss_ends_the_run_and_keeps_no_broken_state(self):
        explosive = optax.sgd(1e30)

        with self.assertRaisesRegex(
            FloatingPointError, "became (nan|inf) by step 5.*learning_rate"
        ):
            train(self.folder, make_optimizer=lambda _: explosive, perturb=None)
        self.assertIsNone(checkpoints.Checkpoints(self.folder).latest_step)

    def test_checkpoints_of_a_run_that_diverged_leave_room_for_a_corrected_one(self):
        def explosive(_):
            return optax.sgd(lambda step: jnp.where(step < 7, 0.1, 1e30))

        checkpoints.write_description(self.folder, {}, "first")
        with self.assertRaisesRegex(FloatingPointError, "by step 10"):
            train(self.folder, make_optimizer=explosive, perturb=None)
        self.assertEqual(checkpoints.Checkpoints(self.folder).latest_step, 5)
        # The same command diverges again.
        self.assertTrue(checkpoints.check_run(self.folder, "first"))
        checkpoints.write_description(self.folder, {}, "first")
        with self.assertRaisesRegex(FloatingPointError, "by step 10"):
            train(self.folder, make_optimizer=explosive, perturb=None)

        self.assertFalse(checkpoints.check_run(self.folder, "second"))
        checkpoints.write_description(self.folder, {}, "second")
        state = train(self.folder, perturb=None)

        chex.assert_trees_all_equal(state, train(self.folder / "fresh", perturb=None))
        texts = [
            (x / "metrics.jsonl").read_text()
            for x in (self.folder, self.folder / "fresh")
        ]
        self.assertEqual(*texts)
        with self.assertRaisesRegex(checkpoints.CheckpointError, "another training"):
            checkpoints.check_run(self.folder, "first")


if __name__ == "__main__":
    absltest.main()
