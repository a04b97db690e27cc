"""Certifiers: everything that knows how to certify images, behind one interface."""
