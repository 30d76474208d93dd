"""The loop that all training programs share: what it draws, how it decays, and that a resumed run is the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training import (
    GROUPS,
    Run,
    Settings,
    draw_batch,
    draw_timesteps,
    ema_decay,
    fit,
    learning_rate,
    load_images,
    to_float,
    to_uint8,
    train,
    write_grid,
)


def settings(**changes: object) -> Settings:
    return Settings(**{"minutes": 1.0, "batch": 4, "lr": 0.1, "warmup": 2, "steps": 6, "ema": 0.9, **changes})


def losses_of(run: Run) -> dict[str, Tensor]:
    x = torch.randn(run.settings.batch, 3, generator=run.generator)
    return {"loss": (run.module(x) - x.sum(1, keepdim=True)).square().mean(), "bias": run.module.bias.sum()}


def make_run(**changes: object) -> Run:
    torch.manual_seed(0)
    return Run(nn.Linear(3, 1), settings(**changes), torch.device("cpu"))


def test_the_rate_warms_up_stays_and_ends_at_zero() -> None:
    plan = settings(lr=1.0, warmup=4, decay_from=0.5)
    assert [learning_rate(plan, step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(plan, 100, 0.5) == 1.0
    assert learning_rate(plan, 100, 0.75) == 0.5
    assert learning_rate(plan, 100, 1.0) == 0.0
    assert [ema_decay(settings(ema=0.9), step) for step in (0, 1000)] == [0.1, 0.9]


def test_one_timestep_in_each_bin() -> None:
    t = draw_timesteps(8, 1000, torch.Generator().manual_seed(0))
    assert (t // 125).tolist() == list(range(8))


def test_only_what_may_be_mirrored_is() -> None:
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    images, flippable = torch.cat([image, image + 100]), torch.tensor([True, False])
    drawn = draw_batch(images, flippable, 200, torch.Generator().manual_seed(0))
    kinds = [to_float(image), to_float(image).flip(-1), to_float(image + 100)]
    counts = [int((drawn == kind).all(dim=(1, 2, 3)).sum()) for kind in kinds]
    assert sum(counts) == 200
    assert min(counts) > 20


def test_images_survive_the_way_to_float_and_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert (torch.from_numpy(to_uint8(to_float(images))).permute(0, 3, 1, 2) == images).all()


def test_held_out_names_are_in_no_training_image(data: Path) -> None:
    splits, flippable = load_images(data / "emoji-32.npz", torch.device("cpu"), GROUPS)
    assert len(splits["held_out"]) == 4  # one name, four sets
    assert len(splits["train"]) == len(flippable) == 48
    fewer, _ = load_images(data / "emoji-32.npz", torch.device("cpu"), ["Food & Drink"])
    assert (len(fewer["train"]), len(fewer["held_out"])) == (16, 4)


def test_the_average_follows_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    run, expected, before = make_run(steps=3), None, []
    monkeypatch.setattr("training.LOG_SECONDS", -1)  # a row for each step
    expected = run.module.weight.detach().clone()
    for step, row in enumerate(train(run, losses_of, graph=False)):
        decay = ema_decay(run.settings, step)
        expected = decay * expected + (1 - decay) * run.module.weight.detach()
        torch.testing.assert_close(run.averaged()["weight"], expected)
        assert row["lr"] == pytest.approx(learning_rate(run.settings, step, step / 3))
        before.append(row["loss"])
    assert len(before) == 3
    assert set(row) >= {"step", "seconds", "loss", "bias", "gradient", "lr"}


def test_training_lowers_the_loss_it_logs() -> None:
    run = make_run(steps=200, warmup=10, ema=0.99)
    (row,) = list(train(run, losses_of, graph=False))
    assert row["step"] == 200
    torch.testing.assert_close(run.averaged()["weight"], torch.ones(1, 3), atol=0.05, rtol=0)


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole = make_run()
    list(train(whole, losses_of, graph=False))

    first = make_run()
    rows = train(first, stop_after(3, losses_of), graph=False)
    with pytest.raises(KeyboardInterrupt):
        list(rows)
    first.save(tmp_path / "half.pt")
    second = make_run()
    written = []
    fit(second, losses_of, checkpoint=tmp_path / "half.pt", export=lambda: written.append(second.step))

    assert second.step == whole.step == 6
    assert written == [6]
    for key, value in whole.averaged().items():
        assert torch.equal(second.averaged()[key], value), key
    for key, value in whole.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[key], value), key


def stop_after(count: int, losses: object) -> object:
    """`losses` for `count` steps, then what Ctrl-C does."""
    calls = iter(range(count))

    def limited(run: Run) -> dict[str, Tensor]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return losses(run)

    return limited


def test_grids_are_row_by_row(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    images = np.stack([np.full((2, 2, 3), value, dtype=np.uint8) for value in range(6)])
    write_grid(images, 3, tmp_path / "grid.png", enlarge=2)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))[::4, ::4, 0]
    assert pixels.tolist() == [[0, 1, 2], [3, 4, 5]]
