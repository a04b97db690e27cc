"""The documents: their programs run, what they claim holds, and every name is documented."""

import importlib.util
import os
import pathlib
import re
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tiny_runs
from absl.testing import absltest, parameterized
from flax import nnx
from matplotlib import pyplot

import wsjax

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.md"))
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Calls of other libraries are marked "```python theirs".
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Programs are run with fewer steps, draws and images than the pages show.
SMALL = (
    (r"\bSTEPS = \d+", "STEPS = 4"),
    (r"\bSTEPS, BATCH = \d+, \d+", "STEPS, BATCH = 4, 16"),
    (r"\bn0=1_000, n=10_000", "n0=50, n=200"),
    (r"\btest\.images\[::9\]", "test.images[::90]"),
    (r"\btest\.labels\[::9\]", "test.labels[::90]"),
    (r"\bdata\.stride=6\b", "data.stride=40"),
    (r"\bpotentials=64, widths=\(64,\)", "potentials=16, widths=(16,)"),
    (r"\bpotentials=32, widths=\(32,\)", "potentials=16, widths=(16,)"),
    (r"\bsplit\(key, 200\)", "split(key, 20)"),
    (r"\bmax_steps=20\b", "max_steps=2"),
)


def programs(path, pattern):
    """Programs of a page in order, small."""
    found = pattern.findall(path.read_text())
    for name, few in SMALL:
        found = [re.sub(name, few, program) for program in found]
    return found


def run(programs, names, path):
    """Runs programs in one namespace, in a folder of their own."""
    try:
        for number, program in enumerate(programs):
            exec(compile(program, f"{path.name}, program {number}", "exec"), names)  # noqa: S102
    finally:
        # Figures of a program that shows them are no business of later tests.
        pyplot.close("all")
    return names


def halves(images):
    """Logits of two classes: ink on the left, ink on the right."""
    middle = images.shape[2] // 2
    sides = images[:, :, :middle], images[:, :, middle:]
    return jnp.stack([side.sum((1, 2, 3)) for side in sides], -1)


class Linear(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(28 * 28, 2, rngs=nnx.Rngs(0))

    def __call__(self, images):
        return self.layer(images.reshape(len(images), -1))


def written_for(pages):
    """Names that the pages' programs expect to be there, and files."""
    image = np.zeros((28, 28, 1), np.float32)
    image[8:20, 4:12] = 1.0
    pathlib.Path("released").symlink_to(ROOT / "released")
    names = {
        "wsjax": wsjax,
        "jax": jax,
        "nnx": nnx,
        "classify": halves,
        "model": Linear(),
        "image": image,
        "images": image[None],
        "labels": np.zeros(1, int),
        "key": jax.random.key(0),
    }
    if "torch" in pages:
        import torch

        names["module"] = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.LazyLinear(2)
        )
        names["module"](torch.zeros(1, 1, 28, 28))
    if "onnx" in pages:
        from onnx import helper, save

        graph = helper.make_graph(
            [helper.make_node("Flatten", ["x"], ["logits"])],
            "pixels",
            [helper.make_tensor_value_info("x", 1, ["n", 3, 28, 28])],
            [helper.make_tensor_value_info("logits", 1, ["n", 3 * 28 * 28])],
        )
        opsets = [helper.make_opsetid("", 18)]
        save(
            helper.make_model(graph, opset_imports=opsets, ir_version=9),
            "classifier.onnx",
        )
    return names


def started(command, check, **_):
    """In place of `subprocess.run`: `python -m wsjax NAME ...` without its imports."""
    assert command[1:3] == ["-m", "wsjax"] and check, command
    code, _, errors = tiny_runs.run_forked(f"{command[3]}.py", *command[4:])
    assert code == 0, errors


class PageTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        matplotlib.use("agg")
        self.enterContext(mock.patch("subprocess.run", started))

    @parameterized.named_parameters((path.stem, path) for path in NOTEBOOKS)
    def test_notebooks_run(self, path):
        cells = programs(path, CELL)
        self.assertGreater(len(cells), 3)
        names = run(cells, {}, path)
        if path.stem == "attack":
            # As the page says: no image is fooled within its radius.
            radii = np.array([proof.radius for proof in names["certified"]])
            answers = np.array([proof.label for proof in names["certified"]])
            right = answers == names["truth"]
            self.assertTrue(np.any(right))
            distances = names["attacked"].epsilon
            self.assertTrue(np.all(distances[right] >= radii[right]))

    @parameterized.named_parameters(
        ("readme", ROOT / "README.md"),
        *((path.stem.replace("-", "_"), path) for path in sorted(DOCS.glob("*.md"))),
    )
    def test_programs_of_pages_run(self, path):
        snippets = programs(path, SNIPPET)
        for needed in ("torch", "onnx"):
            if any(f"from_{needed}" in program for program in snippets):
                absent = needed == "torch" and not importlib.util.find_spec("torch")
                absent |= needed == "onnx" and not importlib.util.find_spec(
                    "onnxruntime"
                )
                if absent:
                    self.skipTest(f"{needed} is not installed.")
        run(snippets, written_for("".join(snippets)), path)


class ApiTest(absltest.TestCase):
    def test_every_public_name_is_documented(self):
        text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
        documented = set(
            re.findall(
                r"^\.\. auto\w+:: wsjax\.(?:scores\.)?(\w+)$", text, re.MULTILINE
            )
        )
        self.assertEmpty(set(wsjax.__all__) - {"__version__"} - documented)


if __name__ == "__main__":
    absltest.main()
