"""Tests of networks on potentials in training: outputs, start, projection, freezing."""

import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_runs
from absl.testing import absltest, parameterized
from safetensors import safe_open
from safetensors.numpy import save_file

from wsjax import potentials, transport
from wsjax.attacks import victims
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.models import PotentialNet, create
from wsjax.runs import artefact, config
from wsjax.runs.examples import Examples
from wsjax.runs.rows import read_rows
from wsjax.training import checkpoints, objectives, optimizers, steps

CLASSES, SHAPE = 4, (6, 5, 2)
EACH_HEAD = parameterized.product(head=("scores", "pairs"), metric=("l1", "l2"))


def random_images(seed, count=12):
    rng = np.random.default_rng(seed)
    found = rng.uniform(size=(count, *SHAPE)) ** 3
    return (found / found.sum((1, 2), keepdims=True)).astype(np.float32)


@functools.cache
def network(head="pairs", metric="l2"):
    """A module and parameters that are steeper and larger than allowed."""
    module = PotentialNet(
        CLASSES, 16, (8,), (4, 2), head=head, ground_metric=metric, spread=3
    )
    params = module.init(jax.random.key(0), jnp.ones((1, *SHAPE)))["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    leaves = [x + rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return module, jax.tree.unflatten(tree, leaves)


class PotentialNetTest(parameterized.TestCase):
    @EACH_HEAD
    def test_frozen_scores_are_those_of_training_but_for_rounding(self, head, metric):
        module, params = network(head, metric)
        frozen, images = module.frozen(params, 20), random_images(2)
        scores = module.apply({"params": params}, images)
        self.assertEqual(scores.shape, (12, CLASSES))
        # Near slopes are larger than slopes by as much as `STRETCH`.
        atol = 1e-4 if metric == "l1" else 0.2
        np.testing.assert_allclose(frozen.scores(images), scores, atol=atol)

    @EACH_HEAD
    def test_scores_of_training_move_no_faster_than_mass(self, head, metric):
        module, params = network(head, metric)
        images = random_images(3)
        scores = module.apply({"params": params}, images)
        leads = module.apply({"params": params}, images, method="leads")
        for one, other in zip(range(11), range(1, 12), strict=True):
            distance = transport.exact_distance(images[one], images[other], metric)
            for found in (scores, leads):
                change = jnp.abs(found[one] - found[other]).max()
                self.assertLessEqual(change, distance * (1 + 1e-4))

    @EACH_HEAD
    def test_leads_are_what_is_certified_or_less(self, head, metric):
        module, params = network(head, metric)
        images, labels = random_images(4), np.arange(12) % CLASSES
        variables = {"params": params}
        leads = module.apply(variables, images, method="leads")
        np.testing.assert_allclose(leads, -np.swapaxes(leads, 1, 2), atol=1e-6)
        state = steps.TrainState(0, params, {}, None, {})
        measure = steps.make_eval_step(module, None, scale=1.0)
        radii = measure(state, jax.random.key(0), images, labels)
        own = np.where(np.eye(CLASSES)[labels], np.inf, leads[np.arange(12), labels])
        if head == "scores":
            np.testing.assert_allclose(radii, own.min(1), rtol=1e-5, atol=1e-6)
        self.assertTrue((radii >= own.min(1) - 1e-6).all())
        answers = objectives.Objective("radius", radius=1.0, temperature=1.0).answers
        scores = module.apply(variables, images)
        np.testing.assert_array_equal(answers(leads[None])[0], scores.argmax(1))

    def test_a_start_has_potentials_and_the_mean_image(self):
        for start in ("pairs", "waves"):
            module = network()[0].clone(start=start)
            params, images = network()[1], random_images(5) * 7
            started = module.started(params, images, np.arange(12) % 2, seed=3)
            weights = np.asarray(started["potentials"])
            self.assertTrue((potentials.slopes(weights, "l2") <= 1 + 1e-6).all())
            self.assertGreater(np.median(potentials.slopes(weights, "l2")), 0.3)
            mean = (images / images.sum((1, 2, 3), keepdims=True)).mean(0)
            np.testing.assert_allclose(started["mean"], mean, atol=1e-6)

    def test_projection_brings_rows_into_the_ball_and_flattens_potentials(self):
        module, params = network()
        moved = module.projected(params)
        for name in ("rows_0", "rows_1"):
            self.assertLessEqual(np.abs(moved[name]).sum(1).max(), 1 + 1e-5)
        before, after = (
            potentials.near_slopes(x["potentials"], "l2") for x in (params, moved)
        )
        self.assertTrue((after < 0.9 * before).all())
        np.testing.assert_array_equal(moved["bias_0"], params["bias_0"])

    @parameterized.parameters(
        ({"groups": (4,)}, "has to name 2 numbers"),
        ({"groups": (3, 2)}, "multiples of model.groups"),
        ({"head": "one"}, "model.head='one' is not one of"),
        ({"start": "noise"}, "model.start='noise' is not one of"),
        ({"spread": 0}, "model.spread=0"),
        ({"ground_metric": "l3"}, "l3"),
    )
    def test_settings_are_checked(self, wrong, message):
        options = {"potentials": 16, "widths": (8,), "groups": (4, 2), **wrong}
        module = create("potentials", CLASSES, **options)
        with self.assertRaisesRegex(ValueError, message):
            module.init(jax.random.key(0), jnp.ones((1, *SHAPE)))


class RadiusTest(parameterized.TestCase):
    def test_loss_is_the_cross_entropy_of_what_radii_fall_short_by(self):
        objective = objectives.Objective("radius", radius=0.3, temperature=0.1)
        leads = np.random.default_rng(0).normal(size=(2, 5, 3, 3)).astype(np.float32)
        labels = np.array([0, 2, 1, 1, 0])
        expected = []
        for copy in range(2):
            for image, label in enumerate(labels):
                short = [
                    (0.3 - leads[copy, image, label, j]) / 0.1
                    for j in range(3)
                    if j != label
                ]
                expected.append(np.log(1 + np.exp(short).sum()))
        np.testing.assert_allclose(
            objective.loss(leads, labels), np.mean(expected), rtol=1e-5
        )

    @parameterized.parameters({"radius": 0.0}, {"temperature": 0.0})
    def test_needs_a_radius_and_a_temperature(self, **wrong):
        with self.assertRaisesRegex(ValueError, "above zero, both in pixels"):
            objectives.Objective(
                "radius", **{"radius": 0.2, "temperature": 0.1, **wrong}
            )

    def test_updates_end_where_the_projection_takes_them(self):
        optimizer = optimizers.make_optimizer(
            optimizer="sgd",
            learning_rate=0.1,
            momentum=0.0,
            total_steps=3,
            rates={"potentials": 0.5},
            project=lambda params: jax.tree.map(lambda x: jnp.minimum(x, 1.0), params),
        )
        params = {"potentials": jnp.array([0.0, 0.9]), "rows_0": jnp.array([0.0, 0.99])}
        gradients = jax.tree.map(lambda x: -jnp.ones_like(x), params)
        changes, _ = optimizer.update(gradients, optimizer.init(params), params)
        after = optax.apply_updates(params, changes)
        np.testing.assert_allclose(after["potentials"], [0.5, 1.0], rtol=1e-6)
        np.testing.assert_allclose(after["rows_0"], [0.1, 1.0], rtol=1e-6)


class FileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = pathlib.Path(folder, "net.safetensors")
        self.network = network()[0].frozen(network()[1])
        artefact.save_network(self.path, self.network, {"data": "mnist"}, {})

    def edited(self, edit):
        """The file with other arrays or text."""
        with safe_open(self.path, framework="numpy") as file:
            text = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text.pop("sha256", None)
        edit(arrays, text)
        save_file(arrays, self.path, text)
        return self.path

    def test_gives_back_the_same_network(self):
        found = artefact.load_network(self.path, {"data": "mnist"})
        images = random_images(6)
        np.testing.assert_array_equal(found.scores(images), self.network.scores(images))

    def test_a_slope_that_is_one_unit_too_steep_is_refused(self):
        def steps_of(rise):
            def edit(arrays, _):
                arrays["potentials"] = arrays["potentials"].astype(np.int32)
                arrays["potentials"][..., 5] = rise * np.arange(6)[:, None, None]

            return edit

        artefact.load_network(self.edited(steps_of(1024)))
        with self.assertRaisesRegex(
            checkpoints.CheckpointError, "Potential 5 rises by 1025 units"
        ):
            artefact.load_network(self.edited(steps_of(1025)))

    def test_rows_that_are_one_unit_too_long_are_refused(self):
        def longer(arrays, text):
            del text
            units = arrays["rows_1"]
            units[2] = 0
            units[2, :2] = 2**14, 2**14 + 1

        with self.assertRaisesRegex(checkpoints.CheckpointError, "Row 2 of the last"):
            artefact.load_network(self.edited(longer))

    @parameterized.parameters(
        (lambda arrays, _: arrays.pop("rows_1"), "rows_1"),
        (lambda _, text: text.update(format="wsjax classifier 1"), "its format is"),
        (lambda _, text: text.update(network="{}"), "exponents"),
        (lambda a, _: a.update(offsets=a["offsets"] * np.nan), "NaN"),
        (lambda a, _: a.update(bias_0=a["bias_0"][:3]), "bias"),
    )
    def test_damage_is_named(self, edit, message):
        with self.assertRaisesRegex(checkpoints.CheckpointError, message):
            artefact.load_network(self.edited(edit))

    def test_another_data_set_is_refused(self):
        with self.assertRaisesRegex(checkpoints.CheckpointError, "data"):
            artefact.load_network(self.path, {"data": "fashion_mnist"})


CONFIG = '''
"""A tiny run of potentials on digits."""
import ml_collections


def get_config():
    return ml_collections.ConfigDict({
        "seed": 7,
        "data": {"name": "digits", "source": "files", "dir": "", "limit": 24},
        "model": {
            "name": "potentials", "potentials": 16, "widths": (8,), "groups": (4, 2),
            "checkpoint": "",
        },
        "train": {
            "objective": "radius", "radius": 0.1, "temperature": 0.02,
            "optimizer": "adam", "learning_rate": 0.02, "potential_learning_rate": 0.1,
            "bias_learning_rate": 0.01,
            "schedule": "one_cycle", "batch_size": 64, "num_epochs": 2,
        },
        "certify": {"method": "lipschitz"},
        "attack": {"method": "flow", "target": "base", "flow": {"max_steps": 60}},
    })
'''


class ScriptsTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        config = pathlib.Path(folder, "tiny.py")
        config.write_text(CONFIG)
        cls.folder = pathlib.Path(folder)
        cls.common = (f"--config={config}", f"--workdir={folder}/run")
        cls.results = tiny_runs.run_each(
            [
                (script, *cls.common)
                for script in ("train.py", "certify.py", "attack.py")
            ]
        )
        cls.done = cls.folder / "run"

    def test_scripts_end_well(self):
        for code, out, err in self.results:
            self.assertEqual(code, 0, out + err)

    def test_rows_are_what_the_stored_network_certifies(self):
        rows = read_rows(self.done / "certificates.tsv")
        self.assertEqual(
            list(rows.columns)[:5], ["idx", "label", "predict", "radius", "correct"]
        )
        self.assertLen(rows, 24)
        net = artefact.load_network(self.done / "classifier.safetensors")
        images, labels = Examples(
            config.resolve({"data": {"name": "digits"}, "model": {"name": "mlp"}}).data,
            "test",
        ).checked(3)
        certificate = LipschitzScores(net).certify(images)
        self.assertEqual(rows.ints("label")[3], labels)
        self.assertEqual(rows.ints("predict")[3], certificate.label)
        self.assertAlmostEqual(rows.floats("radius")[3], certificate.radius, places=12)
        self.assertEqual(net.groups, (4, 2))
        self.assertGreater(rows.floats("radius").max(), 0.02)

    def test_metrics_tell_the_radius(self):
        lines = (self.done / "metrics.jsonl").read_text().splitlines()
        last = [json.loads(x) for x in lines if "epoch" in x][-1]
        self.assertIn("median_radius", last)
        self.assertGreater(last["noisy_accuracy"], 0.3)

    def test_the_attack_stays_outside_and_gaps_are_told(self):
        code, out, err = self.results[2]
        self.assertEqual(code, 0, err)
        self.assertIn("No success of flow inside a certified radius", out)
        gaps = read_rows(self.done / "gaps_flow_base.tsv")
        self.assertNotEmpty(gaps.ints("idx"))
        self.assertTrue((gaps.floats("distance") >= gaps.floats("radius")).all())

    def test_mistakes_end_with_one_line(self):
        common = (*self.common[:1], f"--workdir={self.folder}/other")
        cases = {
            "use 'radius'": (
                "train.py",
                *common,
                "--config.train.objective=cross_entropy",
            ),
            "There is no ": ("certify.py", *common),
            "model.groups": ("train.py", *common, "--config.model.groups=(5,2)"),
        }
        results = tiny_runs.run_each(list(cases.values()))
        for message, (code, _, err) in zip(cases, results, strict=True):
            self.assertNotEqual(code, 0)
            self.assertIn(message, err)
            self.assertNotIn("Traceback", err)


class VictimTest(absltest.TestCase):
    def test_answers_are_those_that_are_certified(self):
        net = network()[0].frozen(network()[1])
        images = random_images(8)
        victim = victims.scored(net)
        found = victim.answer(None, images)
        np.testing.assert_array_equal(found, net.scores(images).argmax(1))


if __name__ == "__main__":
    absltest.main()
