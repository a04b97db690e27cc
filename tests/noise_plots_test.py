"""Tests of benchmarks/noise_plots.py."""

import pathlib
import sys

import numpy as np
from absl.testing import absltest, parameterized
from plots_test import Folder

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import noise_plots


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
        return noise_plots.NoiseRow(
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

        figure = self.saved(noise_plots.noise_pictures, self.images(count, shape), laws)

        self.pixels()
        self.assertLen(shown(figure), 2 * count + rows * (1 + 2 * count))

    def test_pictures_are_where_they_belong(self):
        images, laws = self.images(), [self.row(3.0), self.row(20.0, seed=2)]
        figure = self.saved(noise_plots.noise_pictures, images, laws, title="a title")
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
        figure = self.saved(noise_plots.noise_pictures, self.images(), laws)
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
        still = noise_plots.NoiseRow("", *(0 * part for part in self.row(1.0)[1:]))
        self.saved(noise_plots.noise_pictures, self.images(), [still])
        self.pixels()


class ViewPicturesTest(Folder):
    @parameterized.parameters(1, 4, 5)
    def test_shows_every_direction_and_the_slope(self, count):
        rng = np.random.default_rng(0)
        directions = [(10.0**k) * rng.normal(size=(5, 7)) for k in range(count)]
        slope = rng.uniform(size=(5, 7))
        titles = [f"direction {k}" for k in range(count)]

        figure = self.saved(
            noise_plots.view_pictures, directions, titles, slope, title="a view"
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
            noise_plots.FrequencyPanel("told", "precision", self.curves, True),
            noise_plots.FrequencyPanel("spent", "cost", two, False),
        ]
        figure = self.saved(noise_plots.frequency_curves, panels)
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
