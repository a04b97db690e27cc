"""configs/cifar.py on the network twice as wide, for longer: for a GPU or TPU.

  python train.py   --config=configs/cifar_wide.py --config.data.dir=FOLDER
  python certify.py --config=configs/cifar_wide.py --config.data.dir=FOLDER
  python attack.py  --config=configs/cifar_wide.py --config.data.dir=FOLDER

FOLDER holds cifar-10-binary.tar.gz or the six files of the binary version. For larger
radii and a lower accuracy: --config.smoothing.certificate_scale=4e-4.
"""

import pathlib
import runpy

_CIFAR = pathlib.Path(__file__).with_name("cifar.py")


def get_config():
    config = runpy.run_path(str(_CIFAR))["get_config"]()
    config.model.widths = (64, 256, 256)
    config.train.batch_size = 256
    config.train.num_epochs = 60
    return config
