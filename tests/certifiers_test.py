"""What certifiers of every kind promise: rows that read back, settings, programs."""

import dataclasses
import inspect
import pathlib
import tempfile
import types

import jax
import numpy as np
import oracles
from absl.testing import absltest, parameterized

import wsjax
from wsjax import (
    ABSTAIN,
    ColouredGaussian,
    Counting,
    GaussianView,
    certificates,
    gaussian_smoothing,
    make_key,
    make_smoothing,
    scores,
    spectrum,
)
from wsjax.certifiers import registry
from wsjax.certifiers.base import Certificate, Certifier, Prediction
from wsjax.certifiers.votes import VoteCertifier, prediction_from_votes
from wsjax.runs import report
from wsjax.runs.rows import RowWriter, read_rows

SHAPE = (1, 4, 1)
ONE_DEVICE = Counting(block_size=20, devices=tuple(jax.local_devices()[:1]))
SIZES = {"n0": 40, "n": 200, "alpha": 0.05, "counting": ONE_DEVICE}
CLASSES = 3
EACH_KIND = parameterized.named_parameters((name, name) for name in registry.KINDS)
VOTING = ("votes", "at_radii", "pilot")
EACH_VOTING = parameterized.named_parameters((name, name) for name in VOTING)


def classify(images):
    """Three of the pixels as logits: near one another, and far."""
    return 30 * images.reshape(len(images), -1)[:, :CLASSES]


def make(kind, smoothing, classify=classify, **options):
    more = {
        "votes": {"use_runner_up": "auto"},
        "at_radii": {"radii": (0.001, 0.01, 0.05), "first_look": 20},
        "pilot": {"use_runner_up": "auto", "max_radius_loss": 0.2},
    }[kind]
    return registry.get_kind(kind)(classify, smoothing, **(SIZES | more | options))


IMAGES = [
    np.array(pixels, np.float32).reshape(SHAPE)
    for pixels in (
        (1, 0, 0, 1), (0, 1, 0, 1), (0.4, 0.3, 0.3, 1), (0.5, 0.5, 0, 0),
        (0.3, 0.3, 0.4, 0), (0.2, 0.3, 0.5, 0.2), (0.4, 0.41, 0, 0.2), (0, 0, 1, 0),
    )
]  # fmt: skip


def certify_all(certifier):
    keys = jax.random.split(make_key(0), len(IMAGES))
    return list(certifier.certify_each(IMAGES, keys))


class RowsTest(parameterized.TestCase):
    """From certificates to rows on file and back."""

    def read_back(self, certifier, found):
        """Outcomes of rows that were written and read, and their shared columns."""
        folder = self.enter_context(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder) / certifier.rows_file
        columns = report.columns(certifier)
        with RowWriter(path, columns, "run") as writer:
            for index, result in enumerate(found):
                cells = certifier.cells(result)
                self.assertEqual(set(cells), set(certifier.columns))
                row = report.certificate_row(index, 1, result, certifier, 0.5)
                writer.write(**row)
        rows = read_rows(path)
        self.assertEqual(tuple(rows.columns), columns)
        bounds = dict.fromkeys(("lower", "upper", "lipschitz"), "float")
        arrays = rows.arrays({**report.SHARED, **bounds, **certifier.columns}, CLASSES)
        return type(certifier).outcomes(arrays, certifier.recorded()), arrays

    @parameterized.product(
        kind=VOTING,
        noise=("flow_laplace", "flow_uniform", "laplacian_gaussian"),
        metric=("l1", "l2"),
    )
    def test_rows_give_back_what_was_found(self, kind, noise, metric):
        certifier = make(kind, make_smoothing(noise, 0.05, metric, image_shape=SHAPE))
        found = certify_all(certifier)

        (own, *others), arrays = self.read_back(certifier, found)
        if noise == "flow_laplace" and kind != "at_radii":
            # Under both theorems, that of the paper first, as in tables.
            own, others = others[0], [own]
            self.assertEqual((own.theorem, others[0].theorem), ("tight", "published"))
        self.assertEqual(len(others), noise == "flow_laplace" and kind != "at_radii")

        np.testing.assert_array_equal(own.labels, [c.label for c in found])
        np.testing.assert_array_equal(own.radii, [c.radius for c in found])
        np.testing.assert_array_equal(own.votes, [c.evidence.votes for c in found])
        drawn = [
            c.evidence.selection_votes.sum() + c.evidence.votes.sum() for c in found
        ]
        np.testing.assert_array_equal(own.passes, drawn)
        if kind == "at_radii":
            self.assertEqual(own.most_passes, 240)
            answers = own.labels
        else:
            answers = [
                prediction_from_votes(c.evidence.votes, 0.05).label for c in found
            ]
        np.testing.assert_array_equal(own.predictions, answers)
        # Something of everything.
        self.assertIn(ABSTAIN, own.labels)
        self.assertGreater(len(set(own.radii)), 2)
        # What is on file certifies the radius beside it.
        certified = own.labels != ABSTAIN
        most = scores.certified_radius(
            *(arrays[name][certified] for name in ("lower", "upper", "lipschitz"))
        )
        self.assertTrue((most >= own.radii[certified]).all())
        if kind != "at_radii":
            np.testing.assert_array_equal(most, own.radii[certified])

    @parameterized.product(kind=("votes", "pilot"), certificate=("tight", "published"))
    def test_laplace_votes_serve_both_theorems(self, kind, certificate):
        smoothing = make_smoothing("flow_laplace", 0.05, "l2", certificate)
        found = certify_all(make(kind, smoothing, use_runner_up="never"))

        outcomes, _ = self.read_back(
            make(kind, smoothing, use_runner_up="never"), found
        )

        p = np.array([c.evidence.p_lower for c in found])
        theorems = {
            "tight": certificates.flow_laplace(0.05, "l2"),
            "published": certificates.flow_laplace_published(0.05, "l2"),
        }
        self.assertEqual({o.theorem for o in outcomes}, set(theorems))
        for outcome in outcomes:
            np.testing.assert_array_equal(
                outcome.radii, theorems[outcome.theorem].radius(p)
            )
            if outcome.theorem == certificate:
                np.testing.assert_array_equal(outcome.radii, [c.radius for c in found])

    def test_radii_that_nobody_asked_about_are_refused(self):
        certifier = make("at_radii", make_smoothing("flow_laplace", 0.05, "l1"))
        found = certify_all(certifier)
        found[0] = found[0]._replace(radius=0.002)
        with self.assertRaisesRegex(ValueError, "not one of the run's"):
            self.read_back(certifier, found)


