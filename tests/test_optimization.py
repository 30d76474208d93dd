"""The optimized network: one graph, fused, and the plain integer network's output."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

import mezzotint.optimization as optimization
from integer_networks import fresh, integer_network
from measures import decibels
from mezzotint.errors import ConfigError, ModelError
from mezzotint.kernels import native
from mezzotint.models.denoiser import example_inputs
from mezzotint.optimization import optimize, optimize_network_
from phases import Told
from tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("traceable")

FUSED_DB = 20  # measured 27 to 40 on these models: codes tipped over an edge, see kernels.fused


@torch.no_grad()
def eps(network: Any, batch: int = 2) -> torch.Tensor:
    return network(*example_inputs(network, batch)).sample


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Group norms are torch's, so nothing is left that may round otherwise."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.mark.parametrize("kind", ["pixels", "text"])
def test_rewriting_changes_no_bit(kind: str, no_compiler: None) -> None:
    network = fresh(kind)
    assert torch.equal(eps(optimize_network_(network)), eps(integer_network(kind)))


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_fusing_is_told_and_changes_a_few_codes_by_one() -> None:
    told = Told()
    plain, network = integer_network("pixels"), optimize_network_(fresh("pixels"), progress=told)
    layers = len(optimization._layers(network))
    assert told.words == [("prepare layers", layers), *[1] * layers, "end"]
    told.words.clear()
    assert decibels(eps(plain), eps(network)) > FUSED_DB
    assert decibels(eps(plain, 3), eps(network, 3)) > FUSED_DB  # another batch size
    assert told.words == [("trace network", 1), "end"] * 2


def test_scales_are_constants_for_every_network_of_a_class(monkeypatch: pytest.MonkeyPatch, no_compiler: None) -> None:
    graphs: list[Any] = []
    backend = optimization.fusing_backend
    monkeypatch.setattr(optimization, "fusing_backend", lambda g, i: (graphs.append(g), backend(g, i))[1])
    for bits in ("w8a8", "w4a8"):
        assert torch.equal(eps(optimize_network_(fresh("small", bits))), eps(integer_network("small", bits)))
    assert len(graphs) == 2
    assert not [node for graph in graphs for node in graph.graph.nodes if node.target == "item"]


@pytest.mark.slow
def test_there_may_be_more_networks_than_the_tracer_likes(no_compiler: None) -> None:
    """After eight graphs of one function it gives up."""
    for bits in ("w8a8", "w4a8", "w4a6", "w3a7", "w2a8"):
        for batch in (1, 2):
            network = optimize_network_(fresh("pixels", bits))
            assert torch.equal(eps(network, batch), eps(integer_network("pixels", bits), batch)), bits


def test_copies_and_pickles_are_plain_again(no_compiler: None) -> None:
    network = optimize_network_(fresh("small"))
    assert torch.equal(eps(copy.deepcopy(network)), eps(network))


@pytest.mark.parametrize(
    ("backends", "words"),
    [(1, ["end", "run"]), (2, ["end", "run"]), (0, ["run", "end"]), (-1, [])],
    ids=["traced", "traced anew", "not traced", "failed"],
)
def test_tracing_is_a_phase_that_ends_once(backends: int, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch.compile does: the phase that it interrupts must not be ended in its place."""
    told = Told()

    def compile(entry: Any, backend: Any, **options: Any) -> Any:
        def call(*inputs: Any) -> Any:
            if backends < 0:
                raise RuntimeError("cannot be traced")
            for _ in range(backends):
                backend(entry, inputs)
            told.words.append("run")

        return call

    network = optimize_network_(fresh("small"), progress=told)
    told.words.clear()
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(optimization, "fusing_backend", lambda graph, inputs: graph)
    expected = pytest.raises(RuntimeError, match="cannot be traced") if backends < 0 else contextlib.nullcontext()
    with expected:
        network(torch.zeros(1))
    assert told.words == [("trace network", 1), *words]


