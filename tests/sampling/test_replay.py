"""Replayed calls of a network are the calls of the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mezzotint.models.conditions import Conditions
from mezzotint.sampling.replay import eps_of


class Net(nn.Module):
    """eps = w x + t + condition; counts its calls."""

    def __init__(self, *, syncs: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))
        self.calls, self.syncs = 0, syncs

    def forward(self, x_t, t, c=None, return_dict=False):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.syncs and float(t[0]) < 0:
            raise ValueError("a negative time")
        y = self.w * x_t + t[:, None, None, None]
        return (y if c is None else y + c[:, :, None, None],)


def conditions(device: str) -> Conditions:
    rows = torch.randn(2, 3, device=device)
    return Conditions(cond={"c": rows}, uncond={"c": torch.zeros_like(rows)}, labels=["a", "b"])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@torch.no_grad()
def test_replays_give_what_calls_give(device: str) -> None:
    net, given = Net().to(device), conditions(device)
    plain, replayed = eps_of(net, given, 3.0), eps_of(net, given, 3.0, replay=True)
    seen = []
    for t in (900, 500, 500, 7):
        x_t = torch.randn(2, 3, 4, 4, device=device)
        seen.append((replayed(x_t, t), plain(x_t, t)))
    for got, expected in seen:  # after all calls: an output must not be the memory of the next
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.gpu
@torch.no_grad()
def test_replays_run_no_python() -> None:
    net = Net().cuda()
    replayed, x_t = eps_of(net, replay=True), torch.zeros(1, 3, 4, 4, device="cuda")
    for t in range(10):
        replayed(x_t, t)
    assert net.calls == 2


@pytest.mark.gpu
@torch.no_grad()
def test_a_network_that_waits_for_the_gpu_is_called_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    net = Net(syncs=True).cuda()
    replayed, x_t = eps_of(net, replay=True), torch.zeros(1, 3, 4, 4, device="cuda")
    for t in range(4):
        assert float(replayed(x_t, t).mean()) == t
    assert "step by step" in caplog.text
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.manual_seed(7)
    drawn = torch.randn(5, device="cuda")  # a capture that failed has ended for the generator too
    torch.manual_seed(7)
    assert torch.equal(torch.randn(5, device="cuda"), drawn)
