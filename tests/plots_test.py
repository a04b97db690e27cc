"""Tests of wsjax.plots: that figures show what they should."""

import pathlib
import sys
import tempfile
import warnings
from unittest import mock

import chex
import numpy as np
from absl.testing import absltest, parameterized
from matplotlib import image as images
from matplotlib import pyplot

from wsjax import plots
from wsjax.flow import FlowPlan, flow_shape


class Folder(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.path = pathlib.Path(folder) / "figure.png"
        self.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error")

    def pixels(self):
        """The figure, after checking that it is one and is not blank."""
        self.assertEqual(self.path.read_bytes()[:4], b"\x89PNG")
        pixels = images.imread(self.path)[..., :3]
        self.assertGreater(min(pixels.shape[:2]), 200)
        self.assertGreater(pixels.var(), 1e-3)
        self.assertEqual(pyplot.get_fignums(), [])
        return pixels

    def saved(self, function, *arguments, **options):
        """Draws, and returns the figure as it was saved."""
        kept = []
        save = plots.save

        def keep(figure, path):
            kept.append(figure)
            save(figure, path)

        with mock.patch.object(plots, "save", keep):
            function(self.path, *arguments, **options)
        (figure,) = kept
        return figure


class AccuracyCurvesTest(Folder):
    def draw(self, certified, attacked=None, **options):
        figure = self.saved(
            plots.accuracy_curves, certified, attacked, metric="l2", **options
        )
        return figure.axes[0]

    def height(self, axes, line, radius):
        """The height of a step curve: the last corner at or left of `radius`."""
        x, y = axes.lines[line].get_data()
        self.assertTrue(np.isfinite(x).all())
        self.assertEqual(axes.lines[line].get_drawstyle(), "steps-post")
        return y[np.flatnonzero(x <= radius)[-1]]

    def test_height_is_the_share_of_images_beyond_the_radius(self):
        radii = np.array([0.3, 0.1, 0.2, 0.2])
        axes = self.draw({"run": plots.Curve(radii, 8)})
        self.pixels()
        for radius in (0.0, 0.05, 0.15, 0.25, 0.29, 0.31):
            share = np.sum(radii > radius) / 8
            self.assertAlmostEqual(self.height(axes, 0, radius), share)
        self.assertGreater(axes.get_xlim()[1], 0.3)
        self.assertLess(axes.get_xlim()[1], 0.4)
        self.assertEqual(axes.get_ylim(), (0, 1))
        self.assertIn("l2", axes.get_xlabel())

    def test_several_runs_and_attacks_are_told_apart(self):
        rng = np.random.default_rng(0)
        runs = {f"run {i}": plots.Curve(rng.uniform(size=9), 10) for i in range(9)}
        axes = self.draw(runs, {"base": plots.Curve(rng.uniform(size=9), 10)})
        self.pixels()
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines[:9]}
        self.assertLen(looks, 9)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        self.assertEqual(labels, [*runs, "attack: base"])

    def test_curves_of_a_colour_differ_in_dashes(self):
        curve = plots.Curve(np.array([0.1, 0.2]), 3, "red")
        axes = self.draw({"a": curve, "b": curve._replace(colour=""), "c": curve})
        a, b, c = axes.lines
        self.assertEqual((a.get_color(), c.get_color()), ("red", "red"))
        self.assertEqual(b.get_color(), plots.COLOURS[1])
        self.assertNotEqual(a.get_linestyle(), c.get_linestyle())
        self.assertEqual(b.get_linestyle(), a.get_linestyle())

    def test_more_runs_change_the_figure(self):
        curve = plots.Curve(np.array([0.1, 0.2]), 3)
        self.draw({"a": curve})
        alone = self.pixels()
        self.draw({"a": curve, "b": plots.Curve(np.array([0.15]), 3)})
        self.assertGreater(np.abs(self.pixels() - alone).max(), 0.2)

    def test_infinite_radii_count_everywhere_and_stretch_nothing(self):
        radii = np.array([0.1, np.inf, np.inf])
        axes = self.draw({}, {"base": plots.Curve(radii, 4)})
        self.pixels()
        self.assertAlmostEqual(self.height(axes, 0, 0.0), 3 / 4)
        self.assertAlmostEqual(self.height(axes, 0, 0.2), 2 / 4)
        self.assertLess(axes.get_xlim()[1], 0.2)

    @parameterized.named_parameters(
        ("no_radii", [], 4), ("no_images", [], 0), ("only_infinite", [np.inf], 2)
    )
    def test_draws_what_little_there_is(self, radii, count):
        axes = self.draw({"run": plots.Curve(np.array(radii), count)})
        self.pixels()
        share = len(radii) / max(count, 1)
        self.assertAlmostEqual(self.height(axes, 0, 0.0), share)
        self.assertGreater(axes.get_xlim()[1], 0)

    def test_title(self):
        axes = self.draw({"run": plots.Curve(np.ones(1), 1)}, title="MNIST")
        self.assertEqual(axes.get_title(), "MNIST")

    def test_without_matplotlib_names_the_extra(self):
        with (
            mock.patch.dict(sys.modules, {"matplotlib": None}),
            self.assertRaisesRegex(ImportError, r"pip install 'wsjax\[plots\]'"),
        ):
            plots.accuracy_curves(self.path, {}, metric="l1")


