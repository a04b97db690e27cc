"""Tests of wsjax.runs.config."""

import copy
import dataclasses
import fnmatch
import math

import chex
import ml_collections
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import models
from wsjax.attacks import registry
from wsjax.certifiers.registry import KINDS
from wsjax.runs import config, experiment, manifest, ranges
from wsjax.training import learned_noise, objectives

LEAST = {
    "data": {"name": "digits"},
    "model": {"name": "conv_small"},
    "smoothing": {"noise": "flow_laplace", "sigma": 0.01, "ground_metric": "l2"},
    "train": {"learning_rate": 0.1, "batch_size": 8, "num_epochs": 1},
    "certify": {"n0": 10, "n": 10, "alpha": 0.05},
}


def least(**blocks):
    """The smallest config there is, with some keys set in some blocks."""
    whole = copy.deepcopy(LEAST)
    for block, values in blocks.items():
        if isinstance(values, dict):
            whole.setdefault(block, {}).update(values)
        else:
            whole[block] = values
    return whole


class ResolveTest(chex.TestCase):
    def test_a_model_with_fewer_classes_than_the_data_is_refused(self):
        given = ml_collections.ConfigDict(least(model={"num_classes": 3}))
        block = config.resolve(given).model
        message = "model.num_classes=3 is fewer than the 4 classes"
        with self.assertRaisesRegex(ValueError, message):
            experiment.make_model(block, 4)
        self.assertEqual(experiment.make_model(block, 2).num_classes, 3)

    def test_fills_in_defaults(self):
        resolved = config.resolve(ml_collections.ConfigDict(LEAST))
        self.assertEqual(resolved.seed, 0)
        self.assertEqual(resolved.data.stride, 1)
        self.assertEqual(resolved.smoothing.theorem, "tight")
        self.assertEqual(resolved.train.momentum, 0.9)
        self.assertFalse(resolved.train.share_noise)
        self.assertEqual(resolved.model.unit, "pixels")
        self.assertEqual(resolved.certify.settings["use_runner_up"], "never")
        self.assertEqual(resolved.certify.settings["backend"], "pmap")
        whole = resolved.plain()
        for block, values in LEAST.items():
            self.assertEqual({**whole[block], **values}, whole[block])

    def test_attack_defaults_are_those_of_the_attack(self):
        for name, method in registry.METHODS.items():
            resolved = config.resolve(least(attack={"method": name}))
            built = experiment.make_attack(resolved)
            metric = resolved.smoothing.ground_metric
            self.assertEqual(built, method.settings(ground_metric=metric))

    def test_attack_metric_is_its_own_where_given(self):
        resolved = config.resolve(least(attack={"flow": {"ground_metric": "l1"}}))
        self.assertEqual(experiment.make_attack(resolved).ground_metric, "l1")

    def test_defaults_of_training_are_those_of_its_parts(self):
        resolved = config.resolve(LEAST)
        built = experiment.make_objective(resolved.train)
        self.assertEqual(built, objectives.CROSS_ENTROPY)
        self.assertEqual(resolved.train.noise_learning_rate, 0.0)
        learned = vars(resolved.smoothing)
        defaults = {
            field.name: field.default
            for kind in (learned_noise.LearnedView, learned_noise.LearnedSpectrum)
            for field in dataclasses.fields(kind)
        }
        for key, name in (
            ("gamma", "gamma"),
            ("waves", "waves"),
            ("bins", "bins"),
            ("couple_channels", "couple"),
            ("wiener", "wiener"),
        ):
            self.assertEqual(learned[key], defaults[name], key)

    def test_keeps_what_is_set(self):
        whole = least(seed=5, attack={"n": 3}, certify={"use_runner_up": "auto"})
        resolved = config.resolve(whole)
        self.assertEqual(resolved.seed, 5)
        self.assertEqual(resolved.attack.n, 3)
        self.assertEqual(resolved.certify.settings["use_runner_up"], "auto")
        self.assertEqual(config.resolve(resolved.plain()).plain(), resolved.plain())

    def test_whole_numbers_serve_as_floats(self):
        resolved = config.resolve(least(smoothing={"sigma": 1}, train={"momentum": 0}))
        for value in (resolved.smoothing.sigma, resolved.train.momentum):
            self.assertIsInstance(value, float)

    def test_fields_of_the_model_pass_through(self):
        resolved = config.resolve(least(model={"widths": (4, 8), "hidden": 16}))
        self.assertEqual(resolved.model.fields, {"widths": (4, 8), "hidden": 16})
        self.assertEqual(resolved.plain()["model"]["hidden"], 16)

    @parameterized.named_parameters(
        (
            "misspelled",
            {"train": {"batchsize": 8}},
            "config.train.batchsize .*batch_si",
        ),
        ("elsewhere", {"certify": {"xyz": 1}}, "config.certify.xyz .*Settings.*alpha"),
        ("block", {"smothing": {}}, "config.smothing .*Did you mean smoothing"),
        (
            "text",
            {"smoothing": {"sigma": "0.1"}},
            "sigma='0.1' is not a number in .0, 100.. It is a standard",
        ),
        ("truth", {"certify": {"n": True}}, "n=True is not a whole number"),
        (
            "runner_up",
            {"certify": {"use_runner_up": True}},
            "use_runner_up=True is not one of .'never'",
        ),
        (
            "scale",
            {"smoothing": {"certificate_scale": "0.1"}},
            "certificate_scale='0.1' is not a number",
        ),
        ("bins", {"smoothing": {"bins": 2.5}}, "bins=2.5 is not 0 or a whole number"),
        (
            "coupling",
            {"smoothing": {"couple_channels": 1}},
            "couple_channels=1 is not True or False",
        ),
        (
            "copies",
            {"train": {"copies": "2"}},
            "copies='2' is not a whole number from 1",
        ),
        ("unit", {"model": {"unit": 1}}, "unit=1 is not one of .'pixels'"),
        (
            "part",
            {"certify": {"n": 10.5}},
            "n=10.5 is not a whole number from 1 to 100,000,000",
        ),
        ("number", {"data": {"name": 3}}, "data.name=3 is not one of .'digits'"),
        ("no_truth", {"train": {"noisy": "False"}}, "noisy='False' is not True"),
        (
            "default",
            {"train": {"momentum": "high"}},
            "momentum='high' is not a number in .0, 1[)]",
        ),
        ("seed", {"seed": 0.5}, "config.seed=0.5 is not a whole number"),
        (
            "seed_below",
            {"seed": -1},
            "config.seed=-1 is not a whole number from 0 to 4,2",
        ),
        (
            "seed_beyond",
            {"seed": 2**32},
            "config.seed=4294967296 is not .* another name",
        ),
        ("no_block", {"train": 3}, "config.train should be a block of settings, got 3"),
    )
    def test_refuses(self, blocks, message):
        with self.assertRaisesRegex(config.ConfigError, message):
            config.resolve(least(**blocks))

    def test_names_every_key_that_is_missing(self):
        for block, values in LEAST.items():
            # Learned noise has no sigma, and certifiers have defaults.
            for key in values.keys() - {"sigma", "n0", "n", "alpha"}:
                whole = copy.deepcopy(LEAST)
                del whole[block][key]
                with self.assertRaisesRegex(
                    config.ConfigError, f"config.{block}.{key} is missing"
                ):
                    config.resolve(whole)
            if block == "certify":
                continue
            whole = copy.deepcopy(LEAST)
            del whole[block]
            with self.assertRaisesRegex(
                config.ConfigError, f"config.{block}.* missing"
            ):
                getattr(config.resolve(whole), block)

    def test_blocks_that_a_script_does_not_need_may_be_left_out(self):
        resolved = config.resolve({"data": {"name": "digits"}})
        self.assertEqual(resolved.plain().keys(), {"seed", "data", "certify", "attack"})
        full = config.with_defaults(
            ml_collections.ConfigDict({"data": {"name": "digits"}})
        )
        self.assertNotIn("train", full)
        self.assertEqual(config.resolve(full).certify, resolved.certify)
        with self.assertRaises(AttributeError):
            resolved.trian  # noqa: B018

    def test_the_size_of_the_noise_is_asked_for_by_the_noise_itself(self):
        whole = copy.deepcopy(LEAST)
        del whole["smoothing"]["sigma"]
        resolved = config.resolve(whole)
        with self.assertRaisesRegex(ValueError, r"sigma=0\.0"):
            experiment.make_smoothing(resolved, (8, 8, 1))
        for noise in learned_noise.LEARNED:
            whole["smoothing"]["noise"] = noise
            resolved = config.resolve(whole)
            with self.assertRaisesRegex(ValueError, r"certificate_scale=0\.0 is not"):
                experiment.make_learned_noise(resolved, np.ones((3, 8, 8, 1)))

    def test_with_defaults_opens_every_setting_to_the_command_line(self):
        bare = ml_collections.ConfigDict(
            least(attack={"n": 3, "flow": {"levels": 7}}, seed=4)
        )
        before = config.resolve(bare)

        full = config.with_defaults(bare)

        self.assertIs(full, bare)
        self.assertEqual(config.resolve(full).plain(), before.plain())
        for block, values in before.plain().items():
            if isinstance(values, dict):
                self.assertContainsSubset(values, full[block].keys())
        # As an override on the command line would.
        full.update_from_flattened_dict({"data.train_limit": 9, "certify.n": 7})
        resolved = config.resolve(full)
        self.assertEqual(resolved.data.train_limit, 9)
        self.assertEqual(resolved.certify.settings["n"], 7)

    def test_with_defaults_leaves_mistakes_to_resolve(self):
        for wrong, message in (
            ({"train": {"batchsize": 8}}, "batchsize is not a setting"),
            ({"train": 3}, "train should be a block of settings, got 3"),
            ({"smothing": {}}, "smothing is not a setting"),
        ):
            full = config.with_defaults(ml_collections.ConfigDict(least(**wrong)))
            with self.assertRaisesRegex(config.ConfigError, message):
                config.resolve(full)
        del full["smothing"], full["train"]["batch_size"]
        with self.assertRaisesRegex(config.ConfigError, "batch_size is missing"):
            config.resolve(config.with_defaults(full))

    def test_true_is_no_number_whenever_it_is_set(self):
        """`ConfigDict` makes 1.0 of True where a float was."""
        full = config.with_defaults(ml_collections.ConfigDict(least(attack={})))
        for key in ("smoothing.sigma", "train.momentum", "attack.flow.step_size"):
            before = config.resolve(full).plain()
            for value in (True, False):
                with self.assertRaisesRegex(TypeError, f"is a number, {value} is none"):
                    full.update_from_flattened_dict({key: value})
            self.assertEqual(config.resolve(full).plain(), before)
        full.update_from_flattened_dict({"smoothing.sigma": 1})
        self.assertEqual(config.resolve(full).smoothing.sigma, 1.0)
        with self.assertRaisesRegex(
            config.ConfigError, "consistency=True is not a num"
        ):
            config.resolve(least(train={**LEAST["train"], "consistency": True}))

    def test_plain_takes_the_seed_and_the_blocks(self):
        resolved = config.resolve(least(seed=5))
        whole = resolved.plain()
        self.assertEqual(
            resolved.plain("data", "model"),
            {"seed": 5, "data": whole["data"], "model": whole["model"]},
        )

    def test_the_certifier_is_the_one_whose_setting_is_set(self):
        for certify, kind in (
            ({}, "votes"),
            ({"share_draws": 8, "use_runner_up": "auto"}, "votes"),
            ({"at_radii": (0.1,), "use_runner_up": "auto", "groups": 2}, "at_radii"),
            ({"max_radius_loss": 0.1, "use_runner_up": "auto"}, "pilot"),
            ({"method": "pilot"}, "pilot"),
        ):
            block = config.resolve(least(certify=certify)).certify
            self.assertEqual(block.method, kind)
            # Only its own settings are kept, and so recorded.
            self.assertEqual(block.settings.keys(), KINDS[kind].settings().keys())
            for key, value in certify.items():
                if key in block.settings:
                    self.assertEqual(block.settings[key], value)

    @parameterized.parameters(
        ({"at_radii": (0.1,), "max_radius_loss": 0.1}, "max_radius_loss=0.1 .*set it"),
        ({"at_radii": (0.1,), "share_draws": 2}, "share_draws=2 means nothing"),
        ({"method": "votes", "at_radii": (0.1,)}, "at_radii=.* means nothing to"),
        ({"first_look": 7}, "first_look=7 means nothing to .*method='votes'"),
        ({"method": "vote"}, "method='vote' is not one of .*'votes'"),
    )
    def test_settings_of_other_certifiers_are_refused(self, certify, message):
        with self.assertRaisesRegex(config.ConfigError, message):
            config.resolve(least(certify=certify))

    def test_kinds_that_share_a_setting_share_its_default(self):
        found = {}
        for kind in KINDS.values():
            for key, default in kind.settings().items():
                self.assertEqual(found.setdefault(key, default), default, key)

    @parameterized.parameters(
        ({"stride": 0}, "data.stride=0 is not a whole number from 1"),
        ({"limit": -1}, "data.limit=-1 is not a whole number from 0 .* all images"),
        ({"start": -2}, "data.start=-2 is not a whole number from 0"),
    )
    def test_choices_of_images_that_mean_nothing(self, data, message):
        with self.assertRaisesRegex(config.ConfigError, message):
            config.resolve(least(data={"name": "digits", **data}))

    def test_chooses_every_stride_th_image(self):
        def chosen(**data):
            block = config.resolve(least(data={"name": "digits", **data})).data
            return list(block.chosen(10))

        self.assertEqual(chosen(), list(range(10)))
        self.assertEqual(chosen(stride=3, start=1), [1, 4, 7])
        self.assertEqual(chosen(stride=3, start=1, limit=2), [1, 4])
        with self.assertRaisesRegex(config.ConfigError, "start=10 is more than 9"):
            chosen(start=10)

    def test_pick_hands_over_what_a_function_asks_for(self):
        block = config.resolve(LEAST).train

        def ask(batch_size, momentum=0, other="x"):
            return batch_size, momentum, other

        self.assertEqual(config.pick(ask, block), (8, 0.9, "x"))
        self.assertEqual(config.pick(ask, block, {"other": 1}, momentum=2), (8, 2, 1))

    def test_suggest_names_the_closest_or_all(self):
        known = ("sigma", "noise")
        self.assertEqual(config.suggest("sigm", known), " Did you mean sigma?")
        self.assertEqual(config.suggest("q", known), " Settings there: sigma, noise.")


