"""ImageNet under Laplace noise on the flow plan, ResNet-50, 90 epochs.

Meant for several accelerators. Nothing here has been run on the full data set; the
pipeline is tested on a small folder of images.

  python train.py   --config=configs/imagenet.py --config.data.dir=FOLDER
  python certify.py --config=configs/imagenet.py --config.data.dir=FOLDER
  python attack.py  --config=configs/imagenet.py --config.data.dir=FOLDER

FOLDER holds train/CLASS/*.JPEG and val/CLASS/*.JPEG.
"""

import ml_collections

from wsjax.runs.config import with_defaults


def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = {
        "name": "imagenet",
        "source": "files",
        "dir": "data",
        "stride": 50,  # Every fiftieth validation image: 1,000 of 50,000.
        "start": 0,
        "limit": 0,
        "image_size": 224,
        "resize": 256,
    }
    config.model = {
        "name": "resnet50",
        "checkpoint": "",
        "width": 64,
        "dtype": "bfloat16",  # The classifier certified is the one in this arithmetic.
        # Subtracted and divided by inside the network, after the noise.
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    config.smoothing = {
        "noise": "flow_laplace",
        "sigma": 5e-6,  # Std. dev. per pixel edge, as a fraction of image mass.
        "ground_metric": "l2",
        "theorem": "tight",
    }
    config.train = {
        "noisy": True,
        "share_noise": False,
        "augment": "none",  # Random crops and flips happen while decoding.
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "batch_size": 256,
        "num_epochs": 90,
    }
    config.certify = {
        "n0": 1_000,  # Votes that pick the class.
        "n": 10_000,  # Fresh votes that bound its probability.
        "alpha": 0.05,  # Chance that a given certificate is wrong.
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
