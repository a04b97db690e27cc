"""Training of base classifiers with Optax; knows nothing of certificates."""
