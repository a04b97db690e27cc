"""MNIST under Gaussian noise whose shape is learned with the classifier.

Best of all kinds in clean accuracy and at radii below .05; above,
configs/mnist_potentials.py certifies more images, in seconds and without votes.

A linear view of the image is trained together with dense layers, at a fixed
certificate scale: a class probability p certifies the radius c Phi^-1(p). Training
asks two noisy copies of each image for the same answer. The paper's protocol is in
configs/paper/mnist.py.

  python train.py   --config=configs/mnist.py --config.data.dir=FOLDER
  python certify.py --config=configs/mnist.py --config.data.dir=FOLDER
  python attack.py  --config=configs/mnist.py --config.data.dir=FOLDER

FOLDER holds the four original idx files. For other points of the trade-off between
accuracy and radius pass --config.smoothing.certificate_scale=0.12 to all three, with
another --workdir.
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
    config.model = {
        "name": "mlp",
        "checkpoint": "",
        "widths": (512, 512),
        "unit": "mass",
    }
    config.smoothing = {
        "noise": "learned_view",
        "certificate_scale": 0.06,  # c = 1 / kappa, pixels x fraction of mass.
        "ground_metric": "l2",
        "waves": 4,  # The view starts from 80 waves.
    }
    config.train = {
        "objective": "consistency",
        "copies": 2,
        "consistency": 5.0,  # Weight of the divergence between the copies.
        "augment": "affine",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "noise_learning_rate": 0.1,
        "schedule": "one_cycle",
        "batch_size": 256,
        "num_epochs": 20,
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
        "sinkhorn": {
            "epsilon": 0.3,  # First radius of the growing schedule, as published.
            "max_steps": 200,
        },
    }
    return with_defaults(config)