class BoundsTest(parameterized.TestCase):
    """The three numbers of a certificate: what its radius is made of."""

    @EACH_VOTING
    def test_they_are_scores_of_the_evidence(self, kind):
        smoothing = make_smoothing("laplacian_gaussian", 0.05, "l2", image_shape=SHAPE)
        theorem = smoothing.scores
        for result in certify_all(make(kind, smoothing)):
            self.assertIsInstance(result, Certificate)
            self.assertEqual(result.lipschitz, 2.0)
            self.assertEqual(result.label == ABSTAIN, result.radius == 0)
            self.assertIn(result.label, (ABSTAIN, result.selected))
            self.assertEqual(result.selected, result.evidence.selection_votes.argmax())
            bounds = (result.lower, result.upper)
            if kind == "at_radii":
                if result.label == ABSTAIN:
                    self.assertEqual(bounds, (-np.inf, np.inf))
                else:
                    p = theorem.probability_for(result.radius)
                    self.assertEqual(bounds, theorem.bounds(p))
            else:
                evidence = result.evidence
                self.assertEqual(
                    bounds, theorem.bounds(evidence.p_lower, evidence.runner_up)
                )


class ProgramsTest(parameterized.TestCase):
    """Equal settings share a program: nothing is traced again."""

    def smoothings(self, name):
        """Two that are equal and not the same."""
        if name == "coloured":
            power = spectrum.power_law(SHAPE, 0.1, 1.5)
            return [
                gaussian_smoothing(
                    ColouredGaussian(spectrum.square_root(power.copy())), SHAPE, "l1"
                )
                for _ in range(2)
            ]
        if name == "view":
            features = np.random.default_rng(0).normal(size=(3, *SHAPE))
            mean = np.full(SHAPE, 0.25)
            return [
                gaussian_smoothing(
                    GaussianView(features.copy(), features.copy(), mean.copy()),
                    SHAPE,
                    "l1",
                )
                for _ in range(2)
            ]
        return [make_smoothing(name, 0.1, "l1", image_shape=SHAPE) for _ in range(2)]

    @parameterized.product(
        kind=VOTING, name=("flow_laplace", "laplacian_gaussian", "coloured", "view")
    )
    def test_an_equal_certifier_traces_nothing(self, kind, name):
        traces = []

        def counting(images):
            traces.append(images.shape)
            return classify(images)

        first, second = self.smoothings(name)
        self.assertIsNot(first.noise, second.noise)
        self.assertEqual(first, second)
        key = make_key(0)
        one = make(kind, first, counting)
        one.certify(IMAGES[0], key)
        one.predict(IMAGES[0], key)
        self.assertNotEmpty(traces)
        traces.clear()

        with oracles.compilations() as compiled:
            other = make(kind, second, counting)
            other.certify(IMAGES[1], key)
            other.predict(IMAGES[1], key)

        # Looked at once, to see that it is what it was (`wsjax.fixed`).
        self.assertEqual(traces, [(4, *SHAPE)])
        self.assertEmpty(compiled)


