"""Tests of wsjax.votes."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized

from wsjax import gaussian, make_key, noise, votes
from wsjax.votes import as_argument, count_votes, count_votes_each

SHAPE, CLASSES = (2, 3, 2), 4
IMAGE = np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32)


def classify(images):
    """Four of the pixels as logits: no arithmetic, so no batch size matters."""
    return images.reshape(len(images), -1)[:, :CLASSES]


def perturb(key, image):
    return image + jax.random.uniform(key, image.shape, image.dtype, -1.0, 1.0)


def weigh(weights, images):
    return weights * classify(images)


count = functools.partial(count_votes, classify=classify, perturb=perturb)


@functools.partial(jax.jit, static_argnums=(2, 3))
def logits_of(key, draw, classify, perturb, image):
    return classify(perturb(jax.random.fold_in(key, draw), image)[None])[0]


def by_hand(key, draws, classify=classify, perturb=perturb, image=IMAGE):
    def logits(draw):
        return logits_of(key, draw, classify, perturb, image)

    return oracles.votes_one_by_one(logits, draws, CLASSES)


def some_devices(test, number):
    if jax.local_device_count() < number:
        test.skipTest(f"Needs {number} devices; tests/conftest.py makes eight.")
    return jax.local_devices()[:number]


class CountVotesTest(parameterized.TestCase):
    @parameterized.product(devices=(1, 4, 8), backend=votes.BACKENDS)
    def test_equals_a_loop_over_draws_on_any_devices(self, devices, backend):
        devices = some_devices(self, devices)
        key = make_key(1)
        # Fewer draws than blocks and devices, whole blocks, and one draw more.
        for n in (1, 48, 61):
            actual = count(
                key, IMAGE, n=n, block_size=8, devices=devices, backend=backend
            )
            chex.assert_shape(actual, (CLASSES,))
            chex.assert_type(actual, jnp.int32)
            np.testing.assert_array_equal(actual, by_hand(key, range(n)))

    @parameterized.parameters(1, 7, 50, 64)
    def test_blocks_of_any_size_count_the_same(self, block_size):
        key, one_device = make_key(2), jax.local_devices()[:1]

        actual = count(key, IMAGE, n=50, block_size=block_size, devices=one_device)

        np.testing.assert_array_equal(actual, by_hand(key, range(50)))

    def test_blocks_in_any_order_count_the_same(self):
        key, block_size = make_key(3), 8
        blocks = [range(b, min(b + block_size, 45)) for b in range(0, 45, block_size)]

        backwards = sum(by_hand(key, block) for block in reversed(blocks))

        np.testing.assert_array_equal(count(key, IMAGE, n=45, block_size=8), backwards)

    def test_more_draws_only_add_votes(self):
        key = make_key(4)

        few, more = (count(key, IMAGE, n=n, block_size=8) for n in (30, 31))

        np.testing.assert_array_equal(more - few, by_hand(key, [30]))

    @parameterized.parameters(*votes.BACKENDS)
    def test_further_draws_start_where_others_ended(self, backend):
        devices = some_devices(self, 4)
        key = make_key(3)
        for start, n in ((0, 5), (5, 1), (7, 40)):
            actual = count(
                key,
                IMAGE,
                n=n,
                start=start,
                block_size=8,
                devices=devices,
                backend=backend,
            )
            expected = by_hand(key, range(start, start + n))
            np.testing.assert_array_equal(actual, expected)

    @parameterized.product(devices=(1, 4), backend=votes.BACKENDS)
    def test_a_stack_shares_its_noise(self, devices, backend):
        devices = some_devices(self, devices)
        images = np.random.default_rng(1).uniform(size=(3, *SHAPE)).astype(np.float32)
        key = make_key(4)

        together = count(
            key, images, n=45, block_size=16, devices=devices, backend=backend
        )

        expected = [by_hand(key, range(45), image=image) for image in images]
        np.testing.assert_array_equal(together, expected)

    def test_default_devices_are_all_and_other_images_do_not_matter(self):
        key = make_key(5)

        before = count(key, IMAGE, n=40, block_size=8)
        count(make_key(6), 2 * IMAGE, n=40, block_size=8)
        after = count(key, IMAGE, n=40, block_size=8, devices=jax.local_devices())

        np.testing.assert_array_equal(before, after)
        self.assertEqual(before.sum(), 40)

    def test_keys_of_jax_itself_count_the_same(self):
        np.testing.assert_array_equal(
            count(jax.random.key(7), IMAGE, n=40, block_size=8),
            count(make_key(7), IMAGE, n=40, block_size=8),
        )

    def test_keys_decide(self):
        a, b = (count(make_key(seed), IMAGE, n=400, block_size=8) for seed in (8, 9))

        self.assertTrue(np.any(np.asarray(a) != b))

    def test_votes_are_for_shares_of_the_probability(self):
        # Pixel 0 of a black image is the largest of four equal ones a quarter of
        # the time; five standard deviations of the share are 0.0125.
        black = np.zeros(SHAPE, np.float32)

        share = np.asarray(count(make_key(10), black, n=30_000)) / 30_000

        np.testing.assert_allclose(share, 0.25, atol=0.0125)

    @parameterized.parameters(*votes.BACKENDS)
    def test_counts_with_64_bit_types_enabled(self, backend):
        with jax.enable_x64(True):
            key, image = make_key(11), IMAGE.astype(np.float64)
            actual = count(key, image, n=20, block_size=8, backend=backend)
            expected = by_hand(key, range(20), image=image)

        chex.assert_type(actual, np.int32)
        np.testing.assert_array_equal(actual, expected)

    def test_noise_laws_perturb(self):
        law, key = noise.FlowLaplace(0.3), make_key(12)

        actual = count_votes(key, IMAGE, classify, law.perturb, n=20, block_size=8)

        expected = by_hand(key, range(20), perturb=law.perturb)
        np.testing.assert_array_equal(actual, expected)


IMAGES = np.random.default_rng(1).uniform(size=(5, *SHAPE)).astype(np.float32)


class CountVotesEachTest(parameterized.TestCase):
    def keys(self, number=5):
        return [make_key(20 + i) for i in range(number)]

    def count(self, keys, images, **options):
        options = {"n": 45, "block_size": 8, "classify": classify, **options}
        return count_votes_each(keys, images, perturb=perturb, **options)

    def by_hand(self, keys, images, draws, **options):
        return [by_hand(k, draws, image=i, **options) for k, i in zip(keys, images)]

    @parameterized.product(
        groups=(None, 1, 2, 4, 8), images=(1, 5), backend=votes.BACKENDS
    )
    def test_every_layout_equals_a_loop_over_draws(self, groups, images, backend):
        devices, keys = some_devices(self, 8), self.keys(images)
        for start, n in ((0, 45), (3, 1)):
            actual = self.count(
                keys,
                IMAGES[:images],
                n=n,
                start=start,
                devices=devices,
                groups=groups,
                backend=backend,
            )
            chex.assert_shape(actual, (images, CLASSES))
            chex.assert_type(actual, jnp.int32)
            expected = self.by_hand(keys, IMAGES, range(start, start + n))
            np.testing.assert_array_equal(actual, expected)

    @parameterized.parameters(*votes.BACKENDS)
    def test_counts_are_those_of_one_image_at_a_time(self, backend):
        keys = jax.random.split(jax.random.key(3), 5)

        together = self.count(keys, IMAGES, backend=backend)

        for key, image, actual in zip(keys, IMAGES, together):
            np.testing.assert_array_equal(actual, count(key, image, n=45, block_size=8))

    @parameterized.parameters(*votes.BACKENDS)
    def test_counts_with_64_bit_types_enabled(self, backend):
        with jax.enable_x64(True):
            keys, images = self.keys(2), IMAGES[:2].astype(np.float64)
            actual = self.count(keys, images, groups=2, backend=backend)
            expected = self.by_hand(keys, images, range(45))

        chex.assert_type(actual, np.int32)
        np.testing.assert_array_equal(actual, expected)

    @parameterized.parameters(*votes.BACKENDS)
    def test_every_block_is_classified_once(self, backend):
        blocks = []

        def watched(images):
            jax.debug.callback(lambda _: blocks.append(len(images)), images[0, 0, 0, 0])
            return classify(images)

        self.count(
            self.keys(3),
            IMAGES[:3],
            classify=watched,
            devices=some_devices(self, 4),
            groups=2,
            backend=backend,
        ).block_until_ready()
        jax.effects_barrier()

        # 45 draws in blocks of 8; the place of a fourth image stays empty.
        self.assertEqual(blocks, [8] * 3 * 6)

    @parameterized.parameters(*votes.BACKENDS)
    def test_weights_and_keys_may_lie_anywhere(self, backend):
        devices = some_devices(self, 4)
        weights = np.arange(1, CLASSES + 1, dtype=np.float32)
        key, weighted = jax.device_put(
            (make_key(20), jax.tree_util.Partial(weigh, weights)), devices[1]
        )
        settings = {"classify": weighted, "devices": devices, "backend": backend}

        (actual,) = self.count([key], IMAGES[:1], **settings)

        expected = by_hand(
            make_key(20), range(45), lambda images: weights * classify(images),
            image=IMAGES[0],
        )  # fmt: skip
        np.testing.assert_array_equal(actual, expected)

    def test_broken_logits_vote_for_nobody(self):
        def sometimes(images):
            logits = classify(images)
            return jnp.where(logits[:, :1] > 1.0, jnp.nan, logits)

        keys = self.keys(2)
        actual = self.count(keys, IMAGES[:2], classify=sometimes, groups=2)

        expected = self.by_hand(keys, IMAGES, range(45), classify=sometimes)
        np.testing.assert_array_equal(actual, expected)
        self.assertLess(int(np.sum(actual)), 90)

    @parameterized.parameters(*votes.BACKENDS)
    def test_one_program_serves_all_counts_images_and_weights(self, backend):
        def run(weights, images, n, seed):
            weighted = jax.tree_util.Partial(weigh, jnp.asarray(weights))
            return self.count(
                [make_key(seed + i) for i in range(4)],
                images,
                n=n,
                classify=votes.replicate(weighted),
                groups=groups,
                backend=backend,
            )

        ones = np.ones(CLASSES, np.float32)
        groups = len(some_devices(self, 8)) // 2
        first = run(ones, IMAGES[:4], 30, 0)

        with oracles.compilations() as compiled:
            for seed, n in enumerate((30, 1, 500, 8)):
                run(np.float32(seed + 2) * ones, (seed + 1) * IMAGES[:4], n, seed)
            again = run(ones, IMAGES[:4], 30, 0)

        self.assertEmpty(compiled)
        np.testing.assert_array_equal(first, again)

    @parameterized.parameters(
        ({"groups": 3}, "groups=3 does not divide 8 devices"),
        ({"groups": 0}, "groups=0 does not divide"),
        ({"groups": 2.5}, "groups=2.5 does not divide"),
        ({"groups": 16}, "groups=16 does not divide"),
        ({"keys": 4}, r"4 keys and images \(5, 2, 3, 2\)"),
        ({"keys": 0, "images": IMAGES[:0]}, "0 keys"),
        ({"keys": 2, "images": IMAGES[0]}, "do not belong together"),
        ({"n": 0}, "n=0 is not a whole number"),
        ({"backend": "xmap"}, "backend='xmap'"),
        ({"classify": lambda images: images}, r"should return logits \[B, K\]"),
    )
    def test_refuses(self, changed, message):
        options = {
            "keys": 5, "images": IMAGES, "devices": some_devices(self, 8), **changed
        }  # fmt: skip
        with self.assertRaisesRegex(ValueError, message):
            self.count(self.keys(options.pop("keys")), **options)


class ReplicateTest(absltest.TestCase):
    def test_arrays_lie_on_every_device_and_are_copied_once(self):
        devices = some_devices(self, 4)
        partial = jax.tree_util.Partial(weigh, np.arange(CLASSES, dtype=np.float32))

        once = votes.replicate(partial, devices)

        (weights,) = jax.tree.leaves(once)
        self.assertEqual(weights.sharding.device_set, set(devices))
        self.assertTrue(weights.is_fully_replicated)
        np.testing.assert_array_equal(weights, np.arange(CLASSES))
        (again,) = jax.tree.leaves(votes.replicate(once, devices))
        self.assertIs(again, weights)
        (elsewhere,) = jax.tree.leaves(votes.replicate(once, devices[:2]))
        self.assertEqual(elsewhere.sharding.device_set, set(devices[:2]))


def time_of(groups, devices, images, trials, block_size):
    """Rounds until all images are done, by dealing out every block by hand."""
    members, rounds = devices // groups, 0
    queue = list(range(images))
    while queue:
        del queue[:groups]
        for trial in trials:
            dealt = [0] * members
            for number, _ in enumerate(range(0, trial, block_size)):
                dealt[number % members] += 1
            rounds += max(dealt)
    return rounds


class ChooseGroupsTest(parameterized.TestCase):
    @parameterized.product(
        devices=(1, 2, 6, 8, 64), images=(1, 7, 64, 100), n=(100, 10_000)
    )
    def test_takes_the_fewest_groups_that_are_nearly_fastest(self, devices, images, n):
        trials, size = (50, n), 250
        times = {
            groups: time_of(groups, devices, images, trials, size)
            for groups in range(1, devices + 1)
            if devices % groups == 0
        }
        allowed = [g for g, t in times.items() if t <= 1.05 * min(times.values())]

        actual = votes.choose_groups(devices, images, trials, size)

        self.assertEqual(actual, min(allowed))

    @parameterized.parameters(
        (1, 1_000, (1_000, 10_000), 250, 1),
        (8, 1, (1_000, 10_000), 250, 1),  # One image: all devices share its draws.
        (8, 1_000, (100, 400), 500, 8),  # One block per image: one device each.
        (8, 0, (100, 400), 500, 1),  # Nothing left to do.
    )
    def test_examples(self, devices, images, trials, block_size, expected):
        actual = votes.choose_groups(devices, images, trials, block_size)
        self.assertEqual(actual, expected)


class WhoGetsTheVoteTest(parameterized.TestCase):
    def votes_for(self, logits, n=5):
        def constant(images):
            return jnp.tile(jnp.array(logits), (len(images), 1))

        one_device = jax.local_devices()[:1]
        return list(
            count_votes(
                make_key(0), IMAGE, constant, perturb, n=n, block_size=2,
                devices=one_device,
            )
        )  # fmt: skip

    def test_the_largest_logit(self):
        self.assertEqual(self.votes_for([0.0, 3.0, -1.0]), [0, 5, 0])

    def test_the_smallest_class_among_equals(self):
        self.assertEqual(self.votes_for([0.0, 2.0, 2.0]), [0, 5, 0])

    @parameterized.parameters(np.nan, np.inf, -np.inf)
    def test_nobody_where_a_logit_is_no_number(self, broken):
        self.assertEqual(self.votes_for([0.0, broken, 1.0]), [0, 0, 0])

    def test_copies_with_broken_logits_alone_are_left_out(self):
        def sometimes(images):
            logits = classify(images)
            return jnp.where(logits[:, :1] > 1.0, jnp.nan, logits)

        key = make_key(13)
        actual = count_votes(key, IMAGE, sometimes, perturb, n=60, block_size=8)

        expected = by_hand(key, range(60), classify=sometimes)
        np.testing.assert_array_equal(actual, expected)
        self.assertBetween(int(actual.sum()), 1, 59)


class CompilationTest(parameterized.TestCase):
    @parameterized.parameters(*votes.BACKENDS)
    def test_one_program_serves_all_counts_images_and_weights(self, backend):
        def run(weights, image, n, seed):
            weighted = jax.tree_util.Partial(weigh, jnp.asarray(weights))
            return count_votes(
                make_key(seed), image, weighted, perturb, n=n, block_size=8,
                backend=backend,
            )  # fmt: skip

        ones = np.ones(CLASSES, np.float32)
        first = run(ones, IMAGE, 30, 0)

        # So memory, which is the program's, does not grow with the number of draws.
        with oracles.compilations() as compiled:
            for seed, n in enumerate((30, 1, 7_919, 8)):
                run(np.float32(seed + 2) * ones, (seed + 1) * IMAGE, n, seed)
            again = run(ones, IMAGE, 30, 0)

        self.assertEmpty(compiled)
        np.testing.assert_array_equal(first, again)

    def test_the_compilation_counter_counts(self):
        with oracles.compilations() as compiled:
            count(make_key(0), IMAGE[:1], n=3, block_size=8)

        self.assertNotEmpty(compiled)

    def test_a_classifier_kept_by_the_caller_is_traced_for_the_first_image_alone(self):
        # Once for the shape of its logits, once for the program.
        chex.clear_trace_counter()
        kept = as_argument(chex.assert_max_traces(classify, n=2))
        for seed in range(3):
            count_votes(make_key(seed), IMAGE, kept, perturb, n=9 + seed, block_size=8)

    @parameterized.parameters((lambda law: law.perturb,), (votes.Addition,))
    def test_equal_laws_and_those_of_other_arrays_are_not_traced_again(self, make):
        rng = np.random.default_rng(3)
        a, b = (rng.normal(size=(2, *SHAPE)) for _ in range(2))
        for laws in (
            [noise.FlowLaplace(0.3) for _ in range(2)],
            [gaussian.GaussianView(a, b, IMAGE), gaussian.GaussianView(b, a, IMAGE)],
        ):
            chex.clear_trace_counter()
            kept = as_argument(chex.assert_max_traces(classify, n=2))
            settings = {"n": 20, "block_size": 8}
            count_votes(make_key(1), IMAGE, kept, make(laws[0]), **settings)

            with oracles.compilations() as compiled:
                counts = count_votes(
                    make_key(1), IMAGE, kept, make(laws[1]), **settings
                )

            self.assertEmpty(compiled)
            expected = by_hand(make_key(1), range(20), perturb=laws[1].perturb)
            np.testing.assert_array_equal(counts, expected)

    def test_new_weights_count(self):
        def add(weights, images):
            return weights + 0 * classify(images)

        one_hot = np.eye(CLASSES, dtype=np.float32)
        for winner in range(CLASSES):
            favour = jax.tree_util.Partial(add, one_hot[winner])
            won = count_votes(make_key(0), IMAGE, favour, perturb, n=3, block_size=8)
            np.testing.assert_array_equal(won, 3 * one_hot[winner])


class ErrorsTest(parameterized.TestCase):
    @parameterized.product(
        name=("n", "block_size"), value=(0, -1, 2.5, 2**31 - 2**24, 2**40)
    )
    def test_refuses_impossible_sizes(self, name, value):
        sizes = {"n": 10, "block_size": 8, name: value}
        with self.assertRaisesRegex(ValueError, "whole number between 1 and") as caught:
            count(make_key(0), IMAGE, **sizes)
        self.assertIn(f"{name}={value!r}", str(caught.exception))

    @parameterized.parameters(-1, 0.5, 2**31 - 2**24 - 10)
    def test_refuses_impossible_starts(self, start):
        with self.assertRaisesRegex(ValueError, "start="):
            count(make_key(0), IMAGE, n=10, start=start)

    def test_refuses_blocks_beyond_the_reach_of_the_counters(self):
        with self.assertRaisesRegex(ValueError, "use smaller blocks"):
            count(make_key(0), IMAGE, n=10, block_size=2**24 + 1)

    def test_refuses_unknown_backends(self):
        with self.assertRaisesRegex(ValueError, "backend='xmap' is not one of.*pmap"):
            count(make_key(0), IMAGE, n=10, backend="xmap")

    @parameterized.named_parameters(
        ("one_image_at_a_time", lambda images: classify(images)[0]),
        ("labels", lambda images: jnp.argmax(classify(images), axis=-1)),
        ("maps", lambda images: images),
        ("one_class", lambda images: classify(images)[:, :1]),
        ("whole_numbers", lambda images: classify(images).astype(int)),
        ("a_tuple", lambda images: (classify(images), {})),
        ("a_dict", lambda images: {"logits": classify(images)}),
        ("none", lambda images: None),
    )
    def test_refuses_what_are_no_logits(self, classify):
        with self.assertRaisesRegex(ValueError, r"should return logits \[B, K\]"):
            count_votes(make_key(0), IMAGE, classify, perturb, n=10, block_size=8)

    def test_refuses_what_cannot_be_called(self):
        with self.assertRaisesRegex(TypeError, "Expected a callable, got ndarray"):
            count_votes(make_key(0), IMAGE, np.ones(3), perturb, n=10)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Additive noise in steps of 1/4, so that sums in any order are exact."""

    def perturb(self, key, image):
        return self.picture(image) + self.strength(image) * self.added(
            key, image.shape, image.dtype
        )

    def picture(self, image):
        return 2 * image

    def strength(self, image):
        return image[0, 0, 0]

    def added(self, key, image_shape, dtype):
        return jax.random.randint(key, image_shape, -8, 9).astype(dtype) / 4


