"""MNIST by the published protocol: Laplace flow noise, 200 epochs of plain SGD.

Optimizer, epochs, votes and certificate are those of Levine & Feizi's experiments.
One deliberate difference: each training image draws its own noise, where their code
shares one draw per batch; --config.train.share_noise=True does as they did.

  python train.py   --config=configs/paper/mnist.py --config.data.dir=FOLDER
  python certify.py --config=configs/paper/mnist.py --config.data.dir=FOLDER

The rows of the published tables differ in two settings:
  --config.smoothing.sigma=0.005 | 0.01 | 0.02 | 0.05
  --config.smoothing.noise=flow_laplace | pixel_laplace
`python benchmarks/reproduce_mnist.py` runs them all.
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
        "stride": 10,
        "start": 0,
        "limit": 0,
    }
    config.model = {"name": "conv_small", "checkpoint": ""}
    config.smoothing = {
        "noise": "flow_laplace",
        "sigma": 0.01,  # Std. dev. per pixel edge, as a fraction of image mass.
        "ground_metric": "l2",
        "theorem": "published",
    }
    config.train = {
        "noisy": True,
        "share_noise": False,
        "optimizer": "sgd",
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "constant",
        "batch_size": 128,
        "num_epochs": 200,
        "evaluate_every": 10,
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
            "epsilon": 0.3,
            "max_steps": 200,
            "ground_metric": "l2",  # Cost (di^2 + dj^2)^(power / 2) inside the window,
            "power": 1.0,
            "kernel_size": 5,
            "regularization": 1_000.0,  # lambda; larger is closer to the exact ball.
            "abstention_counts": True,
        },
    }
    return with_defaults(config)
