"""Muon: its update against a decomposition, its steps against a plain loop and against SGD."""

import numpy as np
import pytest
import torch
from torch import nn

from minilib.training.fitting import CycleSettings, fit
from minilib.training.muon import QUINTIC, Muon, MuonSettings, orthogonalised


def by_decomposition(matrix, rounds=3):
    """The same polynomial, on the singular values themselves, in double precision."""
    a, b, c = QUINTIC
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(rounds):
        s = a * s + b * s**3 + c * s**5
    return u * s @ v


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_an_update_is_the_polynomial_of_the_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours = orthogonalised(matrix)
    assert ours.dtype == torch.float32 and ours.shape == shape
    exact = by_decomposition(matrix)
    assert (ours - exact).norm() < 0.05 * exact.norm()  # of bfloat16's eight bits
    # The size of a gradient says nothing, and none gives no step.
    assert (orthogonalised(1e-3 * matrix) - ours).norm() < 0.05 * exact.norm()
    assert not orthogonalised(torch.zeros(shape)).any()


def test_five_rounds_make_singular_values_nearly_equal():
    values = torch.tensor([1.0, 0.5, 0.1, 0.03])
    matrix = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(2)))[0]
    singular = torch.linalg.svdvals(orthogonalised(matrix * values, 5))
    assert (0.6 < singular).all() and (singular < 1.3).all()


def test_what_is_no_kernel_is_trained_by_sgd():
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ends = []
    for make in (MuonSettings(), CycleSettings()):
        network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        network.load_state_dict(start.state_dict())
        optimizer = make.optimizer(list(network.parameters()))
        for seed in range(5):
            x = torch.randn(16, 5, generator=torch.Generator().manual_seed(seed))
            network(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(nn.utils.parameters_to_vector(network.parameters()))
    torch.testing.assert_close(*ends)


def test_steps_of_kernels_equal_a_plain_loop():
    """Kernels lie channels last, as in the networks here, and the loop's do not."""
    torch.manual_seed(3)
    weight = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    plain, moved = weight.detach().clone().contiguous(), torch.zeros(4, 3, 3, 3)
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5, kernel_momentum=0.7)
    for seed in range(3):
        gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
        weight.grad = gradient.clone()
        optimizer.step()
        plain = 2 * plain / plain.norm()  # of four rows: no decay changes a kernel
        moved = 0.7 * moved + gradient
        matrix = (gradient + 0.7 * moved).reshape(4, 27)
        plain = plain - 0.1 * by_decomposition(matrix).float().reshape(4, 3, 3, 3)
    torch.testing.assert_close(weight.detach(), plain, atol=5e-3, rtol=0)


class Batches:
    """One batch of noise, ten times a pass."""

    def __len__(self):
        return 10

    def __call__(self, rng):
        for _ in range(10):
            yield torch.as_tensor(rng.standard_normal((8, 3, 6, 6)), dtype=torch.float32)


def test_fit_moves_the_rate_of_both_groups():
    """The rate is of both; a network without a kernel, or of kernels alone, has one group."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    network[0].bias.requires_grad_(False)
    rates, how = [], MuonSettings(epochs=2, lr=0.2)
    optimizer = how.optimizer(list(network.parameters()))
    optimizer.register_step_post_hook(
        lambda made, *_: rates.append([group["lr"] for group in made.param_groups])
    )
    object.__setattr__(how, "optimizer", lambda parameters: optimizer)

    def loss(model, x):
        value = model(x).square().mean()
        return value, {"loss": value.detach()}

    history = fit(network, Batches(), loss, how)
    rates = np.array(rates)
    assert rates.shape == (20, 2) and (rates[:, 0] == rates[:, 1]).all()
    assert rates[:, 0].argmax() in (3, 4) and rates[-1, 0] == pytest.approx(0.2 / 20)
    assert history[-1]["loss"] < history[0]["loss"]
    assert len(Muon([nn.Parameter(torch.ones(2))], 0.1).param_groups) == 1
