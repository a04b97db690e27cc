"""Tests of wsjax.attacks.victims and wsjax.attacks.growing: who is asked, and when."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import tiny_runs
from absl.testing import absltest, parameterized

from wsjax import ABSTAIN, FixedVotes, make_smoothing
from wsjax.attacks import (
    FlowAttack,
    SinkhornAttack,
    Victim,
    flow_attack,
    growing,
    sinkhorn_attack,
    smoothed,
    victims,
)
from wsjax.certifiers.at_radii import FIRST_LOOK

SHAPE = (4, 5, 1)
SMOOTHING = make_smoothing("flow_laplace", 0.05, "l2")
VOTES = {"n": 100, "alpha": 0.05}


def brightest_row(images):
    """Logits: the mass of each row; not numbers where they add up to 40."""
    logits = images.sum((2, 3))
    return jnp.where(logits.sum(1) > 40, jnp.nan, logits.T).T


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 0.9, (count, *SHAPE)).astype(np.float32)


def split(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


class AskTest(chex.TestCase):
    @parameterized.parameters(1, 3, 7, 20)
    def test_a_plain_classifier_answers_by_its_largest_logit(self, batch_size):
        images = pictures(7)
        answers = Victim(brightest_row).ask(None, images, batch_size=batch_size)
        np.testing.assert_array_equal(answers, images.sum((2, 3)).argmax(1))

    def test_only_those_asked_answer(self):
        images, where = pictures(5), np.array([1, 0, 0, 1, 0], bool)
        right = images.sum((2, 3)).argmax(1)
        images[1] *= 9  # Nobody asks about its logits.
        asked = []

        def answer(keys, images):
            asked.extend(jax.random.key_data(keys).tolist())
            return np.asarray(images).sum((2, 3)).argmax(1)

        keys = split(5)
        for victim in (Victim(brightest_row), Victim(brightest_row, answer=answer)):
            found = victim.ask(keys, images, batch_size=2, where=where)
            np.testing.assert_array_equal(found, np.where(where, right, ABSTAIN))
        self.assertEqual(asked, jax.random.key_data(keys)[where].tolist())
        nobody = np.zeros(5, bool)
        found = victim.ask(keys, images, batch_size=2, where=nobody)
        np.testing.assert_array_equal(found, ABSTAIN)

    def test_images_with_broken_logits_are_named(self):
        images = pictures(5)
        images[[1, 4]] *= 9
        with self.assertRaisesRegex(ValueError, r"NaN or inf on images \[1, 4\]") as e:
            Victim(brightest_row).ask(None, images, batch_size=2)
        np.testing.assert_array_equal(e.exception.rows, [1, 4])

    def test_a_smoothed_classifier_answers_by_votes_under_the_given_keys(self):
        # From too close to call to clear.
        images, keys = np.full((16, *SHAPE), 0.5, np.float32), split(16)
        images[:, 1, 1, 0] += np.linspace(0, 6, 16)
        victim = smoothed(brightest_row, SMOOTHING, n=300, alpha=0.01)
        calm, hasty = (
            victim.ask(keys, images, batch_size=2, max_votes=votes)
            for votes in (None, 200)
        )
        lax = []
        for place, (key, image) in enumerate(zip(keys, images)):

            def voted(n, alpha, look=None, key=key, image=image):
                voters = FixedVotes(brightest_row, SMOOTHING, n=n, alpha=alpha)
                return next(voters.predict_each([image], [key], look)).label

            self.assertEqual(calm[place], voted(300, 0.01, FIRST_LOOK))
            self.assertEqual(hasty[place], voted(200, 1e-4, FIRST_LOOK))
            lax.append(voted(200, 0.01, FIRST_LOOK))
        self.assertEqual({*calm, *hasty}, {ABSTAIN, 1})
        # Asked often, early answers are at a stricter level.
        self.assertTrue((hasty != lax).any())

    def test_a_clear_answer_takes_few_votes_and_a_close_one_all(self):
        used, ask = [], FixedVotes.predict_each

        def recorded(*args, **options):
            found = list(ask(*args, **options))
            used.extend(int(each.votes.sum()) for each in found)
            return found

        close = np.full(SHAPE, 0.5, np.float32)
        clear = close.copy()
        clear[1, 1, 0] += 6
        victim = smoothed(brightest_row, SMOOTHING, n=3_000, alpha=0.01)
        with mock.patch.object(FixedVotes, "predict_each", recorded):
            victim.ask(split(2), np.stack([clear, close]), batch_size=2)
        self.assertEqual(used, [FIRST_LOOK, 3_000])

    @parameterized.product(
        attack=(flow_attack, sinkhorn_attack), label=(-1, 4, 2**31 - 1)
    )
    def test_labels_that_are_no_classes_are_refused(self, attack, label):
        images, labels = pictures(3), np.array([0, label, label])
        for victim in (brightest_row, smoothed(brightest_row, SMOOTHING, **VOTES)):
            with self.assertRaisesRegex(
                ValueError, rf"Image 1 has the label {label}, .* 4 classes, 0 to 3 \(2"
            ):
                attack(images, labels, victim, key=jax.random.key(0))

    @parameterized.parameters(
        (lambda images: None, r"nothing \(None\)"),
        (lambda images: (brightest_row(images), 1), "a tuple"),
        (lambda images: brightest_row(images).argmax(1), r"int32 of shape \(1,\)"),
        (lambda images: brightest_row(images).astype(int), "int32. It"),
    )
    def test_what_returns_no_logits_is_refused(self, classify, message):
        for attack in (flow_attack, sinkhorn_attack):
            with self.assertRaisesRegex(ValueError, message):
                attack(pictures(1), np.zeros(1, int), classify)
        with self.assertRaisesRegex(ValueError, message.replace("(1,", "(2,")):
            Victim(classify).ask(None, pictures(2), batch_size=2)

    def test_wrong_answers(self):
        answers, labels = np.array([0, 1, ABSTAIN]), np.array([0, 0, 0])
        for options, expected in (
            ({}, [0, 1, 0]),
            ({"abstention_counts": True}, [0, 1, 1]),
            ({"targeted": True}, [1, 0, 0]),
        ):
            found = victims.is_wrong(answers, labels, **options)
            np.testing.assert_array_equal(found, np.array(expected, bool))


class DrawsTest(chex.TestCase):
    def test_images_purposes_and_numbers_draw_apart_and_neighbours_do_not_matter(self):
        victim, key = Victim(brightest_row), jax.random.key(3)
        for draws in (
            victims.image_draws(victim, key, 4),
            victims.image_draws(victim, split(4), 4),
        ):
            # Those of the flow attack: two searches, and questions.
            drawn = [
                draws.keys_for(*purpose, number=number)
                for purpose in ((0, 0), (0, 1), (1,))
                for number in (1, np.arange(2, 6))
            ]
            drawn += [draws.keys_for(0, restart) for restart in (0, 1)]
            bits = np.concatenate([jax.random.key_data(keys) for keys in drawn])
            self.assertLen(np.unique(bits, axis=0), len(bits))
            some = draws.pick(np.array([3, 1]))
            chex.assert_trees_all_equal(
                some.keys_for(1, number=np.array([7, 2])),
                draws.keys_for(1, number=np.array([0, 2, 0, 7]))[np.array([3, 1])],
            )

    def test_are_those_of_version_0_2(self):
        fold, key = jax.random.fold_in, jax.random.key(3)
        victim, keys = Victim(brightest_row), split(4)
        shared = victims.image_draws(victim, key, 4).keys_for(1, number=5)
        alone = victims.image_draws(victim, keys, 4).keys_for(1, number=5)
        for place in range(4):
            expected = fold(fold(fold(key, 1), place), 5)
            chex.assert_trees_all_equal(shared[place], expected)
            # Of an attack on this image alone.
            expected = fold(fold(fold(keys[place], 1), 0), 5)
            chex.assert_trees_all_equal(alone[place], expected)

    def test_needs_as_many_keys_as_images_and_one_at_all_where_there_is_chance(self):
        plain = Victim(brightest_row)
        victims.image_draws(plain, None, 2)
        with self.assertRaisesRegex(ValueError, r"shape \(3,\); pass one key, or one"):
            victims.image_draws(plain, split(3), 2)
        for victim in (
            dataclasses.replace(plain, answer=lambda keys, images: [0, 0]),
            dataclasses.replace(plain, perturb=SMOOTHING.perturb),
        ):
            with self.assertRaisesRegex(ValueError, "is random: pass key="):
                victims.image_draws(victim, None, 2)


@jax.jit
def brighten(slots, turn):
    """Adds the radius to every pixel."""
    moved = slots.points + turn.radii[:, None, None, None]
    return slots._replace(points=moved)


class GrowTest(chex.TestCase):
    def grow(self, victim, images, labels, **options):
        arguments = {
            "key": jax.random.key(0),
            "begin": lambda centers: np.zeros(len(centers), np.int32),
            "step": brighten,
            "radius": lambda steps: 0.01 * (1 + steps),
            "max_steps": 6,
            "batch_size": 3,
        }
        return growing.grow(images, labels, victim, **{**arguments, **options})

    def case(self):
        """Dark images, and a victim that errs above a level of its own for each."""
        images = np.full((7, *SHAPE), 0.1, np.float32) + np.arange(7)[
            :, None, None, None
        ] * np.float32(1e-4)
        # One step more than six, and the first would be wrong.
        limits = np.array([0.35, 0.115, 0.135, 0.2, 0.105, 0.135, 0.0])

        def answer(keys, points):
            points = np.asarray(points)[:, 0, 0, 0]
            # The image is told by its last digits, which steps of .01 keep.
            which = np.rint(points * 1e4).astype(int) % 100
            return (points > limits[which]).astype(int)

        return images, np.zeros(7, int), answer

    @parameterized.parameters(1, 2, 3, 7, 10)
    def test_each_image_stops_at_its_first_wrong_answer(self, batch_size):
        images, labels, answer = self.case()
        # Steps of .01, .02, .03, ... add up to .01, .03, .06, .10, .15, .21.
        result = self.grow(
            Victim(brightest_row, answer=answer), images, labels, batch_size=batch_size
        )
        np.testing.assert_array_equal(result.steps, [6, 2, 3, 4, 1, 3, 0])
        expected = [np.inf, 0.02, 0.03, 0.04, 0.01, 0.03, 0.0]
        np.testing.assert_allclose(result.epsilon, expected)
        np.testing.assert_array_equal(result.success, [0, 1, 1, 1, 1, 1, 1])
        np.testing.assert_array_equal(result.verified, result.success)
        moved = (result.adversarial - images)[:, 0, 0, 0]
        np.testing.assert_allclose(
            moved, [0.21, 0.03, 0.06, 0.1, 0.01, 0.06, 0], atol=1e-6
        )

    def test_answers_count_when_they_are_asked_for(self):
        images, labels, answer = self.case()
        victim = Victim(brightest_row, answer=answer)
        every_third = {"asks": lambda steps: steps % 3 == 0}
        result = self.grow(victim, images, labels, **every_third)
        np.testing.assert_array_equal(result.steps, [6, 3, 3, 6, 3, 3, 0])
        np.testing.assert_array_equal(result.success, [0, 1, 1, 1, 1, 1, 1])
        # Nobody takes the place of the first, which goes on to be moved.
        some = [0, 1, 3]
        result = self.grow(
            victim, images[some], labels[some], batch_size=2, **every_third
        )
        np.testing.assert_array_equal(result.success, [0, 1, 1])

    def test_images_whose_logits_break_on_the_way_are_named(self):
        images = pictures(5)
        images[3] = images[3] / 100 + 0.98
        labels = images.sum((2, 3)).argmax(1)
        with self.assertRaisesRegex(ValueError, r"NaN or inf on images \[3\]"):
            self.grow(
                Victim(brightest_row),
                images,
                labels,
                radius=lambda t: 1.1 + 0 * t,
                max_steps=1,
                batch_size=2,
            )

    def test_no_question_is_asked_twice_under_one_key(self):
        images, labels, answer = self.case()
        seen = []

        def recording(keys, points):
            seen.extend(map(tuple, jax.random.key_data(keys).tolist()))
            return answer(keys, points)

        for key in (jax.random.key(0), split(7)):
            seen.clear()
            victim = Victim(brightest_row, answer=recording)
            result = self.grow(victim, images, labels, key=key)
            # Before, after each step, and to verify.
            wanted = 7 + result.steps.sum() + result.success.sum()
            self.assertLen(seen, wanted)
            self.assertLen(set(seen), wanted)


class FreshDrawsTest(chex.TestCase):
    """Steps and answers never share noise, nor do two steps or two searches."""

    @parameterized.named_parameters(
        ("sinkhorn", sinkhorn_attack, SinkhornAttack(max_steps=3, num_samples=2), 3),
        ("flow", flow_attack, FlowAttack(max_steps=3, num_samples=2, restarts=2), 6),
    )
    def test_noise_is_drawn_once(self, attack, settings, searches):
        images, labels = pictures(2), np.zeros(2, int)
        stepped, asked = [], []

        def perturb(key, image):
            jax.debug.callback(
                lambda bits: stepped.append(tuple(np.ravel(bits).tolist())),
                jax.random.key_data(key),
            )
            return image

        def answer(keys, points):
            for key in keys:  # As votes are drawn under it.
                draws = jax.random.key_data(jax.random.split(key, 2))
                asked.extend(map(tuple, draws.tolist()))
            return np.zeros(len(points), int)

        victim = Victim(brightest_row, perturb, answer)
        settings = dataclasses.replace(settings, batch_size=4)
        attack(images, labels, victim, key=jax.random.key(1), settings=settings)
        jax.effects_barrier()

        # Some programs call back for noise that they do not use.
        self.assertLen(set(stepped), 2 * 2 * searches)
        self.assertEmpty(set(stepped) & set(asked))
        self.assertLen(set(asked), len(asked))


ADDED = """
import json, pathlib, sys
import numpy as np
from wsjax.attacks import registry
from toy import Toy, toy_attack
registry.METHODS["toy"] = registry.Method(toy_attack, Toy, "swaps two rows", True)

