"""CIFAR-10 under Gaussian noise whose spectrum is learned with the network.

Noise of the three channels is dependent, at every frequency in its own way, and its
spectrum is trained together with the network at a fixed certificate scale: a class
probability p certifies the radius c Phi^-1(p). Two CPU cores train the network in two
hours; configs/cifar_wide.py has it twice as wide for a GPU, and
configs/paper/cifar_fast.py has the published method on it. Above radii of .001,
configs/cifar_potentials.py certifies more images, in seconds and without votes.

  python train.py   --config=configs/cifar.py --config.data.dir=FOLDER
  python certify.py --config=configs/cifar.py --config.data.dir=FOLDER
  python attack.py  --config=configs/cifar.py --config.data.dir=FOLDER

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
        "name": "whitened",
        "checkpoint": "",
        "widths": (32, 128, 128),
        "unit": "mass",
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
        "objective": "consistency",
        "copies": 2,
        "consistency": 2.0,  # Weight of the divergence between the copies.
        "label_smoothing": 0.1,
        "augment": "crop_flip",
        "optimizer": "muon",
        "learning_rate": 0.02,
        "adam_learning_rate": 4e-3,
        "weight_decay": 1e-3,
        "noise_learning_rate": 0.03,
        "schedule": "one_cycle",
        "batch_size": 128,
        "num_epochs": 16,
    }
    config.certify = {
        "n0": 1_000,  # Votes that pick the class.
        "n": 10_000,  # Fresh votes that bound its probability.
        "alpha": 0.05,  # Chance that a given certificate is wrong.
        "use_runner_up": "auto",
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
