"""`wsjax train`, from a checkout: python train.py --config=configs/digits.py"""

from wsjax import scripts

if __name__ == "__main__":
    # Heeds signals before the imports, which take seconds.
    scripts.start("train")
