"""`python -m wsjax` is the command `wsjax`."""

from wsjax import scripts

if __name__ == "__main__":
    scripts.main()