class Steps:
    """Logits in two steps, of which the first is linear."""

    def __call__(self, weights, images):
        return self.rest(weights, self.first(weights, images))

    def first(self, weights, images):
        flat = images.reshape(len(images), -1)
        return {"some": flat[:, :CLASSES] * weights, "other": flat[:, -1]}

    def rest(self, weights, features):
        return jnp.abs(features["some"]) - features["other"][:, None] ** 2 * weights


class StepsTest(parameterized.TestCase):
    stack = np.random.default_rng(5).integers(1, 9, (3, *SHAPE)).astype(np.float32) / 4
    weights = np.float32([1, 2, -1, 3])

    def classifier(self, steps=Steps):
        return jax.tree_util.Partial(steps(), self.weights)

    @parameterized.product(devices=(1, 4), backend=votes.BACKENDS)
    def test_a_stack_by_its_first_steps_counts_the_same(self, devices, backend):
        devices, key = some_devices(self, devices), make_key(6)
        settings = {"n": 61, "block_size": 24, "devices": devices, "backend": backend}
        perturb, classify = votes.Addition(Grid()), self.classifier()

        actual = count_votes(key, self.stack, classify, perturb, **settings)
        each = count_votes_each([key], self.stack[None], classify, perturb, **settings)

        for row, again, image in zip(actual, each[0], self.stack, strict=True):
            expected = by_hand(key, range(61), classify, perturb, image)
            np.testing.assert_array_equal(row, expected)
            np.testing.assert_array_equal(again, expected)

    @parameterized.parameters((Grid(),), (noise.FlowLaplace(0.1),))
    def test_first_steps_are_made_of_images_and_of_draws_not_of_copies(self, law):
        made = []

        class Watched(Steps):
            def first(self, weights, images):
                made.append(len(images))
                return super().first(weights, images)

        count_votes(
            make_key(0),
            self.stack,
            self.classifier(Watched),
            votes.Addition(law),
            n=20,
            block_size=12,
            devices=jax.local_devices()[:1],
        )

        # Three images and four draws, of which a block has 12 copies. What is traced is
        # what is compiled.
        self.assertSetEqual(set(made), {3, 4})

    @parameterized.named_parameters(
        ("one_image", 0, votes.Addition(Grid())),
        ("noise_whose_parts_are_unknown", slice(0, 2), Grid().perturb),
    )
    def test_whole_copies_are_classified_otherwise(self, images, perturb):
        key, image = make_key(7), self.stack[images]

        def whole(images):
            return self.classifier()(images)

        actual = count_votes(key, image, self.classifier(), perturb, n=30)

        np.testing.assert_array_equal(
            actual, count_votes(key, image, whole, perturb, n=30)
        )

    @parameterized.named_parameters(
        ("ten_bits", lambda x: jax.lax.reduce_precision(x, 8, 10)),
        ("bias", lambda x: x + 0.001),
        ("clipped", lambda x: jnp.maximum(x, -1.0)),
    )
    def test_a_first_step_that_is_not_linear_is_refused(self, spoil):
        class Spoiled(Steps):
            def first(self, weights, images):
                return jax.tree.map(spoil, super().first(weights, images))

        for stack in (self.stack, self.stack[:, :2]):
            with self.assertRaisesRegex(ValueError, "not linear: .* differ by"):
                count_votes(
                    make_key(0),
                    stack,
                    self.classifier(Spoiled),
                    votes.Addition(noise.FlowLaplace(0.1)),
                    n=20,
                )

    def test_first_steps_are_computed_in_full_precision_and_tried_once(self):
        seen = []

        class Watched(Steps):
            def first(self, weights, images):
                seen.append(jax.config.jax_default_matmul_precision)
                return super().first(weights, images)

        classify, perturb = self.classifier(Watched), votes.Addition(Grid())
        for _ in range(2):
            count_votes(make_key(0), self.stack, classify, perturb, n=20)
            self.assertSetEqual(set(seen), {"highest"})
            traced = len(seen)
        self.assertLen(seen, traced)

    def test_logits_that_are_no_numbers_win_no_votes(self):
        stack = np.stack([self.stack[0], self.stack[1] * np.float32(np.nan)])

        counts = count_votes(
            make_key(0), stack, self.classifier(), votes.Addition(Grid()), n=20
        )

        self.assertEqual(counts[0].sum(), 20)
        self.assertEqual(counts[1].sum(), 0)

    def test_equal_noise_shares_programs(self):
        self.assertEqual(votes.Addition(Grid()), votes.Addition(Grid()))
        self.assertEqual(hash(votes.Addition(Grid())), hash(votes.Addition(Grid())))


