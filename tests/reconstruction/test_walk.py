"""Walking a network unit by unit: every family, the inputs of a full run, each unit computed once, little kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES
from mezzotint.calibration.rows import CalibrationSet
from mezzotint.models.denoiser import example_inputs, predict_eps
from mezzotint.models.units import Unit, list_units
from mezzotint.reconstruction.problem import pose
from mezzotint.reconstruction.sources import last_readers, unit_sources
from mezzotint.reconstruction.store import RowStore
from mezzotint.reconstruction.walk import Walker

ROWS, BATCH = 5, 2
CPU = torch.device("cpu")


@pytest.fixture(params=list(FAMILIES))
def network(request: pytest.FixtureRequest) -> nn.Module:
    return FAMILIES[request.param]().unet


def some_rows(network: nn.Module) -> CalibrationSet:
    x_t, _, *context = example_inputs(network, batch=ROWS)
    cond = {"encoder_hidden_states": context[0]} if context else {}
    return CalibrationSet(x_t, torch.tensor([999, 500, 500, 20, 0]), cond)


def sources_of(network: nn.Module, units: list[Unit]) -> dict[str, frozenset[str]]:
    inputs = example_inputs(network)
    return unit_sources(network, units, lambda: network(*inputs))


def inputs_of_a_full_run(network: nn.Module, rows: CalibrationSet, units: list[Unit]) -> dict[str, dict[Any, Tensor]]:
    """{unit: {place: rows}} and, at the place "output", what the unit gave."""
    found: dict[str, dict[Any, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            places = {**dict(enumerate(args)), **kwargs, "output": output}
            found[name] = {place: value for place, value in places.items() if isinstance(value, Tensor)}

        return hook

    handles = [network.get_submodule(u.name).register_forward_hook(note(u.name), with_kwargs=True) for u in units]
    with torch.no_grad():
        predict_eps(network, rows.x_t, rows.t, rows.cond)
    for handle in handles:
        handle.remove()
    return found


def walk(network: nn.Module, rows: CalibrationSet, units: list[Unit], store: RowStore, visit: Any) -> None:
    """Both walkers are on the float network; `visit` is called with every problem and the two walkers."""
    sources = sources_of(network, units)
    last = last_readers(units, sources)
    cond = {name: store.allocate(values.shape) for name, values in rows.cond.items()}
    for name, values in rows.cond.items():
        cond[name].write(slice(0, ROWS), values)
    first, second = (Walker(network, rows, batch=BATCH, device=CPU, sources=sources, cond=cond) for _ in range(2))
    walkers = [first, second]
    for index, unit in enumerate(units):
        problem = pose(unit, first, second, store)
        visit(problem, walkers)
        output = store.allocate(problem.target.shape)
        problem.block_loss(BATCH, output)
        problem.release()
        for walker, kept in zip(walkers, (problem.target, output), strict=True):
            walker.finish(unit.name, problem.target.shape, kept if unit.name in last else None)
            if unit.name not in last:
                kept.release()
        for name in [name for name, reader in last.items() if reader == index]:
            for walker in walkers:
                walker.forget(name)


@pytest.mark.parametrize("budget_gb", [1.0, 1e-6])
def test_a_walk_sees_the_inputs_and_outputs_of_a_full_run(network: nn.Module, budget_gb: float) -> None:
    rows = some_rows(network)
    units = list_units(network, *example_inputs(network))
    expected = inputs_of_a_full_run(network, rows, units)
    everything = slice(0, ROWS)

    def compare(problem: Any, _: Any) -> None:
        wanted = expected[problem.unit.name]
        for inputs in (problem.float_inputs, problem.quantized_inputs):
            assert {*inputs, "output"} == wanted.keys()
            for place, kept in inputs.items():
                torch.testing.assert_close(kept.read(everything), wanted[place], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(problem.target.read(everything), wanted["output"], rtol=1e-4, atol=1e-5)

    with RowStore(budget_gb, CPU) as store:
        walk(network, rows, units, store, compare)


def test_every_unit_computes_once_a_row_and_only_the_frontier_is_kept(network: nn.Module) -> None:
    """The layers inside of blocks run once for the target and once for the (here float) quantized output."""
    rows = some_rows(network)
    units = list_units(network, *example_inputs(network))
    last = last_readers(units, sources_of(network, units))
    place = {unit.name: index for index, unit in enumerate(units)}
    calls: Counter[str] = Counter()
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: calls.update({name: len(args[0])})
        )
        for name in (layer for unit in units if unit.kind != "layer" for layer in unit.layers)
    ]
    context = sum(4 * values.numel() for values in rows.cond.values())

    def check(problem: Any, walkers: Any) -> None:
        here = place[problem.unit.name]
        frontier = {name for name, reader in last.items() if place[name] < here <= reader}
        assert walkers[0]._kept.keys() == walkers[1]._kept.keys() == frontier
        kept = [*walkers[0]._kept.values(), *walkers[1]._kept.values(), problem.target, *problem.owned]
        assert store.used == context + sum(rows.nbytes for rows in kept)

    with RowStore(1.0, CPU) as store:
        walk(network, rows, units, store, check)
        assert store.used == context
    for handle in handles:
        handle.remove()
    traced = 1  # `walk` traces the sources with one row
    assert set(calls.values()) == {2 * ROWS + traced}


def test_the_time_embedding_and_the_conditions_are_kept_once(network: nn.Module) -> None:
    rows = some_rows(network)
    units = list_units(network, *example_inputs(network))
    referred: Counter[str] = Counter()

    def note(problem: Any, walkers: Any) -> None:
        embedding = walkers[0]._kept.get("time_embedding.linear_2")
        for place, kept in problem.float_inputs.items():
            if kept is embedding:
                referred["embedding"] += 1
                assert kept not in problem.owned
            if place == "encoder_hidden_states":
                referred["context"] += 1
                assert kept is problem.quantized_inputs[place]
                assert kept not in problem.owned

    with RowStore(1.0, CPU) as store:
        walk(network, rows, units, store, note)
    assert referred["embedding"] >= sum(unit.kind == "resnet" for unit in units)
    assert referred["context"] == sum(unit.kind == "transformer" for unit in units)


def test_sources_of_a_unit_with_a_skip_are_both_its_sides() -> None:
    network = FAMILIES["ddim"]().unet
    units = list_units(network, *example_inputs(network))
    sources = sources_of(network, units)
    assert sources["time_embedding.linear_1"] == frozenset()
    assert sources["conv_in"] == frozenset()
    embedding = "time_embedding.linear_2"
    assert sources["down_blocks.0.resnets.0"] == {"conv_in", embedding}
    assert sources["up_blocks.1.resnets.1"] == {"up_blocks.1.resnets.0", "conv_in", embedding}
    assert last_readers(units, sources)["conv_in"] == [unit.name for unit in units].index("up_blocks.1.resnets.1")
    assert "conv_out" not in last_readers(units, sources)


def test_tracing_sources_leaves_nothing_behind(network: nn.Module) -> None:
    units = list_units(network, *example_inputs(network))
    sources_of(network, units)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    assert not any("forward" in vars(module) for module in network.modules())


def test_gradients_pass_from_the_output_to_a_unit_in_the_middle(network: nn.Module) -> None:
    """Against autograd on the whole network: finished units give their rows, the rest computes."""
    rows = some_rows(network)
    units = list_units(network, *example_inputs(network))
    middle = next(unit for unit in units if unit.name.startswith("up_blocks") and unit.kind == "resnet").name
    outputs: list[Tensor] = []

    def as_leaf(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_(True))
        return outputs[-1]

    handle = network.get_submodule(middle).register_forward_hook(as_leaf)
    eps = predict_eps(network, rows.x_t, rows.t, rows.cond)
    handle.remove()
    (expected,) = torch.autograd.grad(eps.sum(), outputs[0])

    def compare(problem: Any, walkers: Any) -> None:
        if problem.unit.name == middle:
            found = list(walkers[0].output_gradients(middle, torch.ones_like))
            torch.testing.assert_close(torch.cat([g for _, g in found]), expected, rtol=1e-4, atol=1e-6)

    with RowStore(1.0, CPU) as store:
        walk(network, rows, units, store, compare)
