"""MNIST under Laplace noise on the flow plan, in a tenth of the paper's epochs.

Cosine decay from a larger learning rate reaches the accuracy of the paper's protocol
(configs/paper/mnist.py) in 20 epochs instead of 200.

  python train.py   --config=configs/paper/mnist_fast.py --config.data.dir=FOLDER
  python certify.py --config=configs/paper/mnist_fast.py --config.data.dir=FOLDER
  python attack.py  --config=configs/paper/mnist_fast.py --config.data.dir=FOLDER

FOLDER holds the four original idx files. For another noise level, pass
--config.smoothing.sigma=0.02 to all three, with another --workdir.
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
        "stride": 10,  # Every tenth test image: 1,000 of 10,000.
        "start": 0,
        "limit": 0,
    }
    config.model = {"name": "conv_small", "checkpoint": ""}
    config.smoothing = {
        "noise": "flow_laplace",
        "sigma": 0.01,  # Std. dev. per pixel edge, as a fraction of image mass.
        "ground_metric": "l2",
        "theorem": "tight",
    }
    config.train = {
        "noisy": True,
        "share_noise": False,
        "optimizer": "sgd",
        "learning_rate": 0.02,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "batch_size": 128,
        "num_epochs": 20,
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
            "epsilon": 0.3,  # First radius of the growing schedule, as published.
            "max_steps": 200,
        },
    }
    return with_defaults(config)
