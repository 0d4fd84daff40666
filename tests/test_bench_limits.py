"""Work is counted as arithmetic says, and set beside the limit that bounds it. No times."""

import pytest
import torch
import torch.nn.functional as F

from bench import limits


def test_a_product_has_two_flops_per_multiplication():
    a, b = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    found, flops = limits.count(lambda x: x @ b, a)
    assert found.shape == (3, 7) and flops == 2 * 3 * 5 * 7

    def both(x):
        (x @ b).sum().backward()

    assert limits.count(both, a)[1] == 2 * (2 * 3 * 5 * 7)  # and the gradient of b


def test_attention_is_counted_whichever_kernel_computes_it():
    q = torch.randn(2, 3, 8, 16, requires_grad=True)
    forward = 2 * 2 * (2 * 3 * 8 * 8 * 16)  # two products
    assert limits.count(lambda: F.scaled_dot_product_attention(q, q, q))[1] == forward
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert limits.count(lambda: F.scaled_dot_product_attention(q, q, q))[1] == forward
    _, flops = limits.count(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert flops == forward * 7 // 2


def test_a_part_has_one_limit():
    machine = {"fp32": 100.0, "bf16": 200.0, "copy": 10.0}
    part = limits.part(machine, 2.0, flops=50, precision="bf16")
    assert part == {"flops": 50, "limit": "bf16", "seconds": 2.0, "rate": 25.0, "share": 0.125}
    assert limits.part(machine, 2.0, moved=10)["share"] == 0.5
    with pytest.raises(ValueError, match="flops is 0.0, moved 0.0; accepted: one of them"):
        limits.part(machine, 2.0)


def test_the_machine_has_a_rate_for_every_precision_that_loops_run_in():
    rates = limits.machine("cpu", quick=True)
    assert {"fp32", "copy"} <= set(rates) <= {"fp32", "bf16", "copy"}
    assert all(rate > 0 for rate in rates.values())