class EveryKindTest(parameterized.TestCase):
    @EACH_KIND
    def test_is_a_frozen_dataclass_with_its_fields_in_words(self, name):
        kind = registry.get_kind(name)
        self.assertTrue(issubclass(kind, Certifier))
        self.assertFalse(inspect.isabstract(kind))
        described = " ".join(inspect.getdoc(each) or "" for each in kind.__mro__[:-1])
        for field in dataclasses.fields(kind):
            self.assertIn(f"{field.name}:", described)
            with self.assertRaises(dataclasses.FrozenInstanceError):
                setattr(object.__new__(kind), field.name, None)
        for member, value in inspect.getmembers(kind, inspect.isroutine):
            if not member.startswith("_"):
                self.assertTrue(inspect.getdoc(value), member)

    @EACH_KIND
    def test_columns_are_of_known_kinds_and_clash_with_none(self, name):
        kind = registry.get_kind(name)
        known = {"int", "float", "maybe", "votes", "text"}
        self.assertLessEqual(set(kind.columns.values()), known)
        columns = report.columns(kind)
        self.assertLen(set(columns), len(columns))
        self.assertEqual(columns[0], "idx")

    @EACH_VOTING
    def test_settings_make_one(self, name):
        kind = registry.get_kind(name)
        settings = kind.settings()
        if name == "at_radii":
            settings["at_radii"] = (0.01, 0.02)
        if name == "pilot":
            settings["max_radius_loss"] = 0.1
        run = types.SimpleNamespace(
            classify=classify, smoothing=make_smoothing("flow_laplace", 0.05, "l1")
        )

        made = kind.from_run(run, **settings)

        self.assertTrue(kind.random)
        # Nothing is set that would name another kind, nor how many groups there are.
        if kind.trigger:
            self.assertFalse(kind.settings()[kind.trigger])
        self.assertEqual(settings.get("groups", 0), 0)
        self.assertIs(type(made), kind)
        self.assertIs(made.classify, classify)
        self.assertEqual((made.n0, made.n, made.alpha), (1_000, 10_000, 0.05))
        recorded = made.recorded()
        self.assertEqual(recorded["kind"], name)
        self.assertEqual(recorded["ground_metric"], "l1")
        self.assertEqual(
            certificates.ProbabilityScores(**recorded["scores"]), run.smoothing.scores
        )
        self.assertEqual(kind.rows_file == "verdicts.tsv", name == "at_radii")
        if name == "at_radii":
            self.assertEqual((made.radii, made.beta), ((0.01, 0.02), None))
            self.assertEqual(kind.from_run(run, **settings | {"beta": 0.1}).beta, 0.1)

    @EACH_VOTING
    def test_holds_its_classifier_and_its_law(self, name):
        smoothing = make_smoothing("power_law", 0.05, "l1", image_shape=(4, 4, 1))
        weights = jax.tree_util.Partial(lambda w, x: classify(w * x), np.ones(1))
        leaves = jax.tree.leaves(make(name, smoothing, weights).held())
        self.assertTrue(any(leaf is smoothing.noise.amplitude for leaf in leaves))
        self.assertTrue(any(leaf is weights.args[0] for leaf in leaves))

    def test_without_votes_there_is_nothing_random_and_nothing_to_share(self):
        batches = {"nearest": 1, "lipschitz": 500}
        for name, kind in registry.KINDS.items():
            if not issubclass(kind, VoteCertifier):
                self.assertFalse(kind.random)
                bare = object.__new__(kind)
                self.assertEqual((bare.batch, bare.one_key), (batches[name], False))
        self.assertEqual(Prediction(3), (3, 0.0, None))

    def test_what_looks_at_votes_in_between_keeps_to_one_process(self):
        alone = {name for name in VOTING if not registry.KINDS[name].several_processes}
        self.assertEqual(alone, {"at_radii", "pilot"})

    def test_a_kind_that_there_is_not(self):
        with self.assertRaisesRegex(ValueError, "certify.method='vote' is not one of"):
            registry.get_kind("vote")


class PublicNamesTest(absltest.TestCase):
    def test_they_are_few_and_exist(self):
        self.assertLessEqual(len(wsjax.__all__), 32)
        self.assertEqual(list(wsjax.__all__), sorted(set(wsjax.__all__)))
        for name in wsjax.__all__:
            self.assertTrue(hasattr(wsjax, name), name)

    def test_certifiers_are_among_them(self):
        for kind in registry.KINDS.values():
            self.assertIn(kind.__name__, wsjax.__all__)


if __name__ == "__main__":
    absltest.main()
