"""CIFAR-10 by the published protocol: ResNet-18, 200 epochs of plain SGD.

Optimizer, epochs, augmentation, votes and certificate are those of Levine & Feizi's
experiments. One deliberate difference: each training image draws its own noise, where
their code shares one draw per batch; --config.train.share_noise=True does as they did.
Their rows have sigma 5e-5, 1e-4, 2e-4, 5e-4 and 1e-3.

  python train.py   --config=configs/paper/cifar.py --config.data.dir=FOLDER
  python certify.py --config=configs/paper/cifar.py --config.data.dir=FOLDER
  python attack.py  --config=configs/paper/cifar.py --config.data.dir=FOLDER

FOLDER holds cifar-10-binary.tar.gz or the six files of the binary version.
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
        "name": "resnet18_cifar",
        "checkpoint": "",
        "width": 64,
        # Subtracted and divided by inside the network, after the noise.
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
    }
    config.smoothing = {
        "noise": "flow_laplace",
        "sigma": 2e-4,  # Std. dev. per pixel edge, as a fraction of image mass.
        "ground_metric": "l2",
        "theorem": "published",
    }
    config.train = {
        "noisy": True,
        "share_noise": False,
        "augment": "crop_flip",
        "optimizer": "sgd",
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "constant",
        "batch_size": 128,
        "num_epochs": 200,
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
            "abstention_counts": True,
            "regularization": 3000.0,
        },
    }
    return with_defaults(config)
