"""Tests of wsjax.runs.config."""

import copy
import dataclasses

import chex
import ml_collections
import numpy as np
from absl.testing import absltest, parameterized

from wsjax.attacks import registry
from wsjax.runs import config, experiment
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
    def test_fills_in_defaults(self):
        resolved = config.resolve(ml_collections.ConfigDict(LEAST))
        self.assertEqual(resolved["seed"], 0)
        self.assertEqual(resolved["data"]["stride"], 1)
        self.assertEqual(resolved["smoothing"]["certificate"], "tight")
        self.assertEqual(resolved["train"]["momentum"], 0.9)
        self.assertFalse(resolved["train"]["share_noise"])
        self.assertEqual(resolved["model"]["unit"], "pixels")
        self.assertEqual(resolved["certify"]["use_runner_up"], "never")
        self.assertEqual(resolved["certify"]["backend"], "pmap")
        for block, values in LEAST.items():
            self.assertEqual({**resolved[block], **values}, resolved[block])

    def test_attack_defaults_are_those_of_the_attack(self):
        for name, method in registry.METHODS.items():
            resolved = config.resolve(least(attack={"method": name}))
            built = experiment.make_attack(resolved)
            metric = resolved["smoothing"]["ground_metric"]
            self.assertEqual(built, method.settings(ground_metric=metric))

    def test_attack_metric_is_its_own_where_given(self):
        resolved = config.resolve(least(attack={"flow": {"ground_metric": "l1"}}))
        self.assertEqual(experiment.make_attack(resolved).ground_metric, "l1")
        unknown = config.resolve(least(attack={"method": "fast"}))
        with self.assertRaisesRegex(ValueError, "attack.method='fast' .*'flow'"):
            experiment.make_attack(unknown)

    def test_defaults_of_training_are_those_of_its_parts(self):
        resolved = config.resolve(LEAST)
        built = experiment.make_objective(resolved["train"])
        self.assertEqual(built, objectives.CROSS_ENTROPY)
        self.assertEqual(resolved["train"]["noise_learning_rate"], 0.0)
        learned = resolved["smoothing"]
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
        self.assertEqual(resolved["seed"], 5)
        self.assertEqual(resolved["attack"]["n"], 3)
        self.assertEqual(resolved["certify"]["use_runner_up"], "auto")
        self.assertEqual(config.resolve(resolved), resolved)

    def test_whole_numbers_serve_as_floats(self):
        resolved = config.resolve(least(smoothing={"sigma": 1}, train={"momentum": 0}))
        for value in (resolved["smoothing"]["sigma"], resolved["train"]["momentum"]):
            self.assertIsInstance(value, float)

    def test_fields_of_the_model_pass_through(self):
        resolved = config.resolve(least(model={"widths": (4, 8), "hidden": 16}))
        self.assertEqual(resolved["model"]["widths"], (4, 8))
        self.assertEqual(resolved["model"]["hidden"], 16)

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
            "sigma='0.1' should be of type float",
        ),
        ("truth", {"certify": {"n": True}}, "n=True should be of type int"),
        (
            "runner_up",
            {"certify": {"use_runner_up": True}},
            "use_runner_up=True should be of type str",
        ),
        (
            "scale",
            {"smoothing": {"certificate_scale": "0.1"}},
            "certificate_scale='0.1' should be of type float",
        ),
        ("bins", {"smoothing": {"bins": 2.5}}, "bins=2.5 should be of type int"),
        (
            "coupling",
            {"smoothing": {"couple_channels": 1}},
            "couple_channels=1 should be of type bool",
        ),
        ("copies", {"train": {"copies": "2"}}, "copies='2' should be of type int"),
        ("unit", {"model": {"unit": 1}}, "unit=1 should be of type str"),
        ("part", {"certify": {"n": 10.5}}, "n=10.5 should be of type int"),
        ("number", {"data": {"name": 3}}, "data.name=3 should be of type str"),
        ("no_truth", {"train": {"noisy": "False"}}, "noisy='False' .*type bool"),
        ("default", {"train": {"momentum": "high"}}, "momentum='high' .*type float"),
        ("seed", {"seed": 0.5}, "config.seed=0.5 should be of type int"),
        ("no_block", {"train": 3}, "config.train should be a block of settings, got 3"),
    )
    def test_refuses(self, blocks, message):
        with self.assertRaisesRegex(config.ConfigError, message):
            config.resolve(least(**blocks))

    def test_names_every_key_that_is_missing(self):
        for block, values in LEAST.items():
            for key in values.keys() - {"sigma"}:  # Learned noise has none.
                whole = copy.deepcopy(LEAST)
                del whole[block][key]
                with self.assertRaisesRegex(
                    config.ConfigError, f"config.{block}.{key} is missing"
                ):
                    config.resolve(whole)
            whole = copy.deepcopy(LEAST)
            del whole[block]
            with self.assertRaisesRegex(
                config.ConfigError, f"config.{block}.* missing"
            ):
                config.resolve(whole)

    def test_the_size_of_the_noise_is_asked_for_by_the_noise_itself(self):
        whole = copy.deepcopy(LEAST)
        del whole["smoothing"]["sigma"]
        resolved = config.resolve(whole)
        with self.assertRaisesRegex(ValueError, r"sigma=0\.0"):
            experiment.make_smoothing(resolved, (8, 8, 1))
        for noise in experiment.LEARNED:
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
        self.assertEqual(config.resolve(full), before)
        for block, values in before.items():
            if isinstance(values, dict):
                self.assertContainsSubset(values, full[block].keys())
        # As an override on the command line would.
        full.update_from_flattened_dict({"data.train_limit": 9, "certify.n": 7})
        resolved = config.resolve(full)
        self.assertEqual(resolved["data"]["train_limit"], 9)
        self.assertEqual(resolved["certify"]["n"], 7)

    def test_with_defaults_leaves_mistakes_to_resolve(self):
        for wrong, message in (
            ({"train": {"batchsize": 8}}, "batchsize is not a setting"),
            ({"smothing": {}}, "smothing is not a setting"),
        ):
            full = config.with_defaults(ml_collections.ConfigDict(least(**wrong)))
            with self.assertRaisesRegex(config.ConfigError, message):
                config.resolve(full)
        del full["smothing"], full["certify"]["n"]
        with self.assertRaisesRegex(config.ConfigError, "certify.n is missing"):
            config.resolve(config.with_defaults(full))

    def test_select_takes_the_seed_and_the_blocks(self):
        resolved = config.resolve(least(seed=5))
        self.assertEqual(
            config.select(resolved, "data", "model"),
            {"seed": 5, "data": resolved["data"], "model": resolved["model"]},
        )

    def test_ways_to_spend_fewer_votes_are_recorded_where_they_are_on(self):
        off = {"n0", "n", "alpha", "use_runner_up", "block_size", "backend", "groups"}
        for certify, more in (
            ({}, ()),
            ({"first_look": 7, "beta": 0.2}, ()),
            ({"at_radii": (0.1,)}, ("at_radii", "first_look", "beta")),
            ({"max_radius_loss": 0.1}, ("max_radius_loss",)),
            ({"share_draws": 8}, ("share_draws",)),
        ):
            resolved = config.resolve(least(certify=certify))
            selected = config.select(resolved, "certify")["certify"]
            self.assertEqual(selected.keys(), off | set(more))
            self.assertEqual(resolved["certify"], {**resolved["certify"], **selected})

    def test_suggest_names_the_closest_or_all(self):
        known = ("sigma", "noise")
        self.assertEqual(config.suggest("sigm", known), " Did you mean sigma?")
        self.assertEqual(config.suggest("q", known), " Settings there: sigma, noise.")


if __name__ == "__main__":
    absltest.main()
