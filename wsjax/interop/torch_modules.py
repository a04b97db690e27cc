"""PyTorch modules as classifiers: votes, certificates and attacks on networks as they are.

classify = from_torch(module, mean=(0.1307,), std=(0.3081,))
wsjax.FixedVotes(classify, smoothing).certify(image, key)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsjax.host import HostClassifier


def from_torch(
    module: Any,
    *,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    channels: int | None = None,
    batch_size: int | None = None,
) -> HostClassifier:
    """A classifier of images `[B, H, W, C]` made of a PyTorch module.

    What is done to an image on the way (scaling, resizing) is part of the classifier:
    certificates hold for images as they are given, in pixel units.

    Args:
      module: `torch.nn.Module`, in evaluation mode and on any device; takes
        `[B, C, H, W]` float32 and returns logits `[B, K]`, or something with an attribute
        or key `logits`.
      size: `(H, W)` that images are resized to first, bilinearly; None leaves them.
      mean: subtracted from each channel, after resizing; one entry serves all.
      std: divided by after that.
      channels: number of channels the module takes, where images have one: it is
        repeated. None leaves images as they are.
      batch_size: see `HostClassifier`.

    Returns:
      A `HostClassifier`, with a gradient.

    Raises:
      TypeError: `module` is no `torch.nn.Module`.
      ValueError: it, or a part of it, is in training mode.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"Expected a torch.nn.Module, got {type(module).__name__}; a function of NumPy "
            f"arrays goes to wsjax.HostClassifier."
        )
    training = [
        name or "the module" for name, m in module.named_modules() if m.training
    ]
    if training:
        raise ValueError(
            f"{training[0]} is in training mode ({len(training)} modules are), where "
            f"BatchNorm and Dropout answer differently each time; call module.eval()."
        )
    where = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(()))
    shift = torch.tensor(mean, dtype=torch.float32, device=where.device)
    scale = torch.tensor(std, dtype=torch.float32, device=where.device)

    def tensor(array):
        return torch.from_numpy(np.array(array, np.float32)).to(where.device)

    def logits_of(images):
        x = images.permute(0, 3, 1, 2)
        if size is not None:
            x = torch.nn.functional.interpolate(
                x, size, mode="bilinear", align_corners=False
            )
        if channels is not None and x.shape[1] == 1:
            x = x.expand(-1, channels, -1, -1)
        x = (x - shift[:, None, None]) / scale[:, None, None]
        found = module(x.to(where.dtype) if where.is_floating_point() else x)
        if isinstance(found, dict) and "logits" in found:
            found = found["logits"]
        found = getattr(found, "logits", found)
        return found.float() if isinstance(found, torch.Tensor) else found

    def function(images):
        with torch.inference_mode():
            found = logits_of(tensor(images))
            return found.cpu().numpy() if isinstance(found, torch.Tensor) else found

    def gradient(images, above):
        x = tensor(images).requires_grad_()
        with torch.enable_grad():
            total = (logits_of(x) * tensor(above)).sum()
        (found,) = torch.autograd.grad(total, x)
        return found.cpu().numpy()

    return HostClassifier(function, gradient, batch_size)
