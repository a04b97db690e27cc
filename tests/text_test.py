"""Tests of what is seen at the prompt: short reprs, sentences, hints for usual slips."""

import dataclasses
import io
import math
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pandas
from absl.testing import absltest, parameterized
from flax import nnx

import wsjax
from wsjax import attacks, models, plots, text, transport
from wsjax.attacks import AttackResult
from wsjax.certifiers.base import Certificate
from wsjax.runs import rows

IMAGE = np.random.default_rng(0).uniform(0.1, 1, (6, 5, 1)).astype(np.float32)
LAPLACE = wsjax.make_smoothing("flow_laplace", 0.01, "l2")
KEY = jax.random.key(0)


def halves(images):
    return jnp.stack([images[:, :3].sum((1, 2, 3)), images[:, 3:].sum((1, 2, 3))], -1)


class ReprTest(parameterized.TestCase):
    def test_arrays_by_shape_and_dtype(self):
        for value, expected in (
            (np.zeros((28, 28, 1), np.float32), "float32[28, 28, 1]"),
            (jnp.zeros((3, 1)), "float32[3, 1]"),
            (np.array([0, 12, 988]), "[0, 12, 988]"),
            (np.zeros(1000, int), "int64[1000]"),
            (KEY, "key<fry>[]"),
            (
                {"a": {"b": np.zeros((100, 10))}},
                "<dict of 1: 1,000 numbers in 1 arrays>",
            ),
            ((1, 2.5, "x", None), "(1, 2.5, 'x', None)"),
            (halves, "halves"),
            (
                jax.tree_util.Partial(halves, np.zeros((2, 2))),
                "Partial(halves, float64[2, 2])",
            ),
        ):
            self.assertEqual(text.shown(value), expected)
        seen = []
        jax.jit(lambda x: seen.append(text.shown(x)))(jnp.arange(3))
        self.assertEqual(seen, ["int32[3]"])

    def test_what_people_print_is_short(self):
        power = wsjax.make_smoothing("power_law", 0.01, "l2", image_shape=(28, 28, 1))
        module = models.create("mlp", 10)
        classify = models.classifier(module, module.init(KEY, IMAGE[None]))
        certifier = wsjax.FixedVotes(classify, power)
        moved = AttackResult(IMAGE[None], *[np.zeros(1)] * 4)
        for value, least in (
            (power, "ColouredGaussian(amplitude=float32[28, 28, 1, 1]"),
            (certifier, "classify=Partial(Mlp.apply, <dict of 1: 283,658 numbers"),
            (attacks.Victim(classify), "Victim(classify=Partial("),
            (wsjax.FlowPlan(*[np.zeros((6, 5, 1))] * 2), "vertical=float64[6, 5, 1]"),
            (wsjax.HostClassifier(halves), "HostClassifier(halves, batch_size=None)"),
            (moved, "AttackResult(adversarial=float32[1, 6, 5, 1]"),
        ):
            self.assertIn(least, repr(value))
            self.assertLess(len(repr(value)), 520, repr(value))
        self.assertEqual(
            repr(wsjax.flow_shape((2, 3, 1))),
            "FlowPlan(vertical=(1, 3, 1), horizontal=(2, 2, 1))",
        )

    def test_small_values_are_told_in_full(self):
        law = wsjax.FlowLaplace(0.01)
        names = {"wsjax": wsjax, "FlowLaplace": wsjax.FlowLaplace}
        self.assertEqual(eval(repr(law), names), law)

    def test_a_repr_of_ones_own_stays(self):
        @dataclasses.dataclass(frozen=True)
        class Mine(text.Short):
            x: int = 0

            def __repr__(self):
                return "mine"

        self.assertEqual(repr(Mine()), "mine")


class SentenceTest(parameterized.TestCase):
    def certificate(self, label, radius):
        return Certificate(label, radius, 3, 0.0, 0.0, 1.0, None)

    def test_certificates_read_as_sentences(self):
        self.assertEqual(
            str(self.certificate(3, 0.012349)),
            "Class 3 at every image with the same mass in every channel that is closer "
            "than 0.01234 pixels x fraction of mass.",
        )
        self.assertStartsWith(str(self.certificate(-1, 0.0)), "No class is certified")
        self.assertNotIn("closer", str(self.certificate(3, math.inf)))
        found = wsjax.FixedVotes(halves, LAPLACE, n0=10, n=100).certify(IMAGE, KEY)
        self.assertIn("votes=[", repr(found))

    def test_numbers_are_never_above_what_they_tell(self):
        rng = np.random.default_rng(0)
        for value in [*10.0 ** rng.uniform(-20, 20, 300), 0.1, 1.0, 9999.9, 0.0]:
            told = float(text.rounded_down(value))
            self.assertLessEqual(told, value)
            self.assertGreaterEqual(told, value * (1 - 1e-3))


