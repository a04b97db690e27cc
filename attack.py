"""`wsjax attack`, from a checkout: python attack.py --config=configs/digits.py"""

from wsjax import scripts

if __name__ == "__main__":
    # Heeds signals before the imports, which take seconds.
    scripts.start("attack")
