"""What pyproject.toml cannot say: the published trials in `results/` are a part of the package."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["minilib*"]), "minilib.published"])
