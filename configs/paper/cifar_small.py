"""CIFAR-10 by the published method on a network for two CPU cores.

Laplace flow noise and the published bound, on the network and training of
configs/cifar_small.py.

  python train.py   --config=configs/paper/cifar_small.py --config.data.dir=FOLDER
  python certify.py --config=configs/paper/cifar_small.py --config.data.dir=FOLDER

FOLDER holds cifar-10-binary.tar.gz or the six files of the binary version. For another
noise level, pass --config.smoothing.sigma=1e-4 to both, with another --workdir.
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
        "name": "resnet8_strided",
        "checkpoint": "",
        "width": 16,
        "unit": "mass",
        # In units of the mean pixel; subtracted and divided by inside the network.
        "mean": (1.0,),
        "std": (0.5,),
    }
    config.smoothing = {
        "noise": "flow_laplace",
        "sigma": 2e-4,  # Std. dev. per pixel edge, as a fraction of image mass.
        "ground_metric": "l2",
        "theorem": "published",
    }
    config.train = {
        "augment": "crop_flip",
        "optimizer": "adam",
        "learning_rate": 4e-3,
        "weight_decay": 1e-4,
        "schedule": "one_cycle",
        "batch_size": 128,
        "num_epochs": 12,
    }
    config.certify = {
        "n0": 1_000,  # Votes that pick the class.
        "n": 10_000,  # Fresh votes that bound its probability.
        "alpha": 0.05,  # Chance that a given certificate is wrong.
        "block_size": 250,
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