from wsjax.attacks import Victim
from wsjax.runs import attack_report, config, experiment
from wsjax.runs.rows import read_rows
from wsjax.scripts import attack as script

folder = pathlib.Path(sys.argv[1])
given = {
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "smoothing": {"noise": "flow_laplace", "sigma": 0.01, "ground_metric": "l1"},
    "train": {"learning_rate": 0.1, "batch_size": 16, "num_epochs": 1},
    "certify": {"n0": 50, "n": 400, "alpha": 0.05},
    "attack": {"method": "toy", "toy": {"row": 1}},
}
resolved = config.resolve(given)
settings = experiment.make_attack(resolved)
method = registry.get_method("toy")
assert attack_report.chosen_targets("both", method) == ("base", "smoothed")


class Examples(list):
    def checked(self, index):
        return self[index]


images = np.random.default_rng(0).uniform(0.1, 0.9, (5, 4, 5, 1)).astype(np.float32)
rows = images.sum((2, 3))
examples = Examples(zip(images, rows.argmax(1).tolist()))
victim = Victim(lambda points: points.sum((2, 3)))
case = attack_report.Attacked("toy", "base")
script.attack(
    folder, case, "run", lambda *a, **k: method.run(*a, victim=victim, settings=settings, **k),
    victim, examples, range(5), seed=0, group_size=2,
)
found = read_rows(folder / case.rows)
expected = (rows.argmax(1) == 0) | (rows.argmax(1) == settings.row)
print(json.dumps([found.ints("verified").tolist(), expected.astype(int).tolist()]))
print(settings.ground_metric)
"""

TOY = '''
"""Swaps the first row with another."""
import dataclasses
import json
import pathlib
import numpy as np
from wsjax.attacks.growing import AttackResult


@dataclasses.dataclass(frozen=True)
class Toy:
    ground_metric: str = "l2"
    row: int = 3
    batch_size: int = 4


def toy_attack(images, labels, victim, *, key=None, settings=Toy()):
    moved = images.copy()
    moved[:, [0, settings.row]] = moved[:, [settings.row, 0]]
    wrong = victim.ask(key, moved, batch_size=settings.batch_size) != labels
    one = np.ones(len(images), int)
    return AttackResult(moved, wrong, np.where(wrong, 1.0, np.inf), one, wrong)
'''


class RegistryTest(chex.TestCase):
    def test_a_new_attack_is_one_file_and_one_line(self):
        folder = self.enter_context(tempfile.TemporaryDirectory())
        pathlib.Path(folder, "toy.py").write_text(TOY)
        env = tiny_runs.environment()
        env["PYTHONPATH"] += f":{folder}"
        done = subprocess.run(
            [sys.executable, "-c", ADDED, folder],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        *_, line, metric = done.stdout.splitlines()
        actual, expected = json.loads(line)
        self.assertEqual(actual, expected)
        self.assertIn(1, actual)
        self.assertIn(0, actual)
        self.assertEqual(metric, "l1")  # That of the smoothing.


if __name__ == "__main__":
    absltest.main()