class AsArgumentTest(absltest.TestCase):
    def test_partials_pass_with_their_arrays_as_leaves(self):
        partial = jax.tree_util.Partial(weigh, np.ones(3))

        self.assertIs(as_argument(partial), partial)
        self.assertLen(jax.tree.leaves(as_argument(partial)), 1)

    def test_other_callables_have_no_leaves(self):
        wrapped = as_argument(classify)

        self.assertEmpty(jax.tree.leaves(wrapped))
        images = np.ones((2, *SHAPE))
        np.testing.assert_array_equal(wrapped(images), classify(images))

    def test_pytrees_and_their_methods_pass_with_their_arrays_as_leaves(self):
        ramp, key = np.ones((2, *SHAPE), np.float32), make_key(0)
        law = gaussian.GaussianView(ramp, ramp, IMAGE)
        copy = jax.jit(lambda perturb: perturb(key, IMAGE))
        expected = copy(jax.tree_util.Partial(law.perturb))
        for make in (
            lambda law: law.perturb,
            votes.Addition,
            lambda law: votes.Addition(law).__call__,
        ):
            a, b = (
                as_argument(make(gaussian.GaussianView(size * ramp, ramp, IMAGE)))
                for size in (1, 2)
            )
            self.assertLen(jax.tree.leaves(a), 3)
            self.assertEqual(jax.tree.structure(a), jax.tree.structure(b))
            np.testing.assert_allclose(copy(a), expected, rtol=1e-5)

    def test_methods_of_other_objects_are_fixed(self):
        for function in (Grid().perturb, votes.Addition(Grid()), Steps().rest):
            self.assertEmpty(jax.tree.leaves(as_argument(function)))
            self.assertIs(as_argument(function).func, function)

    def test_wrapping_twice_gives_equal_static_parts(self):
        a, b = (jax.tree.structure(as_argument(classify)) for _ in range(2))

        self.assertEqual(a, b)
        self.assertEqual(hash(a), hash(b))


if __name__ == "__main__":
    absltest.main()
