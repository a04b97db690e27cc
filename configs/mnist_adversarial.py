"""MNIST trained on images that are moved against the classifier, without noise.

Min-max training in a Wasserstein ball: every step moves its images as far against the
classifier as a few projected gradient steps find, then descends on the loss there. What
comes out is meant for attack.py, which measures how far its images have to move. A
certificate asks the classifier under noise, which this one has never seen.

  python train.py   --config=configs/mnist_adversarial.py --config.data.dir=FOLDER
  python attack.py  --config=configs/mnist_adversarial.py --config.data.dir=FOLDER
  python certify.py --config=configs/mnist_adversarial.py --config.data.dir=FOLDER

FOLDER holds the four original idx files. For another ball pass
--config.train.ball_radius=0.2 to all three, with another --workdir.
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
        "noise": "flow_laplace",  # Of certificates only.
        "sigma": 0.01,  # Std. dev. per pixel edge, as a fraction of image mass.
        "ground_metric": "l2",  # Of the ball as well.
        "theorem": "tight",
    }
    config.train = {
        "noisy": False,
        "objective": "flow_adversarial",
        "ball_radius": 0.3,  # Pixels x fraction of mass,
        "ball_warmup": 0.3,  # reached after this fraction of training.
        "ball_steps": 7,
        "ball_inner_steps": 5,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "batch_size": 128,
        "num_epochs": 10,
    }
    config.certify = {
        "n0": 1_000,  # Votes that pick the class.
        "n": 10_000,  # Fresh votes that bound its probability.
        "alpha": 0.05,  # Chance that a given certificate is wrong.
        "backend": "pmap",
    }
    config.attack = {
        "method": "flow",  # Or one of the published ones.
        "target": "base",
        "sinkhorn": {
            "epsilon": 0.3,  # First radius of the growing schedule, as published.
            "max_steps": 200,
        },
    }
    return with_defaults(config)