def settings():
    """Key and default of every setting there is; fields of models by model."""
    yield "seed", 0
    for block, defaults in config._BLOCKS.items():
        for key, default in manifest.flat(defaults).items():
            yield f"{block}.{key}", default
    for name in models.NAMES:
        module = models.create(name, 10)
        for field in dataclasses.fields(module):
            if field.name not in ("parent", "name", "num_classes", "unit"):
                yield f"model.{name}.{field.name}", getattr(module, field.name)


SETTINGS = dict(settings())
NONSENSE = (
    *("", "abc", -1, 0, math.nan, math.inf, -math.inf, 10**9, 1e9, None, True),
    *((), (1, 2), (1, "x"), (-1,), (math.nan,), {}, "1", 0.5),
)
# What of these is sense, by the text of it.
SENSE = {
    "''": "data.dir|model.checkpoint|certify.method|attack.*.ground_metric",
    "'abc'": "data.dir|model.checkpoint",
    "'1'": "data.dir|model.checkpoint",
    "-1": "smoothing.gamma",
    "0": "seed|data.start|data.limit|data.train_limit|smoothing.sigma|"
    "smoothing.certificate_scale|smoothing.gamma|smoothing.bins|train.consistency|train.mixing|"
    "train.label_smoothing|train.adam_learning_rate|"
    "train.attack_radius|train.ball_radius|train.ball_warmup|train.radius|"
    "train.temperature|train.noise_learning_rate|train.potential_learning_rate|"
    "train.bias_learning_rate|train.momentum|train.weight_decay|certify.groups|certify.block_size|"
    "certify.beta|certify.max_radius_loss|certify.softness|attack.pictures|"
    "attack.flow.radius|attack.flow.neighbours|attack.flow.levels|"
    "attack.capacity.epsilon_growth|attack.capacity.slack",
    "inf": "certify.softness",
    # Of these a data set says whether it has so many.
    "1000000000": "seed|data.stride|data.start|data.limit|data.train_limit|"
    "train.checkpoint_every|train.evaluate_every|certify.softness",
    "1000000000.0": "certify.softness",
    "None": "model.num_classes|model.resnet*.dtype|model.whitened.dtype",
    "True": "smoothing.wrap|smoothing.couple_channels|smoothing.wiener|smoothing.exact|"
    "train.noisy|train.share_noise|certify.local|attack.flow.targeted|attack.sinkhorn.clamp|"
    "attack.sinkhorn.abstention_counts|attack.dual.clamp_loss|attack.dual.early_stop|"
    "model.resnet*.bottleneck",
    "()": "certify.at_radii|model.potentials.widths",
    "(1, 2)": "certify.at_radii|attack.dual.epsilons|model.*.widths|"
    "model.potentials.groups|model.resnet*.stages|model.resnet*.mean|model.resnet*.std",
    "(-1,)": "model.resnet*.mean",
    "0.5": "train.label_smoothing|train.adam_learning_rate|smoothing.sigma|"
    "smoothing.certificate_scale|smoothing.gamma|"
    "train.consistency|train.mixing|train.attack_radius|train.ball_radius|"
    "train.ball_warmup|"
    "train.radius|train.temperature|train.noise_learning_rate|"
    "train.potential_learning_rate|train.bias_learning_rate|train.learning_rate|"
    "train.momentum|train.weight_decay|certify.max_radius_loss|certify.softness|"
    "attack.flow.radius|attack.flow.step_size|attack.flow.start_radius|"
    "attack.sinkhorn.step_size|attack.sinkhorn.epsilon|attack.sinkhorn.power|"
    "attack.sinkhorn.regularization|attack.sinkhorn.tolerance|"
    "attack.capacity.step_size|attack.capacity.epsilon|attack.capacity.epsilon_growth|"
    "attack.capacity.regularization|attack.capacity.tolerance|attack.capacity.slack|"
    "attack.capacity.mass_tolerance|attack.dual.step_size|attack.dual.gamma",
}


