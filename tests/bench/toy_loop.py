"""A loop that another process can import without all that the tests of benchmarks import."""

import torch


def build(name: str, precision: str):
    """Its step is a product of known size."""
    a = torch.ones(3, 5)
    return lambda steps: [a @ torch.ones(5, 7) for _ in range(steps)]
