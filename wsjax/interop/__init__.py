"""Classifiers that were trained elsewhere."""
