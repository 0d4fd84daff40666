"""Figures that belong to one chapter each; what several share is in `minilib.plots`."""