class PicturesTest(Folder):
    def picture(self, shape=(6, 9, 1), flow=True, seed=0):
        rng = np.random.default_rng(seed)
        image, moved = rng.uniform(size=(2, *shape)).astype(np.float32)
        plan = None
        if flow:
            edges = (rng.normal(size=size) for size in flow_shape(shape))
            plan = FlowPlan(*edges)
        return plots.AttackedImage(image, moved, plan, f"picture {seed}")

    @parameterized.named_parameters(
        ("gray", {}),
        ("colour", {"shape": (7, 5, 3)}),
        ("two_channels_of_flow", {"shape": (7, 5, 4)}),
        ("one_row", {"shape": (1, 5, 1)}),
        ("one_column", {"shape": (5, 1, 1)}),
        ("no_flow", {"flow": False}),
        ("no_flow_in_colour", {"shape": (7, 5, 3), "flow": False}),
    )
    def test_draws(self, options):
        plots.adversarial_pictures(self.path, [self.picture(**options)])
        self.pixels()

    def test_one_row_for_each_picture(self):
        plots.adversarial_pictures(self.path, [self.picture()])
        height = self.pixels().shape[0]
        several = [self.picture(seed=i) for i in range(3)]
        plots.adversarial_pictures(self.path, several)
        self.assertEqual(self.pixels().shape[0], 3 * height)

    def test_flow_adds_arrows_and_nothing_moved_adds_none(self):
        drawn = {}
        still = FlowPlan(*(np.zeros(size) for size in flow_shape((6, 9, 1))))
        for name, flow in (("some", self.picture().flow), ("still", still), ("", None)):
            picture = self.picture()._replace(flow=flow)
            plots.adversarial_pictures(self.path, [picture])
            drawn[name] = self.pixels()
        np.testing.assert_array_equal(drawn["still"], drawn[""])
        changed = np.abs(drawn["some"] - drawn[""]).max(axis=-1) > 0.2
        self.assertGreater(changed.sum(), 100)
        # In the last of the four columns only.
        left = changed[:, : 3 * changed.shape[1] // 4]
        self.assertEqual(left.sum(), 0)

    def test_an_arrow_points_where_mass_went(self):
        down = np.zeros(flow_shape((3, 5, 1)).vertical)
        down[1, 2] = 0.5
        right = np.zeros(flow_shape((3, 5, 1)).horizontal)
        right[2, 0] = -0.25
        axes = mock.Mock()
        plots._arrows(axes, FlowPlan(down, right))
        (x, y, along, downward), _ = axes.quiver.call_args
        arrows = {(i, j): (a, d) for j, i, a, d in zip(x, y, along, downward)}
        expected = {(1, 2): (0, 0.25), (2, 2): (0, 0.25)}
        expected |= {(2, 0): (-0.125, 0), (2, 1): (-0.125, 0)}
        self.assertEqual(arrows, expected)

    def test_an_image_that_did_not_change(self):
        picture = self.picture()
        plots.adversarial_pictures(
            self.path, [picture._replace(adversarial=picture.image)]
        )
        self.pixels()


if __name__ == "__main__":
    absltest.main()
