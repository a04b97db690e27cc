"""PyTorch modules and ONNX files as classifiers."""

import importlib.util
import pathlib
import tempfile
import unittest

import jax
import numpy as np
from absl.testing import absltest, parameterized

import wsjax
from wsjax import make_key
from wsjax.interop.onnx_files import from_onnx
from wsjax.interop.torch_modules import from_torch

IMAGES = np.random.default_rng(0).uniform(0, 1, (5, 6, 4, 2)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)


def missing(*names):
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return unittest.skipIf(absent, f"{' and '.join(absent)} not installed")


def means_by_channel(images):
    """What every network here is: weighted means of the channels."""
    return images.mean((1, 2)) @ WEIGHTS.T


@missing("torch")
class TorchTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        import torch

        class Means(torch.nn.Module):
            def __init__(self, answer=lambda x: x):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.from_numpy(WEIGHTS.copy()))
                self.answer = answer

            def forward(self, x):
                self.seen = x
                return self.answer(x.mean((2, 3)) @ self.weight.T)

        self.torch, self.module = torch, Means().eval()
        self.of_answer = lambda answer: Means(answer).eval()

    def test_images_arrive_with_channels_first_and_prepared(self):
        classify = from_torch(self.module, mean=(0.5, 0.25), std=(2.0,))
        expected = means_by_channel((IMAGES - [0.5, 0.25]) / 2)
        np.testing.assert_allclose(classify(IMAGES), expected, rtol=1e-4)
        self.assertEqual(self.module.seen.shape, (5, 2, 6, 4))

    def test_images_are_resized_and_one_channel_is_repeated(self):
        classify = from_torch(self.module, size=(12, 8), channels=2)
        classify(IMAGES[..., :1])
        self.assertEqual(self.module.seen.shape, (5, 2, 12, 8))
        seen = self.module.seen.numpy()
        np.testing.assert_array_equal(seen[:, 0], seen[:, 1])
        # Halfway between neighbours there is their mixture.
        np.testing.assert_allclose(
            seen[:, 0, 1, 0], 0.75 * IMAGES[:, 0, 0, 0] + 0.25 * IMAGES[:, 1, 0, 0]
        )

    def test_gradients_are_those_of_everything_that_is_done(self):
        classify = from_torch(self.module, size=(12, 8), std=(0.5,))
        above = np.arange(15.0, dtype=np.float32).reshape(5, 3)
        found = jax.grad(lambda x: (above * classify(x)).sum())(IMAGES)
        # Bilinear resizing to twice the size keeps sums but for a factor.
        expected = above @ WEIGHTS / 0.5 / 24
        np.testing.assert_allclose(
            found, np.broadcast_to(expected[:, None, None], IMAGES.shape), rtol=1e-4
        )

    def test_logits_may_be_in_an_answer_and_weights_in_half_precision(self):
        for answer in (lambda x: {"logits": x}, lambda x: Answer(x)):
            classify = from_torch(self.of_answer(answer))
            np.testing.assert_allclose(
                classify(IMAGES), means_by_channel(IMAGES), rtol=1e-4
            )
        half = from_torch(self.of_answer(lambda x: x).bfloat16())(IMAGES)
        np.testing.assert_allclose(half, means_by_channel(IMAGES), atol=0.05)
        self.assertEqual(half.dtype, np.float32)
        with self.assertRaisesRegex(TypeError, "a tuple of 2"):
            from_torch(self.of_answer(lambda x: (x, x)))(IMAGES)

    def test_refuses_other_things_and_modules_in_training(self):
        with self.assertRaisesRegex(TypeError, "got function"):
            from_torch(means_by_channel)
        norm = self.torch.nn.BatchNorm2d(2)
        module = self.torch.nn.Sequential(norm, self.torch.nn.Flatten()).eval()
        from_torch(module)
        norm.train()
        with self.assertRaisesRegex(ValueError, "^0 is in training mode.*eval"):
            from_torch(module)

    def test_certifies(self):
        smoothing = wsjax.make_smoothing("flow_laplace", sigma=1e-3, ground_metric="l2")
        certifier = wsjax.FixedVotes(
            from_torch(self.module), smoothing, n0=50, n=200, alpha=0.05
        )
        certificate = certifier.certify(IMAGES[0], make_key(0))
        self.assertEqual(certificate.label, means_by_channel(IMAGES[:1]).argmax())
        self.assertGreater(certificate.radius, 0)


class Answer:
    def __init__(self, logits):
        self.logits = logits


@missing("onnx", "onnxruntime")
class OnnxTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = pathlib.Path(folder, "some.onnx")

    def saved(self, shape, last=False, element=1):
        """File of a graph that makes weighted means of the channels."""
        from onnx import helper, numpy_helper, save

        nodes = [
            helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
            helper.make_node("MatMul", ["means", "weights"], ["logits"]),
        ]
        axes = np.array([1, 2] if last else [2, 3])
        constants = {"axes": axes, "weights": WEIGHTS.T}
        graph = helper.make_graph(
            nodes,
            "means",
            [helper.make_tensor_value_info("x", element, shape)],
            [helper.make_tensor_value_info("logits", element, [shape[0], 3])],
            [numpy_helper.from_array(value, n) for n, value in constants.items()],
        )
        opsets = [helper.make_opsetid("", 18)]
        save(helper.make_model(graph, opset_imports=opsets, ir_version=9), self.path)
        return self.path

    @parameterized.parameters(
        (["n", 2, "h", "w"], False), ([3, 2, 6, 4], False), (["n", 6, 4, 2], True)
    )
    def test_logits_are_those_of_the_graph(self, shape, last):
        classify = from_onnx(
            self.saved(shape, last), mean=(0.5, 0.25), std=(2.0,), channels_last=last
        )
        expected = means_by_channel((IMAGES - [0.5, 0.25]) / 2)
        np.testing.assert_allclose(classify(IMAGES), expected, rtol=1e-4, atol=1e-6)

    def test_images_become_what_the_file_takes(self):
        classify = from_onnx(self.saved(["n", 2, 12, 8]))
        # Twice the size, bilinearly: the same means.
        np.testing.assert_allclose(
            classify(IMAGES[..., :1]),
            means_by_channel(IMAGES[..., [0, 0]]),
            rtol=1e-4,
        )

    def test_refuses_what_is_no_classifier_of_images(self):
        with self.assertRaisesRegex(FileNotFoundError, "There is no file"):
            from_onnx("nowhere.onnx")
        self.path.write_bytes(b"\x08\x07junk")
        with self.assertRaisesRegex(ValueError, "is no ONNX file that can be run"):
            from_onnx(self.path)
        with self.assertRaisesRegex(ValueError, r"takes \[\('x', \['n', 3\].*float32"):
            from_onnx(self.flat())

    def flat(self):
        from onnx import helper, save

        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "flat",
            [helper.make_tensor_value_info("x", 1, ["n", 3])],
            [helper.make_tensor_value_info("y", 1, ["n", 3])],
        )
        opsets = [helper.make_opsetid("", 18)]
        save(helper.make_model(graph, opset_imports=opsets, ir_version=9), self.path)
        return self.path


if __name__ == "__main__":
    absltest.main()