class Net(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(30, rngs=nnx.Rngs(0))

    def __call__(self, images):
        return self.norm(images.reshape(len(images), -1))


NET = Net()


def closure(images):
    return NET(images)


class SlipsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("Haiku with state", lambda x: (halves(x), {})),
        ("HostClassifier", lambda x: halves(np.asarray(x))),
        ("HostClassifier", lambda x: halves(x) if x.sum() > 0 else -halves(x)),
        ("HostClassifier", lambda x: halves(x) * float(x.sum())),
        ("images alone .*missing.*Partial", lambda params, state, x: halves(x)),
        (r"model\.eval\(\)", Net()),
        (r"model\.eval\(\)", closure),
    )
    def test_of_classifiers(self, hint, classify):
        certifier = wsjax.FixedVotes(classify, LAPLACE, n0=10, n=100)
        with self.assertRaisesRegex(ValueError, hint):
            certifier.certify(IMAGE, KEY)

    def test_the_remedies_work(self):
        net = Net()
        net.eval()
        for classify in (
            net,
            wsjax.HostClassifier(lambda x: halves(np.asarray(x))),
            jax.tree_util.Partial(lambda params, x: halves(x), {}),
        ):
            wsjax.FixedVotes(classify, LAPLACE, n0=10, n=100).certify(IMAGE, KEY)

    def test_errors_of_a_classifier_stay_what_they_are(self):
        def broken(images):
            raise KeyError("mine")

        def typed(images):
            return images + "mine"

        for classify, kind in ((broken, KeyError), (typed, TypeError)):
            with self.assertRaises(kind):
                wsjax.FixedVotes(classify, LAPLACE).certify(IMAGE, KEY)

    @parameterized.parameters(
        (0, r"key=0 is a seed and no key: pass jax.random.key\(0\)"),
        (np.int64(3), r"pass jax.random.key\(3\)"),
        ("a", "is a str"),
        (np.float32(1), r"is float32 of shape \(\)"),
    )
    def test_of_keys(self, key, hint):
        certifier = wsjax.FixedVotes(halves, LAPLACE)
        victim = attacks.smoothed(halves, LAPLACE, n=100, alpha=0.05)
        for use in (
            lambda: certifier.certify(IMAGE, key),
            lambda: certifier.predict(IMAGE, key),
            lambda: wsjax.count_votes(key, IMAGE, halves, LAPLACE.perturb, n=10),
            lambda: LAPLACE.perturb(key, IMAGE),
            lambda: attacks.flow_attack(IMAGE[None], np.array([1]), victim, key=key),
        ):
            with self.assertRaisesRegex(ValueError, hint):
                use()

    def test_of_keys_for_several_images(self):
        certifier = wsjax.FixedVotes(halves, LAPLACE)
        with self.assertRaisesRegex(ValueError, "each image needs its own"):
            certifier.certify_each([IMAGE] * 2, KEY)
        with self.assertRaisesRegex(ValueError, "one key is needed"):
            certifier.certify(IMAGE, jax.random.split(KEY))
        with self.assertRaisesRegex(ValueError, "an image comes before its key"):
            certifier.certify(KEY, IMAGE)

    def test_of_images(self):
        pixels = (255 * IMAGE).astype(np.uint8)
        for use in (
            lambda: wsjax.FixedVotes(halves, LAPLACE).certify(pixels, KEY),
            lambda: LAPLACE.perturb(KEY, pixels),
        ):
            with self.assertRaisesRegex(
                ValueError, r"uint8.*astype\(np.float32\) / 255"
            ):
                use()


class FramesTest(absltest.TestCase):
    def test_rows_become_a_frame_that_writes_csv_and_parquet(self):
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "rows.tsv"
        columns = ("idx", "radius", "runner_up", "votes", "label")
        with rows.RowWriter(path, columns, "run") as writer:
            for idx, (radius, other) in enumerate([(0.5, None), (math.inf, 0.25)]):
                counts = np.array([idx, 0, 3])
                writer.write(
                    idx=idx, radius=radius, runner_up=other, votes=counts, label=-1
                )
        frame = rows.read_rows(path).to_pandas()
        self.assertEqual(tuple(frame.columns), columns)
        self.assertEqual(frame.label.tolist(), [-1, -1])
        self.assertEqual([frame[c].dtype for c in columns[:3]], ["i8", "f8", "f8"])
        self.assertEqual(frame.radius.tolist(), [0.5, math.inf])
        np.testing.assert_array_equal(frame.runner_up, [np.nan, 0.25])
        self.assertEqual(frame.votes.tolist(), ["2:3", "0:1,2:3"])
        for write, read in (
            (frame.to_csv, pandas.read_csv),
            (frame.to_parquet, pandas.read_parquet),
        ):
            write(folder / "copy", index=False)
            pandas.testing.assert_frame_equal(
                read(folder / "copy"), frame, check_dtype=False
            )
        self.assertEmpty(rows.Rows(["idx"], []).to_pandas())


class FlowPictureTest(absltest.TestCase):
    def test_arrows_lead_where_mass_goes(self):
        before, after = np.zeros((2, 5, 4, 1), np.float32)
        before[2, 0], after[2, 3] = 1, 1
        figure = plots.plot_flow(before, transport.exact_flow(before, after))
        (axes,) = figure.axes
        (arrows,) = [x for x in axes.collections if hasattr(x, "U")]
        self.assertTrue((arrows.U > 0).all())
        np.testing.assert_allclose(arrows.V, 0, atol=1e-9)
        self.assertEqual(set(arrows.Y.tolist()), {2})
        figure.savefig(io.BytesIO())
        self.assertIs(
            plots.plot_flow(before, wsjax.FlowPlan(before, before), axes), figure
        )

    def test_a_plan_on_another_image_is_refused(self):
        plan = wsjax.FlowPlan(*[np.zeros((3, 3, 1))] * 2)
        with self.assertRaisesRegex(ValueError, "not those of a plan on an image"):
            plots.plot_flow(IMAGE, plan)


if __name__ == "__main__":
    absltest.main()
