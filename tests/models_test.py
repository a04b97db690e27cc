"""Tests of wsjax.models."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import make_key, models, votes
from wsjax.noise import FlowLaplace

# Small networks of every kind: a stem of each sort, strides, shortcuts, bottlenecks.
SMALL = {
    "conv_small": {"widths": (3, 5), "hidden": 7},
    "mlp": {"widths": (6, 5)},
    "potentials": {"potentials": 8, "widths": (4,), "groups": (4, 2)},
    "resnet18_cifar": {"width": 4, "stages": (2, 1)},
    "resnet8_strided": {"width": 4},
    "resnet18": {"width": 4, "stages": (1, 2)},
    "resnet50": {"width": 3, "stages": (2, 1)},
    "whitened": {"widths": (4, 6)},
}
EACH_MODEL = parameterized.named_parameters((name, name) for name in models.NAMES)
# Potentials look at the distribution of mass alone.
EACH_WITH_UNIT = parameterized.named_parameters(
    (name, name) for name in models.NAMES if name != "potentials"
)
EACH_RESNET = parameterized.named_parameters(
    (name, name) for name in models.NAMES if name.startswith("resnet")
)
EACH_KIND_OF_BLOCK = parameterized.named_parameters(
    (name, name) for name in ("resnet18_cifar", "resnet50")
)


def small(name, num_classes=4, **options):
    return models.create(name, num_classes, **{**SMALL[name], **options})


def some_images(shape=(2, 9, 6, 3), seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


def random_variables(module, images, seed=0):
    """Variables of which each has an effect; kernels have both signs."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.2 - (x.ndim > 1), 0.9, x.shape)),
        like,
    )


def run(module, variables, images, **options):
    """`module.apply` as one program: op by op, each test would take seconds."""
    return jax.jit(functools.partial(module.apply, **options))(variables, images)


def conv(x, kernel, stride, padding):
    """Correlation of `x [B, H, W, C]`, one output pixel after the other."""
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i, j in np.ndindex(height, width):
        window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
        out[:, i, j] = np.tensordot(window, kernel, 3)
    return out


def plain_conv_small(params, images):
    x = images
    for layer in ("Conv_0", "Conv_1"):
        x = conv(x, params[layer]["kernel"], 2, 1) + params[layer]["bias"]
        x = np.maximum(x, 0)
    x = x.reshape(len(x), -1)
    x = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    return np.maximum(x, 0) @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


def plain_mlp(params, images):
    x = images.reshape(len(images), -1)
    for layer in ("Dense_0", "Dense_1"):
        x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    return x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]