def test_new_weights_are_noticed(no_compiler: None) -> None:
    network, other = optimize_network_(fresh("small")), fresh("small")
    eps(network)
    with torch.no_grad():
        other.conv_in.bias.add_(1.0)
    network.load_state_dict(other.state_dict())
    assert torch.equal(eps(network), eps(other))


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_every_norm_and_attention_and_most_codes_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []
    backend = optimization.fusing_backend
    monkeypatch.setattr(optimization, "fusing_backend", lambda g, i: (graphs.append(g), backend(g, i))[1])
    network = optimize_network_(fresh("text"))
    assert decibels(eps(integer_network("text")), eps(network)) > FUSED_DB
    [graph] = graphs
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    names = [getattr(node.target, "__name__", str(node.target)) for node in calls]
    norms = sum(isinstance(m, nn.GroupNorm) for m in network.modules())
    attentions = [node for node in calls if node.target.__name__ == "attention"]
    assert not {"dropout", "softmax", "gelu", "layer_norm"} & set(names)
    assert names.count("group_norm") + names.count("group_norm_codes") == norms
    assert names.count("group_norm_codes") > norms // 2
    assert names.count("silu") <= 2  # of the time embedding
    assert len(attentions) == sum(isinstance(m, Attention) for m in network.modules())
    assert all(node.args[-1] > 1 for node in attentions)  # heads are read where they lie


def test_packed_weights_give_the_same_bits_and_stay_packed() -> None:
    plain = integer_network("pixels", "w4a8")
    network = optimize_network_(fresh("pixels", "w4a8"), fuse=False, weights="packed")
    assert torch.equal(eps(network), eps(plain))
    assert torch.equal(eps(optimize_network_(network, fuse=False, weights="unpacked")), eps(plain))


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # inductor's own imports
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_takes_the_plain_network_as_one_graph(backend: str) -> None:
    network = fresh("pixels")
    compiled = torch.compile(optimize_network_(network, fuse=False), backend=backend, fullgraph=True)
    assert decibels(eps(integer_network("pixels")), compiled(*example_inputs(network, 2)).sample) > FUSED_DB


def test_a_network_that_changes_tensors_in_place_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    def in_place(x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        x += 1
        return nn.functional.dropout(x, 0.0)

    with caplog.at_level(logging.WARNING, logger="mezzotint"):
        y = torch.compile(in_place, backend=optimization.fusing_backend)(torch.ones(3))
    assert torch.equal(y, torch.full((3,), 3.0))
    assert "changes tensors in place" in caplog.text


def test_pipelines_and_errors() -> None:
    pipeline = tiny_pipeline()
    with pytest.raises(ModelError, match="DDIMPipeline has no quantized part to optimize; quantize it first"):
        optimize(pipeline)
    pipeline.unet = fresh("pixels")
    assert optimize(pipeline, fuse=False) is pipeline
    with pytest.raises(ConfigError, match="weights must be one of unpacked, packed, got 'zipped'"):
        optimize(pipeline, weights="zipped")
    with pytest.raises(ConfigError, match="activations must be one of bf16, fp16, fp32, got 'int4'"):
        optimize(pipeline, activations="int4")


ISA = """
import hashlib, sys
import torch
from mezzotint.kernels import onednn
from mezzotint.optimization import optimize_network_
network, inputs = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    y = optimize_network_(network)(*inputs).sample
print(onednn.saturates(), hashlib.sha256(y.contiguous().numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow  # a process of its own each; single layers are tested like this in tests/kernels
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_the_numbers_are_the_same_without_vnni(isa: str, tmp_path: Path) -> None:
    """Every product is exact on whichever kernel, and what is fused between them has a fixed order."""
    network, inputs = fresh("pixels"), example_inputs(integer_network("pixels"), 2)
    torch.save((network, inputs), tmp_path / "network.pt")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "ignore", "-c", ISA, str(tmp_path / "network.pt")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saturates, digest = done.stdout.split()
    assert saturates == "True"
    here = eps(optimize_network_(network)).contiguous().numpy().tobytes()
    assert hashlib.sha256(here).hexdigest() == digest
