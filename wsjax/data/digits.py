"""The 8 x 8 digits that come inside scikit-learn: real data without any file."""

import numpy as np

from wsjax.data.dataset import Dataset, make_dataset
from wsjax.data.source import Options

# 1,797 images: 1,437 for training, 360 for testing.
NUM_TEST = 360


def load(split: str, _: Options | None = None) -> Dataset:
    """Loads scikit-learn's digits; the last 360 of the 1,797 images are the test set.

    Taking every fifth image instead would skew the classes, since the labels run
    through 0, 1, ..., 9 for long stretches: 26 to 48 test images per class, against
    33 to 37 here.

    Args:
      split: "train" or "test".

    Returns:
      The `Dataset`: `[N, 8, 8, 1]` images with pixels 0 to 16, so `scale` is 16.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits data set is part of scikit-learn, which is not installed: "
            "pip install 'wsjax[digits]'."
        ) from error
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., np.newaxis]
    chosen = slice(-NUM_TEST, None) if split == "test" else slice(None, -NUM_TEST)
    return make_dataset(
        images[chosen], bunch.target[chosen], num_classes=10, scale=16.0
    )
