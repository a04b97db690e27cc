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
        save = plots._save

        def keep(figure, path):
            kept.append(figure)
            save(figure, path)

        with mock.patch.object(plots, "_save", keep):
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
            self.assertRaisesRegex(ImportError, r"pip install 'wsjax\[train\]'"),
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
        return plots.Picture(image, moved, plan, f"picture {seed}")

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


def shown(figure):
    """Axes that hold a picture, in the order of reading."""
    axes = [a for a in figure.axes if a.images]
    corners = {a: (round(-a.get_position().y1, 2), a.get_position().x0) for a in axes}
    return sorted(axes, key=corners.get)


class NoisePicturesTest(Folder):
    def row(self, loud, count=2, shape=(5, 7, 1), seed=0):
        rng = np.random.default_rng(seed)
        noise = loud * rng.normal(size=shape)
        noisy = loud * rng.normal(size=(count, *shape))
        return plots.NoiseRow(
            f"noise {loud}", noise, noisy, rng.uniform(size=noisy.shape)
        )

    def images(self, count=2, shape=(5, 7, 1)):
        return np.random.default_rng(1).uniform(size=(count, *shape))

    @parameterized.named_parameters(
        ("one", 1, 1, (5, 7, 1)),
        ("colour", 2, 1, (7, 5, 3)),
        ("several", 3, 2, (5, 5, 1)),
    )
    def test_has_a_row_of_images_and_one_for_each_law(self, count, rows, shape):
        laws = [self.row(1.0 + k, count, shape) for k in range(rows)]

        figure = self.saved(plots.noise_pictures, self.images(count, shape), laws)

        self.pixels()
        self.assertLen(shown(figure), 2 * count + rows * (1 + 2 * count))

    def test_pictures_are_where_they_belong(self):
        images, laws = self.images(), [self.row(3.0), self.row(20.0, seed=2)]
        figure = self.saved(plots.noise_pictures, images, laws, title="a title")
        self.pixels()
        arrays = [np.asarray(axes.images[0].get_array()) for axes in shown(figure)]
        for place, image in zip((0, 1, 2, 3), (*images, *images)):
            np.testing.assert_allclose(arrays[place], image[..., 0])
        for number, law in enumerate(laws):
            noise, *rest = arrays[4 + 5 * number : 9 + 5 * number]
            np.testing.assert_allclose(noise, law.noise[..., 0])
            for drawn, given in zip(rest, (*law.noisy, *law.seen)):
                # Black and white are ends of a scale; in between gray is linear.
                between = (drawn > 0) & (drawn < 1)
                self.assertGreater(between.mean(), 0.9)
                slope = np.polyfit(given[..., 0][between], drawn[between], 1)
                fitted = np.polyval(slope, given[..., 0][between])
                np.testing.assert_allclose(drawn[between], fitted, atol=1e-6)
                self.assertGreater(slope[0], 0)
        self.assertEqual(figure.get_suptitle(), "a title")

    def test_each_row_has_its_own_scale_and_says_so(self):
        laws = [self.row(1.0), self.row(50.0)]
        # One pixel far louder than the others does not hide them.
        laws[1].noise[0, 0] = 1e6
        figure = self.saved(plots.noise_pictures, self.images(), laws)
        self.pixels()
        limits = []
        for number, law in enumerate(laws):
            axes = shown(figure)[4 + 5 * number]
            low, high = axes.images[0].get_clim()
            self.assertEqual(low, -high)
            self.assertEqual(axes.get_xlabel(), f"{low:.3g} to {high:.3g}")
            self.assertEqual(axes.get_ylabel(), law.title)
            limits.append(high)
        self.assertBetween(limits[0], 2, 4)
        self.assertBetween(limits[1], 100, 200)

    def test_noise_of_nothing(self):
        still = plots.NoiseRow("", *(0 * part for part in self.row(1.0)[1:]))
        self.saved(plots.noise_pictures, self.images(), [still])
        self.pixels()


class ViewPicturesTest(Folder):
    @parameterized.parameters(1, 4, 5)
    def test_shows_every_direction_and_the_slope(self, count):
        rng = np.random.default_rng(0)
        directions = [(10.0**k) * rng.normal(size=(5, 7)) for k in range(count)]
        slope = rng.uniform(size=(5, 7))
        titles = [f"direction {k}" for k in range(count)]

        figure = self.saved(
            plots.view_pictures, directions, titles, slope, title="a view"
        )

        self.pixels()
        pictures = {axes.get_title(): axes.images[0] for axes in shown(figure)}
        for title, direction in zip(titles, directions):
            picture = pictures.pop(title)
            np.testing.assert_array_equal(picture.get_array(), direction)
            largest = np.abs(direction).max()
            self.assertEqual(picture.get_clim(), (-largest, largest))
        ((_, last),) = pictures.items()
        np.testing.assert_array_equal(last.get_array(), slope)
        self.assertEqual(last.get_clim(), (0, 1))


class FrequencyCurvesTest(Folder):
    def draw(self):
        periods = np.arange(1, 15)
        self.curves = {
            "white": (periods, np.full(14, 4.0)),
            "steep": (periods, 100.0 / periods**2),
            "(images)": (periods, 1.0 * periods),
        }
        two = {name: self.curves[name] for name in ("steep", "white")}
        panels = [
            plots.FrequencyPanel("told", "precision", self.curves, True),
            plots.FrequencyPanel("spent", "cost", two, False),
        ]
        figure = self.saved(plots.frequency_curves, panels)
        self.pixels()
        return figure

    def test_panels_hold_their_curves(self):
        figure = self.draw()
        first, second = figure.axes
        self.assertEqual(first.get_title(), "told")
        self.assertEqual(second.get_ylabel(), "cost")
        self.assertEqual((first.get_yscale(), second.get_yscale()), ("log", "linear"))
        self.assertEqual(second.get_ylim()[0], 0)
        for axes in (first, second):
            self.assertIn("periods", axes.get_xlabel())
            for line in axes.lines:
                np.testing.assert_array_equal(
                    line.get_data(), self.curves[line.get_label()]
                )
        self.assertLen(first.lines, 3)
        self.assertLen(second.lines, 2)

    def test_a_label_looks_the_same_everywhere_and_is_explained_once(self):
        figure = self.draw()
        looks = {}
        for axes in figure.axes:
            for line in axes.lines:
                look = (line.get_color(), line.get_linestyle())
                self.assertEqual(looks.setdefault(line.get_label(), look), look)
        self.assertLen(set(looks.values()), 3)
        self.assertEqual(looks["(images)"][1], ":")
        (legend,) = figure.legends
        texts = [text.get_text() for text in legend.get_texts()]
        self.assertEqual(texts, list(self.curves))


if __name__ == "__main__":
    absltest.main()
