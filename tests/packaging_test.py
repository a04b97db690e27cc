"""Tests of what is packaged: the files around the code say what the code does."""

import configparser
import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap

from absl.testing import absltest, parameterized

import wsjax
from wsjax.runs import named_configs

ROOT = pathlib.Path(__file__).parents[1]


class PackagingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.setup = configparser.ConfigParser()
        self.setup.read(ROOT / "setup.cfg")

    def test_every_package_is_installed(self):
        inits = (ROOT / "wsjax").rglob("__init__.py")
        packages = {".".join(x.relative_to(ROOT).parent.parts) for x in inits}
        names = (pathlib.PurePath(name) for name in named_configs.names())
        folders = {("wsjax", "configs", *name.parent.parts) for name in names}
        self.assertCountEqual(
            self.setup["options"]["packages"].split(),
            packages | {".".join(folder) for folder in folders} | {"wsjax.released"},
        )

    def test_messages_and_documents_name_extras_that_there_are(self):
        extras = {*self.setup["options.extras_require"]}
        for path in (
            *ROOT.rglob("wsjax/**/*.py"),
            *ROOT.glob("*.md"),
            ROOT / "setup.cfg",
        ):
            for named in re.findall(r"(?:wsjax|')\.?\[([a-z,]+)\]", path.read_text()):
                self.assertContainsSubset(set(named.split(",")), extras, path)

    def test_links_of_the_readme_lead_somewhere(self):
        url = self.setup["metadata"]["url"]
        raw = url.replace("github.com", "raw.githubusercontent.com")
        links = re.findall(r"\]\(([^)]*)\)", (ROOT / "README.md").read_text())
        for link in links:
            # Others, such as relative ones, are dead where packages are listed.
            self.assertStartsWith(link, "https://")
            for home in (f"{url}/blob/main/", f"{raw}/main/"):
                if link.startswith(home):
                    path = ROOT / link.removeprefix(home).partition("#")[0]
                    self.assertTrue(path.exists(), link)

    def test_the_version_to_cite_is_this_one(self):
        cited = (ROOT / "CITATION.cff").read_text()
        self.assertIn(f"\nversion: {wsjax.__version__}\n", cited)
        dated = (ROOT / "CHANGELOG.md").read_text()
        heads = re.findall(r"^## (.*)$", dated, re.MULTILINE)
        for head in heads[1:]:
            self.assertRegex(head, r"^\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)$")


class TypesTest(absltest.TestCase):
    def test_a_misspelt_argument_is_found_before_it_runs(self):
        lines = """\
            import jax
            import wsjax
            from wsjax import data

            def classify(images: jax.Array) -> jax.Array:
                return images.sum((2, 3))

            smoothing = wsjax.make_smoothing("flow_laplace", 0.01, "l2")
            right = wsjax.FixedVotes(classify, smoothing, n=1_000, alpha=0.05)
            radius: float = right.certify(jax.numpy.ones((3, 2, 1)), wsjax.make_key(0)).radius
            data.load("mnist", "test", dir="data")
            wsjax.FixedVotes(classify, smoothing, aplha=0.05)
            wsjax.make_smoothing("flow_laplace", sgima=0.01, ground_metric="l2")
            wsjax.Counting(blocksize=10)
            wsjax.VotesAtRadii(classify, smoothing, radius=(0.1,))
            data.load("mnist", "test", dri="data")
            wsjax.FixedVots
            right.certify(1, 2, 3)
            """
        folder = self.enter_context(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder, "mine.py")
        path.write_text(textwrap.dedent(lines))
        # As installed: types of a package that is on the path are not looked at.
        pathlib.Path(folder, "wsjax").symlink_to(ROOT / "wsjax")
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--cache-dir=.mypy", "mine.py"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.findall(r"^mine\.py:(\d+): error", done.stdout, re.MULTILINE)
        self.assertEqual([*dict.fromkeys(found)], [str(x) for x in range(12, 19)])


if __name__ == "__main__":
    absltest.main()
