"""CIFAR-10 by the published method on the network of configs/cifar.py, trained alike.

Laplace noise on the flow plan; configs/paper/cifar.py is the paper's own protocol.

  python train.py   --config=configs/paper/cifar_fast.py --config.data.dir=FOLDER
  python certify.py --config=configs/paper/cifar_fast.py --config.data.dir=FOLDER
  python attack.py  --config=configs/paper/cifar_fast.py --config.data.dir=FOLDER

FOLDER holds cifar-10-binary.tar.gz or the six files of the binary version. For another
noise level, pass --config.smoothing.sigma=1e-4 to all, with another --workdir.
"""

import ml_collections

from wsjax.runs.config import with_defaults


def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = {
        "name": "cifar10",
        "source": "files",
        "dir": "data",
        "stride": 10,  # Every tenth test image: 1,000 of 10,000.
        "start": 0,
        "limit": 0,
    }
    config.model = {
        "name": "whitened",
        "checkpoint": "",
        "widths": (32, 128, 128),
        "unit": "mass",
    }
    config.smoothing = {
        "noise": "flow_laplace",
        "sigma": 2e-4,  # Std. dev. per pixel edge, as a fraction of image mass.
        "ground_metric": "l2",
        "theorem": "tight",
    }
    config.train = {
        "objective": "consistency",
        "copies": 2,
        "consistency": 2.0,  # Weight of the divergence between the copies.
        "label_smoothing": 0.1,
        "augment": "crop_flip",
        "optimizer": "muon",
        "learning_rate": 0.02,
        "adam_learning_rate": 4e-3,
        "weight_decay": 1e-3,
        "schedule": "one_cycle",
        "batch_size": 128,
        "num_epochs": 16,
    }
    config.certify = {
        "n0": 1_000,  # Votes that pick the class.
        "n": 10_000,  # Fresh votes that bound its probability.
        "alpha": 0.05,  # Chance that a given certificate is wrong.
        "backend": "pmap",
    }
    config.attack = {
        "method": "sinkhorn",
        "target": "both",
        "sinkhorn": {
            "epsilon": 0.001,  # First radius of the growing schedule, as published.
            "epsilon_factor": 1.17,
            "max_steps": 400,
            "regularization": 3000.0,
        },
    }
    return with_defaults(config)