def plain_resnet(variables, images, stages, stem):
    """Logits of a residual network with running statistics, by its definition."""
    params, running = variables["params"], variables["batch_stats"]

    def unit(x, params, running, number, stride=1):
        """A convolution and the normalisation after it."""
        kernel = params[f"Conv_{number}"]["kernel"]
        padding = kernel.shape[0] // 2
        scale, mean = params[f"BatchNorm_{number}"], running[f"BatchNorm_{number}"]
        x = conv(x, kernel, stride, padding) - mean["mean"]
        return x / np.sqrt(mean["var"] + 1e-5) * scale["scale"] + scale["bias"]

    first_stride = {"cifar": 1, "strided": 2, "imagenet": 2}[stem]
    x = np.maximum(unit(images, params, running, 0, first_stride), 0)
    if stem == "imagenet":
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = ((side + 1) // 2 for side in x.shape[1:3])
        x = np.zeros((len(x), height, width, x.shape[-1]))
        for i, j in np.ndindex(height, width):
            x[:, i, j] = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    number = 0
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            own, own_stats = params[f"_Block_{number}"], running[f"_Block_{number}"]
            kernels = len([name for name in own if name.startswith("Conv")])
            sizes = [own[f"Conv_{k}"]["kernel"].shape[0] for k in range(kernels)]
            inner = 3 if sizes[:3] == [1, 3, 1] else 2
            y = x
            for k in range(inner):
                # The 3 x 3 convolution that comes first takes the stride.
                y = unit(y, own, own_stats, k, stride if k == sizes.index(3) else 1)
                y = np.maximum(y, 0) if k + 1 < inner else y
            if kernels > inner:
                x = unit(x, own, own_stats, inner, stride)
            x = np.maximum(x + y, 0)
            number += 1
    dense = params["Dense_0"]
    return x.mean((1, 2)) @ dense["kernel"] + dense["bias"]


class ArchitectureTest(chex.TestCase):
    @parameterized.named_parameters(
        ("conv_small", "conv_small", 10, (28, 28, 1), 166_406),
        ("resnet18_cifar", "resnet18_cifar", 10, (32, 32, 3), 11_173_962),
        ("resnet18", "resnet18", 1000, (224, 224, 3), 11_689_512),
        ("resnet50", "resnet50", 1000, (224, 224, 3), 25_557_032),
    )
    def test_has_the_published_number_of_parameters(self, name, classes, shape, count):
        module = models.create(name, classes)

        variables = jax.eval_shape(
            module.init, jax.random.key(0), jnp.zeros((1, *shape))
        )

        sizes = [math.prod(x.shape) for x in jax.tree.leaves(variables["params"])]
        self.assertEqual(sum(sizes), count)

    @parameterized.named_parameters(
        ("conv_small", "conv_small", plain_conv_small), ("mlp", "mlp", plain_mlp)
    )
    def test_plain_networks_equal_loops(self, name, plain):
        images = some_images((2, 7, 10, 3))
        module = small(name)
        variables = random_variables(module, images)

        actual = run(module, variables, images)

        expected = plain(
            jax.tree.map(np.asarray, variables["params"]), np.asarray(images)
        )
        self.assertEqual(actual.shape, (2, 4))
        chex.assert_trees_all_close(actual, expected, rtol=1e-4)

    @EACH_RESNET
    def test_resnets_equal_loops(self, name):
        images = some_images((2, 13, 10, 3))
        module = small(name)
        variables = random_variables(module, images)

        actual = run(module, variables, images)

        stem = {"resnet18_cifar": "cifar", "resnet8_strided": "strided"}
        expected = plain_resnet(
            jax.tree.map(np.asarray, variables),
            np.asarray(images),
            SMALL[name].get("stages", (1, 1, 1)),
            stem.get(name, "imagenet"),
        )
        chex.assert_trees_all_close(actual, expected, rtol=1e-3)

    def test_small_networks_have_the_sizes_their_fields_say(self):
        units = (28 * 28, 512, 512, 10)
        dense = sum((a + 1) * b for a, b in itertools.pairwise(units))

        def residual(before, width):
            """Three by three twice, and one by one where the shape changes."""
            count = 9 * (before + width) * width + 4 * width
            return count + (before * width + 2 * width) * (before != width)

        strided = 27 * 64 + 2 * 64 + (4 * 64 + 1) * 10
        strided += residual(64, 64) + residual(64, 128) + residual(128, 256)
        for name, shape, count in (
            ("mlp", (28, 28, 1), dense),
            ("resnet8_strided", (32, 32, 3), strided),
        ):
            variables = jax.eval_shape(
                models.create(name, 10).init, jax.random.key(0), jnp.zeros((1, *shape))
            )
            sizes = [math.prod(x.shape) for x in jax.tree.leaves(variables["params"])]
            self.assertEqual(sum(sizes), count, name)

    @EACH_MODEL
    def test_takes_images_that_are_not_square(self, name):
        for shape in ((3, 12, 5, 1), (1, 5, 12, 3)):
            module, images = small(name), jnp.zeros(shape)
            logits, _ = jax.eval_shape(
                module.init_with_output, jax.random.key(0), images
            )
            self.assertEqual(logits.shape, (len(images), 4))

    def test_conv_small_starts_uniform_within_one_over_root_of_fan_in(self):
        init = jax.jit(models.create("conv_small", 10).init)
        params = init(jax.random.key(3), jnp.zeros((1, 28, 28, 1)))["params"]
        fans = {"Conv_0": 16, "Conv_1": 16 * 16, "Dense_0": 49 * 32, "Dense_1": 100}
        for layer, fan_in in fans.items():
            weights = np.ravel(params[layer]["kernel"]) * fan_in**0.5
            biases = np.ravel(params[layer]["bias"]) * fan_in**0.5
            both = np.concatenate([weights, biases])
            self.assertLessEqual(np.abs(both).max(), 1 + 1e-6)
            self.assertGreater(np.abs(weights).max(), 0.95)
            self.assertGreater(np.abs(biases).max(), 0.5)
            self.assertAlmostEqual(weights.std(), 3**-0.5, delta=0.06)
            self.assertLess(abs(weights.mean()), 0.1)

    def test_resnets_start_as_he_et_al(self):
        module = models.create("resnet18_cifar", 4, width=32, stages=(1,))
        params = jax.jit(module.init)(jax.random.key(0), some_images())["params"]
        for number in (0, 1):
            kernel = np.ravel(params["_Block_0"][f"Conv_{number}"]["kernel"])
            self.assertAlmostEqual(kernel.std(), (2 / (9 * 32)) ** 0.5, delta=0.003)
            self.assertAlmostEqual(stats.kurtosis(kernel), 0.0, delta=0.2)


class UnitTest(chex.TestCase):
    @parameterized.parameters("conv_small", "mlp", "resnet18_cifar")
    def test_mass_divides_each_image_by_its_mean_pixel(self, name):
        images = some_images() * jnp.array([0.01, 7.0])[:, None, None, None]
        pixels, mass = small(name), small(name, unit="mass")
        variables = random_variables(pixels, images)
        means = np.array([np.mean(image) for image in np.asarray(images)])
        scaled = images / means[:, None, None, None]

        shown, dimmed = jnp.split(
            run(mass, variables, jnp.concatenate([images, 0.3 * images])), 2
        )

        of_scaled, of_shown, of_dimmed = jnp.split(
            run(pixels, variables, jnp.concatenate([scaled, images, 0.3 * images])), 3
        )
        size = float(jnp.abs(of_scaled).max())
        chex.assert_trees_all_close(shown, of_scaled, atol=1e-5 * size)
        # So an image's own brightness plays no part, and does by default.
        chex.assert_trees_all_close(dimmed, shown, atol=1e-5 * size)
        self.assertGreater(float(jnp.abs(of_dimmed - of_shown).max()), 0.05)

    @EACH_WITH_UNIT
    def test_refuses_another_unit(self, name):
        module, images = small(name, unit="masses"), some_images()
        with self.assertRaisesRegex(ValueError, "unit='masses'.*'pixels', 'mass'"):
            jax.eval_shape(module.init, jax.random.key(0), images)


class StepsTest(chex.TestCase):
    @parameterized.product(
        name=("conv_small", "mlp"),
        unit=("pixels", "mass"),
        # Windows fit or hang over, with one channel and several.
        shape=((3, 12, 8, 1), (3, 12, 8, 3), (3, 10, 12, 1), (3, 9, 11, 3)),
    )
    def test_rest_of_first_is_the_network(self, name, unit, shape):
        module = small(name, unit=unit)
        images = some_images(shape)
        variables = random_variables(module, images)

        features = run(module, variables, images, method="first")
        actual = run(module, variables, features, method="rest")

        expected = run(module, variables, images)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

    def test_one_convolution_alone_has_steps_too(self):
        module = small("conv_small", widths=(3,))
        images = some_images((2, 8, 8, 1))
        variables = random_variables(module, images)

        features = run(module, variables, images, method="first")
        actual = run(module, variables, features, method="rest")

        expected = run(module, variables, images)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

    @parameterized.product(name=("conv_small", "mlp"), unit=("pixels", "mass"))
    def test_first_is_linear(self, name, unit):
        module = small(name, unit=unit)
        images, others = some_images((2, 8, 12, 1)), some_images((2, 8, 12, 1), seed=1)
        variables = random_variables(module, images)
        first = functools.partial(run, module, variables, method="first")

        actual = first(images - 3 * others)

        expected = jax.tree.map(lambda x, y: x - 3 * y, first(images), first(others))
        chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)

    @parameterized.product(name=("conv_small", "mlp"), unit=("pixels", "mass"))
    def test_images_that_share_noise_get_the_votes_of_their_own(self, name, unit):
        module = small(name, unit=unit)
        stack = some_images((3, 12, 8, 1))
        variables = random_variables(module, stack)
        # Without the biases all draws would vote for one class.
        variables = jax.tree.map(lambda x: x - 0.5 * (x.ndim == 1), variables)
        classify = models.classifier(module, variables)
        count = functools.partial(
            votes.count_votes, make_key(0), classify=classify, n=400
        )
        law = FlowLaplace(0.05)

        actual = count(stack, perturb=votes.Addition(law))

        for row, image in zip(actual, stack, strict=True):
            expected = count(image, perturb=law.perturb)
            # Up to ties within rounding, of which there are hardly any.
            self.assertLessEqual(np.abs(row - expected).sum(), 2)
            self.assertGreater(np.sum(np.asarray(row) > 0), 1)


