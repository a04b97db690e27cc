"""Reading the paper's published PyTorch checkpoints into Flax variables.

PyTorch's restricted loader does the reading: it rebuilds tensors and plain containers
and refuses everything else, so a hostile file cannot run code.
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from wsjax.models import ConvSmall

# Positions of the layers with weights in the authors' `nn.Sequential`.
_LAYERS = {"Conv_0": 0, "Conv_1": 2, "Dense_0": 5, "Dense_1": 7}


def load_variables(
    path: str | os.PathLike, module: Any, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Reads a `.pth` state dict of the paper's MNIST network.

    The file holds the tensors `0.weight`, `0.bias` and those of layers 2, 5 and 7, with or
    without `module.` in front, either directly or under the key `net` (the
    paper's authors) or `state_dict` (Wong et al.).

    Args:
      path: the file.
      module: a `ConvSmall` of the same size.
      image_shape: `(H, W, C)` of the images it classifies.

    Returns:
      Flax variables, a dict with the key "params", with equal logits up to rounding.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: PyTorch is not installed.
      ValueError: the file is not such a checkpoint, or of another architecture.
    """
    if not isinstance(module, ConvSmall):
        raise ValueError(  # noqa: TRY004 (a config value is wrong)
            f"model.checkpoint reads the paper's MNIST network only; set "
            f"model.name to 'conv_small' (it is a {type(module).__name__})."
        )
    state = {
        name.removeprefix("module."): tensor for name, tensor in _read(path).items()
    }
    wanted = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((1, *image_shape), jnp.float32)
    )["params"]
    if wanted.keys() != _LAYERS.keys():
        raise ValueError(
            f"model.checkpoint reads networks of two convolutions only; model.widths "
            f"has {len(module.widths)} entries."
        )
    params = {}
    for layer, position in _LAYERS.items():
        try:
            weight, bias = (
                _plain(path, name, state[name])
                for name in (f"{position}.weight", f"{position}.bias")
            )
        except KeyError as error:
            raise ValueError(
                f"{path} has no tensor {error}; it holds {sorted(state)}. Expected "
                f"the paper's MNIST network, an nn.Sequential with weights at "
                f"positions {sorted(_LAYERS.values())}."
            ) from None
        if weight.ndim == 4:
            weight = weight.transpose(2, 3, 1, 0)  # OIHW -> HWIO.
        else:
            if layer == "Dense_0" and weight.ndim == 2:
                weight = _reorder_flatten(weight, image_shape, module)
            weight = weight.T
        shapes = (weight.shape, bias.shape)
        needed = (wanted[layer]["kernel"].shape, wanted[layer]["bias"].shape)
        if shapes != needed:
            raise ValueError(
                f"{path} is of another architecture: layer {position} has weights "
                f"and biases {shapes}, this config's model needs {needed}."
            )
        params[layer] = {"kernel": jnp.asarray(weight), "bias": jnp.asarray(bias)}
    return {"params": params}


def _reorder_flatten(weight, image_shape, module):
    """Columns of a dense layer over C x H x W features, put into H x W x C order."""
    channels = module.widths[-1]
    # Each convolution halves the sides, rounding down.
    height, width = (side >> len(module.widths) for side in image_shape[:2])
    if weight.shape[1] != channels * height * width:
        return weight  # The shape check that follows says what is wrong.
    weight = weight.reshape(weight.shape[0], channels, height, width)
    return weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _read(path):
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint file at model.checkpoint={path}.")
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Reading .pth checkpoints needs PyTorch: pip install 'wsjax[torch]'."
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own words advise to switch this protection off.
        raise ValueError(
            f"{path} is not a checkpoint of plain tensors, or is damaged "
            f"({type(error).__name__} while reading). Files that need arbitrary "
            f"unpickling are refused, as they may run code: save model.state_dict()."
        ) from error
    for key in ("net", "state_dict"):
        if isinstance(content, dict):
            content = content.get(key, content)
    if isinstance(content, list) and content:
        content = content[0]  # Wong et al. store a list of one state dict.
    there = content if isinstance(content, dict) else {"": content}
    if there is not content or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in there.items()
    ):
        kinds = [f"{name!r} ({type(v).__name__})" for name, v in there.items()]
        raise ValueError(
            f"{path} holds no state dict of tensors. It has {', '.join(kinds[:20])}; save "
            f"the state dict alone, or under one of the keys 'net' and 'state_dict'."
        )
    return content


def _plain(path, name, tensor):
    """A tensor as `float32` array, if it has real numbers, each of them."""
    dense = str(tensor.layout) == "torch.strided"
    if tensor.is_meta or not dense or not tensor.is_floating_point():
        form = "without content (meta)" if tensor.is_meta else tensor.layout
        raise ValueError(
            f"{path}: the tensor {name!r} is {tensor.dtype}, {form}. Save plain "
            f"floating-point numbers, such as tensor.detach().to_dense().float()."
        )
    return tensor.detach().float().numpy()
