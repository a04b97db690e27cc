"""Handwritten digits of 8 x 8 pixels that come with scikit-learn: a quick tour.

No download. The recipe is `configs/mnist.py` at the size of these images.

  python train.py   --config=configs/digits.py
  python certify.py --config=configs/digits.py
  python attack.py  --config=configs/digits.py
"""

import ml_collections

from wsjax.runs.config import with_defaults


def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = {"name": "digits", "stride": 1, "start": 0, "limit": 0}
    config.model = {
        "name": "mlp",
        "checkpoint": "",
        "widths": (256, 256),
        "unit": "mass",
    }
    config.smoothing = {
        "noise": "learned_view",
        "certificate_scale": 0.015,  # c = 1 / kappa, pixels x fraction of mass.
        "ground_metric": "l2",
        "waves": 3,  # The view starts from 48 waves.
    }
    config.train = {
        "objective": "consistency",
        "copies": 2,
        "consistency": 2.0,  # Weight of the divergence between the copies.
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "noise_learning_rate": 0.03,
        "schedule": "one_cycle",
        "batch_size": 32,
        "num_epochs": 40,
        "checkpoint_every": 20,
        "evaluate_every": 20,
    }
    config.certify = {
        "n0": 1_000,  # Votes that pick the class.
        "n": 10_000,  # Fresh votes that bound its probability.
        "alpha": 0.05,  # Chance that a given certificate is wrong.
        "use_runner_up": "auto",
        "block_size": 500,
    }
    config.attack = {
        "method": "flow",  # Or one of the published ones.
        "target": "both",
        "n": 2_000,  # Votes per answer of the smoothed classifier.
        "pictures": 6,
        "flow": {"start_radius": 0.05},
        "sinkhorn": {
            "epsilon": 0.02,  # First radius of the growing schedule,
            "epsilon_factor": 1.25,  # multiplied by this
            "epsilon_every": 5,  # every so many steps.
            "max_steps": 150,
        },
    }
    return with_defaults(config)
