"""MNIST by a network that is 1-Lipschitz in the Wasserstein distance: no votes.

Its scores certify half of their lead with one forward pass, for certain. Best of all kinds
at radii of .05 and more; for clean accuracy see configs/mnist.py.

  python train.py   --config=configs/mnist_potentials.py --config.data.dir=FOLDER
  python certify.py --config=configs/mnist_potentials.py --config.data.dir=FOLDER
  python attack.py  --config=configs/mnist_potentials.py --config.data.dir=FOLDER

FOLDER holds the four original idx files. `train.radius` is what it is trained for: a
larger one gives larger radii to fewer images.
"""

import ml_collections

from wsjax.runs.config import with_defaults


def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = {
        "name": "mnist",
        "source": "files",
        "dir": "data",
        "stride": 1,  # All 10,000 test images: it takes seconds.
    }
    config.model = {
        "name": "potentials",
        "checkpoint": "",
        "potentials": 1792,
        "widths": (512,),
        "groups": (16, 4),  # Numbers that are sorted together.
        "head": "pairs",
        "ground_metric": "l2",
    }
    config.train = {
        "objective": "radius",
        "radius": 0.21,  # Pixels x fraction of mass,
        "temperature": 0.025,  # likewise.
        "optimizer": "adam",
        "learning_rate": 7e-3,
        "potential_learning_rate": 0.08,
        "bias_learning_rate": 4e-3,
        "schedule": "one_cycle",
        "batch_size": 64,
        "num_epochs": 20,
    }
    config.certify = {"method": "lipschitz"}
    config.attack = {"method": "flow", "target": "base"}
    return with_defaults(config)
