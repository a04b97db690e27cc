"""ONNX files as classifiers, run by ONNX Runtime.

classify = from_onnx("classifier.onnx")
wsjax.FixedVotes(classify, smoothing).certify(image, key)
"""

import os
from collections.abc import Sequence

import jax
import numpy as np

from wsjax.host import HostClassifier


def from_onnx(
    path: str | os.PathLike,
    *,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    channels: int | None = None,
    channels_last: bool = False,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> HostClassifier:
    """A classifier of images `[B, H, W, C]` made of an ONNX file; it has no gradient.

    An ONNX file holds a graph of known operations and no code.

    Args:
      path: of the file; its graph has one input, of float32 images, and its first output
        is logits `[B, K]`.
      size: as in `torch_modules.from_torch`, and so the next three. By default what the
        file says, if that differs from the images.
      mean: see there.
      std: see there.
      channels: see there. By default what the file says.
      channels_last: whether the input is `[B, H, W, C]` instead of `[B, C, H, W]`.
      providers: of ONNX Runtime, best first.

    Returns:
      A `HostClassifier`. Where the file fixes the number of images, it gets so many.

    Raises:
      ImportError: ONNX Runtime is not installed.
      ValueError: the file has several inputs, or one that is not of images; or it is no
        ONNX file.
      FileNotFoundError: there is no such file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "ONNX files need ONNX Runtime: pip install 'wsjax[onnx]'."
        ) from error
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        session = onnxruntime.InferenceSession(path, providers=list(providers))
    except Exception as error:
        raise ValueError(f"{path} is no ONNX file that can be run: {error}") from error
    inputs = session.get_inputs()
    if (
        len(inputs) != 1
        or len(inputs[0].shape) != 4
        or inputs[0].type != "tensor(float)"
    ):
        told = [(one.name, one.shape, one.type) for one in inputs]
        raise ValueError(
            f"{path} takes {told}; a classifier takes one input of float32 images with "
            f"four axes."
        )
    count, *axes = (x if isinstance(x, int) else None for x in inputs[0].shape)
    if not channels_last:
        axes = [*axes[1:], axes[0]]
    height, width, depth = axes
    if size is None and height is not None and width is not None:
        size = (height, width)
    channels = depth if channels is None else channels
    name, output = inputs[0].name, session.get_outputs()[0].name
    shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def function(images):
        x = images
        if size is not None and x.shape[1:3] != tuple(size):
            shape = (len(x), *size, x.shape[3])
            x = np.asarray(jax.image.resize(x, shape, "linear", antialias=False))
        if channels is not None and x.shape[3] == 1:
            x = np.broadcast_to(x, (*x.shape[:3], channels))
        x = (x - shift) / scale
        if not channels_last:
            x = np.moveaxis(x, 3, 1)
        return session.run([output], {name: np.ascontiguousarray(x, np.float32)})[0]

    return HostClassifier(function, batch_size=count)