class StandardisationTest(chex.TestCase):
    @EACH_KIND_OF_BLOCK
    def test_happens_inside_and_after_the_noise(self, name):
        mean, std = (0.3, 0.2, 0.6), (0.5, 2.0, 0.25)
        inside, outside = small(name, mean=mean, std=std), small(name)
        image = some_images()[0]
        noisy = jax.jit(FlowLaplace(0.05).perturb)(jax.random.key(1), image)
        variables = random_variables(outside, noisy[None])

        actual = run(inside, variables, noisy[None])

        standardised = (noisy - jnp.array(mean)) / jnp.array(std)
        expected = run(outside, variables, standardised[None])
        chex.assert_trees_all_close(actual, expected, rtol=1e-4)
        # The noise keeps the mass of the pixels it is given: those of the image.
        chex.assert_trees_all_close(noisy.sum(), image.sum(), rtol=1e-5)

    def test_one_entry_serves_all_channels(self):
        images = some_images()
        each = small("resnet18_cifar", mean=(0.5,) * 3, std=(0.2,) * 3)
        one = small("resnet18_cifar", mean=(0.5,), std=(0.2,))
        variables = random_variables(one, images)
        chex.assert_trees_all_close(
            run(one, variables, images), run(each, variables, images)
        )


class BatchNormTest(chex.TestCase):
    @EACH_KIND_OF_BLOCK
    def test_running_statistics_move_in_training_only(self, name):
        module, images = small(name), some_images((4, 9, 6, 3))
        variables = random_variables(module, images)

        _, at_rest = run(module, variables, images, mutable=["batch_stats"])
        _, moved = run(module, variables, images, train=True, mutable=["batch_stats"])

        chex.assert_trees_all_equal(at_rest["batch_stats"], variables["batch_stats"])
        unchanged = jax.tree.map(
            lambda a, b: bool(jnp.all(a == b)),
            moved["batch_stats"],
            variables["batch_stats"],
        )
        self.assertFalse(any(jax.tree.leaves(unchanged)))

    def test_a_tenth_of_the_batch_enters_the_running_statistics(self):
        module, images = small("resnet18_cifar"), some_images((4, 9, 6, 3))
        variables = random_variables(module, images)

        _, moved = run(module, variables, images, train=True, mutable=["batch_stats"])

        kernel = np.asarray(variables["params"]["Conv_0"]["kernel"])
        features = conv(np.asarray(images), kernel, 1, 1)
        before = variables["batch_stats"]["BatchNorm_0"]
        expected = {
            "mean": 0.9 * before["mean"] + 0.1 * features.mean((0, 1, 2)),
            "var": 0.9 * before["var"] + 0.1 * features.var((0, 1, 2)),
        }
        actual = moved["batch_stats"]["BatchNorm_0"]
        chex.assert_trees_all_close(actual, expected, rtol=1e-4)

    @EACH_MODEL
    def test_at_test_time_an_answer_does_not_depend_on_the_batch(self, name):
        module, images = small(name), some_images((3, 9, 6, 3))
        variables = random_variables(module, images)
        classify = jax.jit(models.classifier(module, variables))
        others = images.at[1:].multiply(0.3)
        chex.assert_trees_all_equal(classify(images)[0], classify(others)[0])

    @EACH_KIND_OF_BLOCK
    def test_bfloat16_keeps_parameters_and_logits_in_float32(self, name):
        images = some_images()
        module, exact = small(name, dtype="bfloat16"), small(name)
        fresh = jax.eval_shape(module.init, jax.random.key(0), images)
        variables = random_variables(exact, images)

        actual = run(module, variables, images)

        for leaf in (actual, *jax.tree.leaves(fresh)):
            self.assertEqual(leaf.dtype, jnp.float32)
        expected = run(exact, variables, images)
        chex.assert_trees_all_close(actual, expected, rtol=0.1)
        self.assertGreater(float(jnp.abs(actual / expected - 1).max()), 1e-4)


