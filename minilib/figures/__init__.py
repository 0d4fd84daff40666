"""Figures and tables of single chapters; what several share is in ``minilib.plots``."""
