"""Tests of the classifiers in released/: each is whole, and claims what is true."""

import os
import pathlib

import jax
import numpy as np
from absl.testing import absltest, parameterized

import wsjax
from wsjax import data, gaussian
from wsjax.runs import artefact

ROOT = pathlib.Path(__file__).parents[1]
REAL_DATA = pathlib.Path(
    os.environ.get("WSJAX_DATA_DIR")
    or pathlib.Path(__file__).parents[2] / "shared" / "data"
)
NETWORKS = sorted((ROOT / "released").glob("*_potentials.safetensors"))
FILES = sorted(set((ROOT / "released").glob("*.safetensors")) - set(NETWORKS))
EACH_FILE, EACH_NETWORK = (
    parameterized.named_parameters((path.stem, path) for path in paths)
    for paths in (FILES, NETWORKS)
)
# Least accuracy and certified accuracy at a radius, of the first 1,000 test images.
PROMISES = {
    "mnist_potentials": (0.94, 0.1, 0.86),
    "fashion_mnist_potentials": (0.78, 0.1, 0.58),
    "cifar10_potentials": (0.45, 0.001, 0.40),
}


def changes_of(law):
    """Function: how far the view goes, in standard deviations, from pixel to pixel."""
    if isinstance(law, gaussian.GaussianView):
        phi = np.asarray(law.features, np.float64)
        return lambda ya, xa, yb, xb, c: np.linalg.norm(
            phi[:, ya, xa, c] - phi[:, yb, xb, c]
        )
    # Squares of differences of waves, each over the power that hides it.
    root = np.asarray(law.amplitude, np.float64)
    power = root @ np.swapaxes(root, -1, -2)
    power[0, 0] = np.eye(power.shape[-1])
    hidden = np.linalg.inv(power)
    hidden[0, 0] = 0  # The mass does not change.
    height, width = hidden.shape[:2]
    rows, columns = np.arange(height)[:, None], np.arange(width)

    def change(ya, xa, yb, xb, c):
        turns = rows * (ya - yb) / height + columns * (xa - xb) / width
        squares = (2 * np.sin(np.pi * turns)) ** 2
        return np.sqrt((squares * hidden[..., c, c]).sum() / (height * width))

    return change


class ReleasedTest(parameterized.TestCase):
    def test_there_are_some(self):
        self.assertNotEmpty(FILES)

    @EACH_FILE
    def test_its_name_is_the_scale_it_certifies(self, path):
        stored = artefact.read(path)
        law, metric = stored.law, stored.scores.ground_metric
        scale = 1 / gaussian.kappa(law, law.image_shape, metric)
        self.assertLessEqual(stored.scores.scale, scale)
        self.assertGreater(stored.scores.scale, (1 - 5e-10) * scale)
        named = float(path.stem.rpartition("_c")[2])
        self.assertGreaterEqual(scale, named)
        self.assertLess(scale, named * (1 + 1e-5))

    @EACH_FILE
    def test_no_two_pixels_are_told_apart_faster_than_claimed(self, path):
        # A loop over sampled pairs and all neighbours, for the features as stored.
        stored = artefact.read(path)
        changes = changes_of(stored.law)
        height, width, channels = stored.law.image_shape
        rng = np.random.default_rng(0)
        pairs = rng.integers(0, height * width, (3000, 2))
        near = [
            (i * width + j, i * width + j + step)
            for i in range(height - 1)
            for j in range(width - 1)
            for step in (1, width, width + 1)
        ]
        for a, b in (*pairs, *near):
            (ya, xa), (yb, xb) = divmod(int(a), width), divmod(int(b), width)
            distance = np.hypot(ya - yb, xa - xb)
            for c in range(channels):
                change = changes(ya, xa, yb, xb, c)
                self.assertLessEqual(
                    stored.scores.scale * change, distance * (1 + 1e-15)
                )

    @EACH_FILE
    def test_certifies_test_images(self, path):
        model = wsjax.load_model(path)
        name = artefact.read(path).description["data"]
        n, step, least = (100, 50, 1e-4) if name == "cifar10" else (1000, 10, 0.02)
        if not (REAL_DATA / name).is_dir():
            self.skipTest(f"No {name}: set WSJAX_DATA_DIR to the folder above it.")
        test = data.load(name, "test", dir=REAL_DATA / name)
        smooth = model.certifier.smoothing
        certifier = wsjax.FixedVotes(model.classify, smooth, n0=n // 5, n=n, alpha=0.05)
        right = 0
        for index in range(0, 200, step):
            image = data.as_float(test.images[index], test.scale)
            result = certifier.certify(image, jax.random.key(index))
            right += result.label == test.labels[index] and result.radius > least
        self.assertGreaterEqual(right, 100 / step)


class NetworksTest(parameterized.TestCase):
    def test_there_is_one_for_each_data_set(self):
        self.assertEqual({path.stem for path in NETWORKS}, set(PROMISES))

    @EACH_NETWORK
    def test_is_small_and_whole(self, path):
        most = 10e6 if path.stem.startswith("cifar") else 5e6
        self.assertLess(path.stat().st_size, most)
        network = artefact.load_network(path)
        self.assertEqual(network.ground_metric, "l2")
        # A loop over sampled pairs in Python's integers.
        units, top = network.potentials, 4**network.exponent
        height, width, channels, count = units.shape
        rng = np.random.default_rng(0)
        for _ in range(2000):
            (ya, yb), (xa, xb) = (rng.integers(0, s, 2) for s in (height, width))
            c, j = rng.integers(channels), rng.integers(count)
            rise = int(units[ya, xa, c, j]) - int(units[yb, xb, c, j])
            away = int(ya - yb) ** 2 + int(xa - xb) ** 2
            self.assertLessEqual(rise * rise, top * away)
        for rows in (*network.hidden, network.last):
            for row in rows.units:
                self.assertLessEqual(sum(abs(int(w)) for w in row), 2**rows.exponent)

    @EACH_NETWORK
    def test_certifies_test_images(self, path):
        name = path.stem.removesuffix("_potentials")
        if not (REAL_DATA / name).is_dir():
            self.skipTest(f"No {name}: set WSJAX_DATA_DIR to the folder above it.")
        test = data.load(name, "test", dir=REAL_DATA / name)
        images = (data.as_float(image, test.scale) for image in test.images[:1000])
        certifier = wsjax.LipschitzScores(artefact.load_network(path))
        found = list(certifier.certify_each(images))
        right = np.array([c.label for c in found]) == test.labels[:1000]
        radii = np.where(right, [c.radius for c in found], -1.0)
        accuracy, radius, certified = PROMISES[path.stem]
        self.assertGreater(right.mean(), accuracy)
        self.assertGreater((radii >= radius).mean(), certified)


if __name__ == "__main__":
    absltest.main()
