"""Tests of wsjax.interop: PyTorch checkpoints of the paper's MNIST network."""

import collections
import os
import pathlib
import pickle
import sys
import tempfile
import zipfile
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import models
from wsjax.interop import torch_checkpoints
from wsjax.runs import config, trained

try:
    import torch
except ImportError:
    torch = None

SHAPE = (9, 13, 2)
SMALL = models.create("conv_small", 4, widths=(3, 5), hidden=7)


def load(path, module=SMALL, shape=SHAPE):
    return torch_checkpoints.load_variables(path, module, shape)


class Folder(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)
        self.path = self.folder / "classifier.pth"


@absltest.skipIf(torch is None, "PyTorch is not installed.")
class LoadTest(Folder):
    def network(self, shape=SHAPE, widths=(3, 5), hidden=7, classes=4):
        """The authors' `nn.Sequential`, for any size."""
        height, width, channels = shape
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(channels, widths[0], 4, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(widths[0], widths[1], 4, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(widths[1] * (height // 4) * (width // 4), hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, classes),
        )

    def save(self, content):
        torch.save(content, self.path)
        return self.path

    def assert_same_logits(self, network, variables, module, shape):
        images = np.random.default_rng(0).uniform(-1, 2, (3, *shape))
        images = images.astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
        actual = models.classifier(module, variables)(images)
        chex.assert_trees_all_close(np.asarray(actual), expected, atol=1e-4)
        self.assertGreater(expected.std(), 0.01)

    @parameterized.parameters((8, 8, 1), (28, 28, 1), (9, 13, 2), (14, 5, 3))
    def test_logits_are_those_of_torch(self, *shape):
        network = self.network(shape)
        variables = load(self.save(network.state_dict()), SMALL, shape)
        self.assert_same_logits(network, variables, SMALL, shape)

    def test_reads_the_network_of_the_paper(self):
        module, shape = models.create("conv_small", 10), (28, 28, 1)
        network = self.network(shape, (16, 32), 100, 10)
        variables = load(self.save({"net": network.state_dict()}), module, shape)
        sizes = [x.size for x in jax.tree.leaves(variables)]
        self.assertEqual(sum(sizes), 166_406)
        self.assert_same_logits(network, variables, module, shape)

    @parameterized.named_parameters(
        ("bare", lambda state: state),
        ("parallel", lambda state: {f"module.{k}": v for k, v in state.items()}),
        ("net", lambda state: {"net": state, "acc": 97.5, "epoch": 199}),
        (
            "net_parallel",
            lambda state: {"net": {f"module.{k}": v for k, v in state.items()}},
        ),
        ("state_dict", lambda state: {"state_dict": state}),
        ("list", lambda state: {"state_dict": [state], "err": 0.1, "epoch": 3}),
        ("net_list", lambda state: {"net": [state]}),
        ("bare_list", lambda state: [state]),
        ("ordered", collections.OrderedDict),
        (
            "learnable",
            lambda state: {k: torch.nn.Parameter(v) for k, v in state.items()},
        ),
        ("double", lambda state: {k: v.double() for k, v in state.items()}),
    )
    def test_reads_every_form(self, form):
        network = self.network()
        state = dict(network.state_dict())
        variables = load(self.save(form(state)))
        self.assert_same_logits(network, variables, SMALL, SHAPE)
        for leaf in jax.tree.leaves(variables):
            self.assertEqual(leaf.dtype, np.float32)

    def test_tensors_that_nobody_asks_for_may_be_anything(self):
        network = self.network()
        state = {**network.state_dict(), "1.num_batches_tracked": torch.tensor(3)}
        self.assert_same_logits(network, load(self.save(state)), SMALL, SHAPE)

    def test_reads_half_precision(self):
        state = self.network().state_dict()
        halves = {k: v.to(torch.bfloat16) for k, v in state.items()}
        variables = load(self.save(halves))
        chex.assert_trees_all_close(
            variables, load(self.save(state)), rtol=1e-2, atol=1e-3
        )

    def test_is_what_the_config_names(self):
        class Digits:
            name, num_classes, image_shape = "digits", 4, (8, 8, 1)

        network = self.network((8, 8, 1))
        model = {"name": "conv_small", "widths": (3, 5), "hidden": 7}
        model["checkpoint"] = str(self.save(network.state_dict()))
        settings = config.resolve(
            {
                "data": {"name": "digits"},
                "model": model,
                "smoothing": {
                    "noise": "flow_laplace",
                    "sigma": 1.0,
                    "ground_metric": "l1",
                },
                "train": {"learning_rate": 1.0, "batch_size": 1, "num_epochs": 1},
                "certify": {"n0": 1, "n": 1, "alpha": 0.1},
            }
        )
        classify, _ = trained.restore(settings, self.folder, Digits)
        self.assert_same_logits(network, classify.args[0], SMALL, (8, 8, 1))

    def test_a_hostile_file_runs_no_code(self):
        victim = self.folder / "created"

        class Hostile:
            def __reduce__(self):
                return os.system, (f"touch {victim}",)

        plain = pickle.dumps({"net": Hostile()}, protocol=2)
        self.path.write_bytes(plain)
        pickle.loads(plain)
        self.assertTrue(victim.exists())
        for save in (
            lambda: self.path.write_bytes(plain),
            lambda: torch.save({"net": Hostile()}, self.path),
            lambda: torch.save(
                {"net": Hostile()}, self.path, _use_new_zipfile_serialization=False
            ),
        ):
            victim.unlink(missing_ok=True)
            save()
            with self.assertRaisesRegex(ValueError, "classifier.pth .*are refused"):
                load(self.path)
            self.assertFalse(victim.exists())

    @parameterized.named_parameters(
        ("empty", b""),
        ("garbage", bytes(range(256)) * 40),
        ("text", b"<html>404</html>\n"),
    )
    def test_refuses_what_is_no_checkpoint(self, content):
        self.path.write_bytes(content)
        with self.assertRaisesRegex(ValueError, "classifier.pth is not a checkpoint"):
            load(self.path)

    def test_refuses_a_truncated_file(self):
        content = self.save(self.network().state_dict()).read_bytes()
        for size in (10, len(content) // 2, len(content) - 1):
            self.path.write_bytes(content[:size])
            with self.assertRaisesRegex(ValueError, "classifier.pth is not a check"):
                load(self.path)

    def test_refuses_a_zip_of_something_else(self):
        with zipfile.ZipFile(self.path, "w") as file:
            file.writestr("notes.txt", "hello")
        with self.assertRaisesRegex(ValueError, "is not a checkpoint"):
            load(self.path)

    @parameterized.named_parameters(
        ("number", lambda state: 3.0),
        ("nothing", lambda state: []),
        ("mixed", lambda state: {**state, "epoch": 3}),
        ("numbered", lambda state: {0: state["0.weight"]}),
        ("deeper", lambda state: {"model": state}),
    )
    def test_refuses_other_content(self, form):
        state = dict(self.network().state_dict())
        with self.assertRaisesRegex(ValueError, "holds no state dict of tensors"):
            load(self.save(form(state)))

    def test_lists_what_is_there_instead(self):
        state = dict(self.network().state_dict())
        with self.assertRaisesRegex(
            ValueError, r"'model' \(dict\), 'epoch' \(int\); save the state dict alone"
        ):
            load(self.save({"model": state, "epoch": 3}))

    @parameterized.named_parameters(
        ("sparse", lambda t: t.to_sparse(), "torch.sparse_coo"),
        ("meta", lambda t: t.to("meta"), "without content"),
        ("complex", lambda t: t.to(torch.complex64), "torch.complex64"),
        ("whole", lambda t: t.to(torch.int32), "torch.int32"),
    )
    def test_refuses_tensors_that_are_no_plain_numbers(self, change, message):
        state = dict(self.network().state_dict())
        state["2.weight"] = change(state["2.weight"])
        with self.assertRaisesRegex(ValueError, f"classifier.pth.*({message})"):
            load(self.save(state))

    def test_never_advises_to_switch_the_protection_off(self):
        self.save({"net": self.network()})
        with self.assertRaisesRegex(ValueError, "are refused") as caught:
            load(self.path)
        self.assertNotIn("weights_only", str(caught.exception))

    def test_names_a_missing_tensor(self):
        state = self.network().state_dict()
        del state["5.bias"]
        with self.assertRaisesRegex(ValueError, r"no tensor '5.bias'.*'5.weight'"):
            load(self.save(state))

    @parameterized.named_parameters(
        ("widths", {"widths": (3, 6)}, "layer 2"),
        ("hidden", {"hidden": 8}, "layer 5"),
        ("classes", {"classes": 3}, "layer 7"),
        ("image", {"shape": (8, 12, 2)}, None),
        ("larger_image", {"shape": (12, 13, 2)}, "layer 5"),
        ("colours", {"shape": (9, 13, 3)}, "layer 0"),
    )
    def test_names_the_layer_of_another_architecture(self, changes, layer):
        network = self.network(**changes)
        path = self.save(network.state_dict())
        if layer is None:  # Sides are halved rounding down: nothing can tell.
            self.assert_same_logits(network, load(path), SMALL, SHAPE)
            return
        with self.assertRaisesRegex(ValueError, f"another architecture: {layer} has"):
            load(path)

    def test_refuses_tensors_of_another_rank(self):
        for name, tensor in {
            "0.weight": torch.zeros(3),
            "5.weight": torch.zeros(()),
            "7.weight": torch.zeros(4, 7, 1),
            "2.bias": torch.zeros(5, 1),
        }.items():
            state = {**self.network().state_dict(), name: tensor}
            with self.assertRaisesRegex(ValueError, "another architecture"):
                load(self.save(state))

    def test_without_torch_names_the_extra(self):
        self.save(self.network().state_dict())
        with (
            mock.patch.dict(sys.modules, {"torch": None}),
            self.assertRaisesRegex(ImportError, r"pip install 'wsjax\[torch\]'"),
        ):
            load(self.path)


class RefusalTest(Folder):
    """What is refused before PyTorch is asked for."""

    def test_missing_file(self):
        for path in (self.path, self.folder):
            with self.assertRaisesRegex(FileNotFoundError, f"checkpoint={path}"):
                load(path)

    def test_other_networks(self):
        with self.assertRaisesRegex(ValueError, "MNIST network only.*ResNet"):
            load(self.path, models.create("resnet18_cifar", 10))

    def test_without_torch_names_the_extra(self):
        self.path.write_bytes(b"something")
        with (
            mock.patch.dict(sys.modules, {"torch": None}),
            self.assertRaisesRegex(ImportError, r"pip install 'wsjax\[torch\]'"),
        ):
            load(self.path)

    @absltest.skipIf(torch is None, "PyTorch is not installed.")
    def test_networks_of_another_depth(self):
        torch.save({}, self.path)
        for widths in ((3,), (3, 5, 5)):
            deeper = models.create("conv_small", 4, widths=widths)
            with self.assertRaisesRegex(ValueError, f"widths has {len(widths)} entr"):
                load(self.path, deeper, (28, 28, 1))


if __name__ == "__main__":
    absltest.main()
