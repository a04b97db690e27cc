"""Tests of the architecture: who imports whom, and what every file has to have."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest, parameterized

import wsjax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "wsjax"
# Who may lean on whom: a module imports modules of layers below its own, never one beside
# it or above. Subpackages count as one; each has a place here.
LAYERS = (
    ("text",),
    (
        *("_version", "metrics", "flow", "images", "confidence", "fast_random"),
        *("host", "scores"),
    ),
    (
        "lipschitz",
        "votes",
        "spectrum",
        "sequential",
        "transport",
        "noise",
        "certificates",
    ),
    ("gaussian", "fast_transport", "nearest", "potentials", "fixed", "whole_numbers"),
    ("smoothing", "network", "exact_flow"),
    ("local_slopes", "exact"),
    ("certifiers",),
    ("evaluation", "_names"),
    # Here the core ends: what is below needs jax, numpy and scipy alone.
    ("files",),
    ("console", "data", "models", "plots"),
    ("attacks",),
    ("training", "interop"),
    ("runs",),
    ("scripts",),
)
CORE = [module for layer in LAYERS[:8] for module in layer]
# What the scripts and subpackages need and `import wsjax` must not.
HEAVY = [
    "flax",
    "optax",
    "absl",
    "ml_collections",
    "matplotlib",
    "orbax",
    "tqdm",
    "rich",
    "torch",
    "onnxruntime",
    "tensorflow",
    "tensorflow_datasets",
    "sklearn",
    "grain",
    "tensorboardX",
    "PIL",
    "ot",
    "chex",
    "hypothesis",
    "pytest",
]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path):
    return ast.parse(path.read_text(), str(path))


def modules_under(name):
    """Source files of a module or subpackage of wsjax, by dotted name."""
    path = PACKAGE / name
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def home_of(dotted):
    """`wsjax.FlowPlan` -> `wsjax.flow.FlowPlan`: where a public name comes from."""
    prefix, _, name = dotted.rpartition(".")
    value = getattr(wsjax, name, None) if prefix == "wsjax" else None
    if value is None or inspect.ismodule(value):
        return dotted
    return f"{getattr(value, '__module__', 'wsjax.scores')}.{name}"


def imports(path):
    """Dotted names of everything a file imports, also inside functions."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_name(path).split(".")
            if path.name != "__init__.py":
                package = package[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from (home_of(f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "wsjax":
            yield home_of(f"wsjax.{node.attr}")


def wsjax_modules(path):
    """First parts below wsjax of what a file imports: {"flow", "models", ...}."""
    parts = (dotted.split(".") for dotted in imports(path))
    return {p[1] for p in parts if p[0] == "wsjax" and len(p) > 1}


def source_files():
    """Files under version control or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        return None
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


class ImportTest(parameterized.TestCase):
    def test_import_wsjax_needs_jax_numpy_and_scipy_alone(self):
        code = (
            "import sys, wsjax; assert 'jax' not in sys.modules; wsjax.FlowPlan; "
            "print(*{name.split('.')[0] for name in sys.modules})"
        )
        loaded = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

        self.assertEqual(loaded.returncode, 0, loaded.stderr)
        loaded = set(loaded.stdout.split())
        self.assertContainsSubset({"jax", "numpy", "scipy", "wsjax"}, loaded)
        self.assertEmpty(loaded & set(HEAVY))

    def test_every_module_has_a_layer(self):
        modules = {
            path.stem
            for path in PACKAGE.iterdir()
            if not path.name.startswith((".", "__")) and path.suffix in ("", ".py")
        }
        self.assertCountEqual(modules, [module for layer in LAYERS for module in layer])

    def test_no_arrow_goes_up_or_sideways(self):
        below: set[str] = set()
        for layer in LAYERS:
            for module in layer:
                for path in modules_under(module):
                    above = wsjax_modules(path) - below - {module} - {*wsjax.__all__}
                    self.assertEmpty(above, f"{path} leans on {above}")
            below |= {*layer}

    def test_the_public_names_are_those_of_the_core(self):
        allowed = {*CORE, *wsjax.__all__}
        self.assertContainsSubset(wsjax_modules(PACKAGE / "_names.py"), allowed)
        # `load_model` is imported when it is asked for, like all others, from further down.
        homes = wsjax_modules(PACKAGE / "__init__.py") - {"runs"}
        self.assertContainsSubset(homes, CORE)

    def test_sequential_decisions_lean_on_bounds_alone(self):
        self.assertEqual(wsjax_modules(PACKAGE / "sequential.py"), {"confidence"})

    def test_votes_know_neither_flows_nor_theorems(self):
        self.assertEqual(set(wsjax_modules(PACKAGE / "votes.py")), {"host"})
        self.assertEmpty(wsjax_modules(PACKAGE / "host.py"))

    def test_statistics_and_theorems_do_not_touch_the_device(self):
        for name in (
            "metrics",
            "scores",
            "confidence",
            "sequential",
            "certificates",
            "evaluation",
            "spectrum",
            "nearest",
        ):
            roots = {dotted.split(".")[0] for dotted in imports(PACKAGE / f"{name}.py")}
            self.assertNotIn("jax", roots)

    @parameterized.parameters(*CORE)
    def test_the_core_imports_no_heavy_library(self, name):
        for path in modules_under(name):
            roots = {dotted.split(".")[0] for dotted in imports(path)}
            # An accelerator that `transport` imports when it is called, and does without.
            optional = {"ot"} if name == "transport" else set()
            self.assertEmpty(roots & set(HEAVY) - optional, path)

    def test_no_module_names_a_module_that_is_not_there(self):
        names = {
            p.stem for p in PACKAGE.iterdir() if not p.name.startswith((".", "__"))
        }
        for path in PACKAGE.rglob("*.py"):
            missing = wsjax_modules(path) - names - set(wsjax.__all__)
            self.assertEmpty(missing, path)


def is_public(name):
    return not name.startswith("_")


def inherited(name, base_names, classes):
    """Whether a method of that name is documented in a class further up."""
    for base in base_names:
        node = classes.get(base)
        if node is None:
            continue
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == name:
                return True
        if inherited(
            name, [ast.unparse(b).split(".")[-1] for b in node.bases], classes
        ):
            return True
    return False


class DocumentationTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.trees = {path: parse(path) for path in sorted(PACKAGE.rglob("*.py"))}
        self.classes = {
            node.name: node
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }

    def definitions(self):
        """`(where, node, names of base classes or None)` of all that is public."""
        for path, tree in self.trees.items():
            where = module_name(path)
            for node in tree.body:
                if isinstance(node, ast.FunctionDef) and is_public(node.name):
                    yield f"{where}.{node.name}", node, None
                if isinstance(node, ast.ClassDef) and is_public(node.name):
                    yield f"{where}.{node.name}", node, None
                    bases = [ast.unparse(b).split(".")[-1] for b in node.bases]
                    for item in node.body:
                        if isinstance(item, ast.FunctionDef) and is_public(item.name):
                            yield f"{where}.{node.name}.{item.name}", item, bases

    def test_modules_say_what_they_are_for(self):
        for path, tree in self.trees.items():
            self.assertTrue(ast.get_docstring(tree), path)

    def test_everything_public_is_documented(self):
        silent = [
            where
            for where, node, bases in self.definitions()
            if not ast.get_docstring(node)
            # Flax calls the methods `setup` and `__call__`; overriding is no news.
            and not (bases is not None and inherited(node.name, bases, self.classes))
            and node.name != "setup"
        ]
        self.assertEmpty(silent)

    def test_functions_of_the_core_say_what_goes_in_and_what_comes_out(self):
        """A one-line docstring may do, where it refers to what was said elsewhere."""
        vague = []
        for where, node, bases in self.definitions():
            module = where.split(".")[1]
            text = ast.get_docstring(node) or ""
            if module not in CORE or not isinstance(node, ast.FunctionDef) or not text:
                continue
            arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
            arguments = [a for a in arguments if a not in ("self", "cls")]
            short = "\n" not in text or "`" in text.split("\n\n")[-1]
            if not arguments or ("Args:" not in text and short):
                continue
            if "Args:" not in text or not re.search("Returns:|Yields:|Raises:", text):
                vague.append(where)
                continue
            described = re.findall(r"^  \*{0,2}(\w+):", text, re.MULTILINE)
            vague += [f"{where}({a})" for a in arguments if a not in described]
        self.assertEmpty(vague)

    def test_public_names_are_there_and_listed_once(self):
        for name in wsjax.__all__:
            self.assertTrue(hasattr(wsjax, name), name)
        self.assertContainsSubset(wsjax.__all__, dir(wsjax))
        self.assertEqual(wsjax.noise.__name__, "wsjax.noise")
        with self.assertRaisesRegex(AttributeError, "no attribute 'nothing'"):
            wsjax.nothing  # noqa: B018
        self.assertLen(set(wsjax.__all__), len(wsjax.__all__))


class FilesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        files = source_files()
        if files is None:
            self.skipTest("Not a checkout.")
        self.texts = {}
        for path in files:
            try:
                self.texts[path.relative_to(ROOT)] = path.read_text()
            except UnicodeDecodeError:
                continue  # A picture.

    def test_no_path_of_one_machine(self):
        pattern = re.compile(
            r"(?<![\w.<\-/])/(?:home|root|work|Users|mnt|scratch|tmp)/\w", re.MULTILINE
        )
        found = [
            f"{path}:{text[: match.start()].count(chr(10)) + 1}: {match.group()}"
            for path, text in self.texts.items()
            for match in pattern.finditer(text)
        ]
        self.assertEmpty(found)

    def test_nothing_is_unpickled(self):
        # Files of others may run code then. Tests may show that they would.
        pattern = re.compile(
            r"(?:pickle|dill|joblib)\.loads?\(|allow_pickle\s*=\s*True"
        )
        found = [
            str(path)
            for path, text in self.texts.items()
            if path.suffix == ".py"
            and path.parts[0] != "tests"
            and pattern.search(text)
        ]
        self.assertEmpty(found)

    def test_torch_files_are_read_as_data_alone(self):
        for path, text in self.texts.items():
            if path.suffix == ".py":
                for call in re.findall(r"torch\.load\([^)]*\)", text):
                    self.assertIn("weights_only=True", call, path)


if __name__ == "__main__":
    absltest.main()
