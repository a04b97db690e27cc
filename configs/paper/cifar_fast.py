"""CIFAR-10 under Laplace noise on the flow plan, ResNet-18, 20 epochs.

One cycle of a larger learning rate stands in for the 200 epochs of the paper's
protocol (configs/paper/cifar.py). Meant for a GPU or TPU.

  python train.py   --config=configs/paper/cifar_fast.py --config.data.dir=FOLDER
  python certify.py --config=configs/paper/cifar_fast.py --config.data.dir=FOLDER
  python attack.py  --config=configs/paper/cifar_fast.py --config.data.dir=FOLDER

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
        "theorem": "tight",
    }
    config.train = {
        "noisy": True,
        "share_noise": False,
        "augment": "crop_flip",
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "one_cycle",
        "batch_size": 128,
        "num_epochs": 20,
    }
    config.certify = {
        "n0": 1_000,  # Votes that pick the class.
        "n": 10_000,  # Fresh votes that bound its probability.
        "alpha": 0.05,  # Chance that a given certificate is wrong.
        "block_size": 1_000,  # 250 or less on a CPU.
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
