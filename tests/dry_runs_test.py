"""The configs for accelerators, tried on a CPU: 50 steps of thin networks, 4 images."""

import pathlib
import tempfile

import numpy as np
import tiny_runs
from absl.testing import absltest, parameterized
from PIL import Image

from wsjax.runs.rows import read_rows

RNG = np.random.default_rng(0)


def stripes(label, size=32):
    """Light on the left or on the right."""
    picture = RNG.integers(0, 90, (size, size, 3), np.uint8)
    half = size // 2
    picture[:, label * half : (label + 1) * half] += 120
    return picture


def arrays(folder):
    for split, count in (("train", 40), ("test", 4)):
        labels = np.arange(count) % 2
        images = np.stack([stripes(label) for label in labels])
        np.savez(folder / f"{split}.npz", images=images, labels=labels)


def photographs(folder):
    for split, count in (("train", 20), ("val", 2)):
        for label in (0, 1):
            place = folder / split / f"n{label:08d}"
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(stripes(label, 40)).save(place / f"{number}.JPEG")


class DryRunsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("cifar_resnet18", arrays, ("data.name=npz",)),
        # On fewer layers, which compile in half of the time.
        (
            "imagenet",
            photographs,
            ("data.image_size=32", "data.resize=36", "model.name=resnet18"),
        ),
    )
    def test_trains_and_certifies(self, config, write, changes):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        write(folder)
        given = (
            f"--config={tiny_runs.ROOT / 'configs' / config}.py",
            f"--workdir={folder / 'run'}",
            f"--config.data.dir={folder}",
            "--config.model.width=4",
            "--config.train.batch_size=4",
            "--config.train.num_epochs=5",
            "--config.certify.n0=10",
            "--config.certify.n=20",
            "--config.certify.block_size=10",
            "--config.data.stride=1",
            *(f"--config.{change}" for change in changes),
        )
        for script in ("train.py", "certify.py"):
            code, _, err = tiny_runs.run(script, *given)
            self.assertEqual(code, 0, err)
        self.assertEqual(tiny_runs.final_arrays(folder / "run")["step"], 50)
        rows = read_rows(folder / "run" / "certificates.tsv")
        self.assertEqual(rows.ints("idx").tolist(), [0, 1, 2, 3])


if __name__ == "__main__":
    absltest.main()