class ClassifierTest(chex.TestCase):
    def test_leaves_are_the_weights(self):
        images = some_images()
        module = small("resnet18_cifar")
        variables = random_variables(module, images)

        classify = models.classifier(module, variables)

        chex.assert_trees_all_equal(
            jax.tree.leaves(classify), jax.tree.leaves(variables)
        )
        chex.assert_trees_all_close(
            classify(images), run(module, variables, images, train=False)
        )

    @EACH_MODEL
    def test_new_weights_need_no_new_compilation(self, name):
        images, traces = some_images(), []

        @jax.jit
        def logits_of(classify, images):
            traces.append(name)
            return classify(images)

        answers = []
        for seed in range(3):
            module = small(name)  # Another object each time, of equal content.
            variables = random_variables(module, images, seed)
            answers.append(logits_of(models.classifier(module, variables), images))

        self.assertLen(traces, 1)
        self.assertGreater(float(jnp.abs(answers[0] - answers[1]).max()), 1e-3)
        self.assertGreater(float(jnp.abs(answers[1] - answers[2]).max()), 1e-3)

    def test_is_equal_for_equal_modules_only(self):
        def function(**options):
            return models.classifier(small("conv_small", **options), {}).func

        self.assertEqual(function(), function())
        self.assertEqual(hash(function()), hash(function()))
        self.assertNotEqual(function(), function(hidden=8))
        self.assertNotEqual(function(), "conv_small")


class CreateTest(chex.TestCase):
    def test_unknown_name_lists_the_known(self):
        with self.assertRaisesRegex(ValueError, "'conv_smal'.*conv_small.*resnet50"):
            models.create("conv_smal", 10)

    def test_unknown_option_lists_the_known(self):
        with self.assertRaisesRegex(ValueError, "'hiden'.*'hidden'.*'widths'"):
            models.create("conv_small", 10, hiden=5)
        with self.assertRaisesRegex(ValueError, "'hidden'.*'mean'"):
            models.create("resnet18", 10, hidden=5)

    def test_takes_lists_and_config_values(self):
        block = ml_collections.ConfigDict({"widths": (3, 5), "hidden": 7})
        expected = small("conv_small")
        for options in (block.to_dict(), {"widths": [3, 5], "hidden": 7}):
            module = models.create("conv_small", 4, **options)
            self.assertEqual(module, expected)
            self.assertEqual(hash(module), hash(expected))


if __name__ == "__main__":
    absltest.main()
