"""What a gated adapter costs beside the layer it sits on, in ONNX Runtime and torch: native kernel, and the rest.

    gatefx build-native
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/native_lora.py [ROUNDS]

Six equal layers in a row, W0 x + b each, plus one form of the adapter, float32, one thread, 6 of 16 rank directions
active, others for each example. A layer and its adapter are one native operator: in ONNX Runtime as in exported graphs,
in torch over packed weights as in `fast.for_cpu()`; "on top" is torch's own layer and a native operator for the adapter
alone, as in the deployed model itself. The forms alternate in one process. Each figure is the median of the ratios to
the layers alone, taken round by round, minus one. The bound is arithmetic alone, at the rate of the layer itself:
2·k·(d + d) / (2·d·d) for k directions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from gatefx.runtime.native.library import native_status
from gatefx.runtime.native.torch_kernels import use_torch_kernels
from gatefx.runtime.ops import packed_ops  # noqa: F401  # defines torch.ops.gatefx.packed_gated_linear
from gatefx.runtime.ops.cpu import gathered_gated_lora
from gatefx.runtime.ops.onnx_functions import DOMAIN, VERSION, function_protos
from gatefx.runtime.ops.packing import direction_rows, panels_of, whole_row
from gatefx.runtime.profile import compare, pinned_threads, ratios

LAYERS, RANK, ACTIVE = 6, 16, 6
SHAPES = ((1, 128, 384), (8, 128, 384), (1, 512, 768), (8, 512, 768), (1, 2048, 2048))
SMALL = 1_000_000
Run = Callable[[], object]


@dataclass(frozen=True)
class Site:
    """Random weights of one layer and its adapter: W0 (d, d) turned, b (d,), A (r, d), B (d, r), as arrays."""

    weight: np.ndarray
    bias: np.ndarray
    lora_a: np.ndarray
    lora_b: np.ndarray

    @property
    def gram(self) -> np.ndarray:
        """BᵀB, (r, r)."""
        return self.lora_b.T @ self.lora_b


@dataclass(frozen=True)
class Problem:
    """One shape: the input (B, T, d), the sites, and the directions that each example uses (B, r)."""

    x: np.ndarray
    sites: tuple[Site, ...]
    indices: np.ndarray

    @classmethod
    def random(cls, batch: int, tokens: int, width: int, rank: int = RANK) -> Problem:
        source = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            # Activations keep their size through the layers.
            return (source.standard_normal(shape) / width**0.5).astype(np.float32)

        sites = tuple(
            Site(normal(width, width), normal(width), normal(rank, width), normal(width, rank)) for _ in range(LAYERS)
        )
        active = max(ACTIVE * rank // RANK, 1)
        indices = np.full((batch, rank), -1)
        for example in range(batch):
            indices[example, :active] = source.permutation(rank)[:active]
        return cls(source.standard_normal((batch, tokens, width)).astype(np.float32), sites, indices)

    @property
    def rank(self) -> int:
        return self.indices.shape[1]

    def active(self) -> np.ndarray:
        """One where an example uses a direction, else zero, (B, 1, r)."""
        return (self.indices[..., None] == np.arange(self.rank)).any(1).astype(np.float32)[:, None]

    def threshold(self) -> float:
        """The τ that half of the tokens of the first layer pass."""
        base = self.x @ self.sites[0].weight
        update = self.x @ self.sites[0].lora_a.T @ self.sites[0].lora_b.T
        return float(np.median(np.linalg.norm(update, axis=-1) / np.linalg.norm(base, axis=-1)))


def onnx_run(problem: Problem, form: str, *, native: bool) -> Run:
    """A session of six layers in `form`: "layer", "static", "joined", "gated", "all" (every direction) or "tokens"."""
    batch, _, width = problem.x.shape
    stored = {
        "scale": np.float32(1),
        "threshold": np.float32(problem.threshold()),
        "every": np.tile(np.arange(problem.rank), (batch, 1)),
    }
    nodes, x = [], "x"
    for number, site in enumerate(problem.sites):
        more, weights, x = _onnx_site(site, number, form, x)
        nodes += more
        stored |= weights
    nodes.append(helper.make_node("ReduceMax", [x], ["top"], keepdims=0))
    used = {name for node in nodes for name in node.input}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", width])]
    if "active" in used:
        inputs.append(helper.make_tensor_value_info("active", TensorProto.FLOAT, ["B", 1, problem.rank]))
    if "indices" in used:
        inputs.append(helper.make_tensor_value_info("indices", TensorProto.INT64, ["B", problem.rank]))
    graph = helper.make_graph(
        nodes,
        "chain",
        inputs,
        [helper.make_tensor_value_info("top", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items() if name in used],
    )
    model = helper.make_model(
        graph,
        functions=list(function_protos(23).values()),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if native:
        options.register_custom_ops_library(str(native_status("onnxruntime").library))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": problem.x, "indices": problem.indices, "active": problem.active()}
    feed = {node.name: feed[node.name] for node in session.get_inputs()}
    return lambda: session.run(None, feed)


def _onnx_site(site: Site, number: int, form: str, x: str) -> tuple[list, dict[str, np.ndarray], str]:
    w, bias, a, b, gram, product, base, y = (
        f"{name}{number}" for name in ("w", "bias", "a", "b", "gram", "product", "base", "y")
    )
    weights = {w: site.weight, bias: site.bias, a: site.lora_a, b: site.lora_b, gram: site.gram}
    if form in ("layer", "static"):
        nodes = [helper.make_node("MatMul", [x, w], [product]), helper.make_node("Add", [product, bias], [base])]
        if form == "layer":
            return nodes, weights, base
        weights |= {a: site.lora_a.T.copy(), b: site.lora_b.T.copy()}
        u, delta = f"u{number}", f"delta{number}"
        nodes.append(helper.make_node("MatMul", [x, a], [u]))
        nodes.append(helper.make_node("MatMul", [u, b], [delta]))
        nodes.append(helper.make_node("Add", [base, delta], [y]))
        return nodes, weights, y
    if form == "joined":  # [x, u] [W0; Bᵀ], where u is zero for idle directions
        weights |= {a: site.lora_a.T.copy(), w: np.concatenate([site.weight, site.lora_b.T])}
        u, kept, both = f"u{number}", f"kept{number}", f"both{number}"
        nodes = [helper.make_node("MatMul", [x, a], [u]), helper.make_node("Mul", [u, "active"], [kept])]
        nodes.append(helper.make_node("Concat", [x, kept], [both], axis=-1))
        nodes += [helper.make_node("MatMul", [both, w], [product]), helper.make_node("Add", [product, bias], [y])]
        return nodes, weights, y
    weights[w] = site.weight.T.copy()
    layer = [x, w, bias, a, b]
    if form == "tokens":
        inputs = [*layer, gram, "threshold", "scale"]
        return [helper.make_node("TokenGatedLinear", inputs, [y], domain=DOMAIN)], weights, y
    inputs = [*layer, "indices" if form == "gated" else "every", "scale"]
    return [helper.make_node("GatedLinear", inputs, [y], domain=DOMAIN)], weights, y


def torch_run(problem: Problem, form: str, *, native: bool) -> Run:
    """The same chain as calls of torch, in inference mode."""
    tensors = [
        tuple(torch.from_numpy(value).contiguous() for value in (s.weight.T, s.bias, s.lora_a, s.lora_b, s.gram))
        for s in problem.sites
    ]
    packed = [(panels_of(w), whole_row(bias), a, direction_rows(b), gram) for w, bias, a, b, gram in tensors]
    indices = torch.from_numpy(problem.indices)
    every = torch.arange(problem.rank).expand(len(indices), problem.rank).contiguous()
    scale, threshold = torch.tensor(1.0), torch.tensor(problem.threshold())
    first = torch.from_numpy(problem.x)
    gated = torch.ops.gatefx.gated_lora.default if native else gathered_gated_lora
    layer = torch.ops.gatefx.packed_gated_linear.default
    tokens = torch.ops.gatefx.packed_token_gated_linear.default
    width = first.shape[-1]

    @torch.inference_mode()
    def run_packed() -> torch.Tensor:
        x = first
        for panels, bias, a, directions, gram in packed:
            if form == "tokens":
                x = tokens(x, panels, bias, a, directions, gram, threshold, scale, width)
            else:
                x = layer(x, panels, bias, a, directions, indices if form == "gated" else every, scale, width)
        return x

    @torch.inference_mode()
    def run() -> torch.Tensor:
        x = first
        for weight, bias, a, b, _ in tensors:
            base = functional.linear(x, weight, bias)
            if form == "layer":
                x = base
            elif form == "static":
                x = base + functional.linear(functional.linear(x, a), b)
            else:
                x = gated(base, x, a, b, indices, scale)
        return x

    return run_packed if native and form in ("gated", "all", "tokens") else run


def candidates(build: Callable[..., Run], problem: Problem) -> Iterator[tuple[str, Run]]:
    yield "layer", build(problem, "layer", native=False)
    yield "native 6/16", build(problem, "gated", native=True)
    if build is torch_run:
        yield "native 6/16 on top", build(problem, "on top", native=True)
    yield "portable 6/16", build(problem, "gated", native=False)
    if build is onnx_run:
        yield "joined 6/16", build(problem, "joined", native=False)
    yield "static r=16", build(problem, "static", native=False)
    yield "native 16/16", build(problem, "all", native=True)
    yield "native tokens 50 %, r=16", build(problem, "tokens", native=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}; {use_torch_kernels()}")
    for engine, build in (("onnxruntime", onnx_run), ("torch", torch_run)):
        for shape in SHAPES:
            with pinned_threads(1):
                runs = dict(candidates(build, Problem.random(*shape)))
                taken = compare(
                    runs, warmup=3, rounds=max(rounds * 1000000 // (shape[0] * shape[1] * shape[2]) // 4, 10)
                )
            found = ratios(taken, "layer")
            cells = [f"{name} {value - 1:6.1%}" for name, value in found.items() if name != "layer"]
            milliseconds = taken["layer"].median_s / LAYERS * 1e3
            print(f"{engine} {shape} layer {milliseconds:.3f} ms, bound {2 * ACTIVE / shape[2]:.1%}:", *cells, sep="  ")


if __name__ == "__main__":
    main()
