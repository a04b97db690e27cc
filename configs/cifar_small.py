"""CIFAR-10 with learned noise on a network for two CPU cores.

The noise of configs/cifar.py and a residual network of 8 layers that halves the image at
once; trained as configs/paper/cifar_small.py trains it for the published method, so that
the two can be compared.

  python train.py   --config=configs/cifar_small.py --config.data.dir=FOLDER
  python certify.py --config=configs/cifar_small.py --config.data.dir=FOLDER

FOLDER holds cifar-10-binary.tar.gz or the six files of the binary version. Without
dependence between channels: --config.smoothing.couple_channels=False.
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
        "noise": "learned_spectrum",
        "certificate_scale": 2.83e-4,  # c = 1 / kappa, pixels x fraction of mass.
        "ground_metric": "l2",
        "gamma": 1.0,  # Training starts from Gaussian flow noise.
        "bins": 24,
        "couple_channels": True,
    }
    config.train = {
        "augment": "crop_flip",
        "optimizer": "adam",
        "learning_rate": 4e-3,
        "weight_decay": 1e-4,
        "noise_learning_rate": 0.03,
        "schedule": "one_cycle",
        "batch_size": 128,
        "num_epochs": 12,
    }
    config.certify = {
        "n0": 1_000,  # Votes that pick the class.
        "n": 10_000,  # Fresh votes that bound its probability.
        "alpha": 0.05,  # Chance that a given certificate is wrong.
        "use_runner_up": "auto",
        "block_size": 250,
        "backend": "pmap",
    }
    config.attack = {
        "method": "flow",  # Or one of the published ones.
        "target": "both",
        "flow": {"start_radius": 0.002},
        "sinkhorn": {
            "epsilon": 0.001,  # First radius of the growing schedule, as published.
            "epsilon_factor": 1.17,
            "max_steps": 400,
            "regularization": 3000.0,
        },
    }
    return with_defaults(config)
