"""Properties of a GPU that the simulated device shares and other tests depend on."""

import pytest
import torch

from tests.simulated_gpu.device import Counting, faults, used_bytes

pytestmark = pytest.mark.simulated_gpu


def test_it_computes_as_the_cpu_does() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 16, generator=generator), torch.randn(16, 4, generator=generator)
    on_device = (a.cuda() @ b.cuda()).softmax(-1)[:, ::2]
    assert on_device.device == torch.device("cuda", 0)
    assert torch.equal(on_device.cpu(), (a @ b).softmax(-1)[:, ::2])


def test_views_share_memory_and_outs_grow() -> None:
    matrix = torch.zeros(3, 4, device="cuda")
    matrix[1].fill_(2)
    matrix.t()[0, :] = 7
    assert matrix.cpu()[1].tolist() == [7, 2, 2, 2]
    out = torch.empty(0, device="cuda")
    torch.add(matrix, 1, out=out)
    assert out.shape == (3, 4)


def test_gradients_flow() -> None:
    x = torch.randn(5, 6, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        y = torch.nn.functional.layer_norm(x @ x.T, (5,))
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.is_cuda


def test_devices_do_not_mix() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="cuda") + torch.ones(3)
    assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).sum() == 6  # a number may be anywhere


def test_copies_waits_and_bytes_are_counted() -> None:
    before, counting = used_bytes(), Counting()
    x = torch.ones(1024).cuda()
    assert used_bytes() - before == 4096
    assert (counting.so_far.to_device, counting.so_far.to_host, counting.so_far.waits) == (1, 0, 0)
    float(x.sum())
    x.cpu()
    torch.cuda.synchronize()
    assert (counting.so_far.to_host, counting.so_far.waits, counting.so_far.synchronizations) == (2, 2, 1)
    assert counting.so_far.host_bytes == 4096
    del x
    assert used_bytes() == before


def test_copies_from_pinned_and_pageable_memory_are_counted_apart() -> None:
    counting = Counting()
    torch.ones(8).pin_memory()[2:].to("cuda", non_blocking=True)
    assert (counting.so_far.to_device, counting.so_far.pageable) == (1, 0)
    torch.ones(8).cuda()
    assert (counting.so_far.to_device, counting.so_far.pageable) == (2, 1)


def test_copies_on_a_stream_of_their_own_are_waited_for() -> None:
    target, stream = torch.zeros(2, 4, device="cuda"), torch.Stream(device="cuda")
    with stream:
        target[1].copy_(torch.ones(4), non_blocking=True)
        copied = stream.record_event()
    assert target[0].sum() == 0
    for use in (lambda: target[1] + 1, target.cpu):
        with pytest.raises(RuntimeError, match="waited for the copy"):
            use()
    torch.accelerator.current_stream().wait_event(copied)
    assert target[1].sum() == 4


def test_memory_can_run_out() -> None:
    with faults(free_bytes=1000):
        torch.empty(200, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(300, device="cuda")
    with faults(fail_after=1):
        torch.empty(1, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1, device="cuda")
        torch.empty(1, device="cuda")


def test_a_lost_device_fails_every_operation() -> None:
    x = torch.ones(3, device="cuda")
    with faults(lost=True):
        for use in (lambda: x + 1, x.cpu, torch.cuda.synchronize):
            with pytest.raises(torch.AcceleratorError):
                use()
    assert x.cpu().sum() == 3
