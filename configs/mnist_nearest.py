"""MNIST by nearest neighbours in exact Wasserstein distance: no training, no votes.

A test image gets the class of the nearest training image, within half of what the
nearest image of another class is further away. It holds for certain, and is what
trained classifiers should beat.

  python certify.py --config=configs/mnist_nearest.py --config.data.dir=FOLDER

FOLDER holds the four original idx files. With --config.certify.neighbours=5
--config.certify.softness=inf the score of a class is the mean of its five least
distances, and with a softness of 0.08, say, a soft minimum of them; both certify more.
Any other data set that fits in memory will do as well.
"""

import ml_collections

from wsjax.runs.config import with_defaults


def get_config():
    config = ml_collections.ConfigDict()
    config.data = {
        "name": "mnist",
        "dir": "data",
        "stride": 10,  # Every tenth test image: 1,000 of 10,000.
    }
    config.certify = {
        "method": "nearest",
        "neighbours": 1,  # Images of a class that its score depends on,
        "softness": 0.0,  # by their minimum; inf: by their mean. Pixels x fraction.
        "ground_metric": "l2",
    }
    return with_defaults(config)
