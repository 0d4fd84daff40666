"""Figures of single chapters; what several chapters draw stands in ``plots``."""