def with_setting(key, value):
    """The smallest config with one setting of `SETTINGS`."""
    if key == "seed":
        return least(seed=value)
    block, *inner, name = key.split(".")
    if not inner:
        return least(**{block: {name: value}})
    if block == "model":
        return least(model={"name": inner[0], name: value})
    return least(**{block: {inner[0]: {name: value}}})


def as_written(key):
    """The key in a config, where fields of models do not name them."""
    block, *inner = key.split(".")
    return f"model.{inner[-1]}" if block == "model" else key


class RangesTest(parameterized.TestCase):
    def test_every_setting_has_a_range_and_every_range_a_setting(self):
        for key, default in SETTINGS.items():
            allowed = ranges.range_of(key)
            self.assertIsNotNone(allowed, key)
            if default is not dataclasses.MISSING:
                allowed.read(key, default)
        for key in ranges.RANGES:
            self.assertNotEmpty(fnmatch.filter(SETTINGS, key), key)

    @parameterized.parameters(*((value,) for value in NONSENSE))
    def test_nonsense_is_refused_by_key_value_and_range(self, value):
        sense = SENSE.get(repr(value), "").split("|")
        for key in SETTINGS:
            whole = with_setting(key, value)
            if any(fnmatch.fnmatchcase(key, name) for name in sense):
                try:
                    config.resolve(whole)
                except config.ConfigError as error:
                    # It means nothing beside others.
                    self.assertIn("means nothing to", str(error), key)
                continue
            words = str(ranges.range_of(key).words)
            with self.assertRaises(config.ConfigError, msg=(key, value)) as caught:
                config.resolve(whole)
            self.assertStartsWith(
                str(caught.exception),
                f"config.{as_written(key)}={value!r} is not {words}.",
            )

    def test_settings_of_ones_own_go_by_the_type_of_their_default(self):
        for default, wrong in ((1, 1.5), (1.5, "a"), (True, 1), ("a", 1), ((), 1)):
            allowed = ranges.range_of("attack.mine.setting", default)
            self.assertEqual(allowed.read("key", default), default)
            with self.assertRaisesRegex(ValueError, f"key={wrong!r} is not "):
                allowed.read("key", wrong)
        self.assertIsNone(ranges.range_of("model.mine.field"))


if __name__ == "__main__":
    absltest.main()
