"""Measure the engine constants, and hold the cost model's predictions against measured overheads.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/cost_constants.py

Prints the constants (median of five measurements) of both engines, then for each shape the measured and predicted
overhead of every form over the frozen linear layer alone: six equal layers in a row, candidates alternating in one
process, ratios taken round by round.
"""

from __future__ import annotations

import sys
from statistics import median

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from gatefx.passes.cost import EngineConstants, Form
from gatefx.passes.cost_model import linear_figures, router_figures, site_figures
from gatefx.runtime.profile import compare, measure_constants, pinned_threads, ratios

LAYERS, RANK, ACTIVE = 6, 16, 6
SHAPES = ((1, 128, 384), (8, 128, 384), (1, 512, 768))
NUMBERS = (
    "seconds_per_node",
    "gemm_flops",
    "skinny_flops",
    "batched_skinny_flops",
    "bytes_per_second",
    "seconds_per_row",
    "lanes",
)
SOURCE = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return (SOURCE.standard_normal(shape) * 0.02).astype(np.float32)


def typical(engine: str) -> EngineConstants:
    """Number by number, the median of five measurements."""
    taken = [measure_constants(engine) for _ in range(5)]
    middle = {name: median(getattr(c, name) for c in taken) for name in NUMBERS}
    last = taken[-1]
    return EngineConstants(engine, **middle, machine=last.machine, versions=last.versions, measured_on=last.measured_on)


def site_nodes(layer: int, x: str, form: Form | None, width: int) -> tuple[list, dict]:
    """One layer: the frozen MatMul (form None), and what `form` adds to it."""
    constants = {f"w{layer}": normal(width, width)}
    nodes = [helper.make_node("MatMul", [x, f"w{layer}"], [f"base{layer}"])]

    def node(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{output}{layer}"], **attributes))
        return f"{output}{layer}"

    if form in (Form.LORA, Form.MASKED):
        constants |= {f"a{layer}": normal(width, RANK), f"b{layer}": normal(RANK, width)}
        u = node("MatMul", [x, f"a{layer}"], "u")
        u = node("Mul", [u, "mask"], "masked") if form is Form.MASKED else u
        node("Add", [f"base{layer}", node("MatMul", [u, f"b{layer}"], "delta")], "y")
    if form is Form.GATHERED:
        constants |= {f"a{layer}": normal(RANK, width), f"b{layer}": normal(RANK, width)}
        rows = node("Mul", [node("Gather", [f"a{layer}", "active"], "rows"), "slots"], "live")
        u = node("MatMul", [x, node("Transpose", [rows], "turned", perm=[0, 2, 1])], "u")
        delta = node("MatMul", [u, node("Gather", [f"b{layer}", "active"], "columns")], "delta")
        node("Add", [f"base{layer}", delta], "y")
    return nodes, constants


def session(nodes: list, constants: dict, inputs: dict, outputs: tuple[str, ...]) -> onnxruntime.InferenceSession:
    kinds = {"active": TensorProto.INT64}
    given = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), axes) for name, axes in inputs.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "bench", given, results, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def chain(form: Form | None, batch: int, tokens: int, width: int):
    """A callable: LAYERS layers of `form`, on random activations, with ACTIVE of RANK ranks in use."""
    nodes, constants, x = [], {}, "x"
    for layer in range(LAYERS):
        more, stored = site_nodes(layer, x, form, width)
        nodes, constants, x = nodes + more, constants | stored, f"y{layer}" if form else f"base{layer}"
    nodes.append(helper.make_node("ReduceMax", [x], ["top"], keepdims=0))
    mask = np.zeros((batch, 1, RANK), np.float32)
    mask[..., :ACTIVE] = 1
    active = np.stack([SOURCE.permutation(RANK)[:ACTIVE] for _ in range(batch)])
    axes = {
        "x": ["B", "T", width],
        "mask": ["B", 1, RANK],
        "active": ["B", "k"],
        "slots": ["B", "k", 1],
    }
    feed = {
        "x": normal(batch, tokens, width),
        "mask": mask,
        "active": active,
        "slots": np.ones((batch, ACTIVE, 1), np.float32),
    }
    used = {None: ["x"], Form.LORA: ["x"], Form.MASKED: ["x", "mask"], Form.GATHERED: ["x", "active", "slots"]}[form]
    runner = session(nodes, constants, {n: axes[n] for n in used}, ("top",))
    picked = {name: feed[name] for name in used}
    return lambda: runner.run(None, picked)


def router(batch: int, tokens: int, width: int, hidden: int, sites: int, *, pool: str):
    """A callable: the router that the model counts, its mean as one "matmul" or as multiply and "reduce"."""
    make = helper.make_node
    masks = [f"m{i}" for i in range(sites)]
    pools = {
        "matmul": [
            make("Transpose", ["real"], ["row"], perm=[0, 2, 1]),
            make("Div", ["row", "count"], ["share"]),
            make("MatMul", ["share", "x"], ["mean1"]),
            make("Squeeze", ["mean1", "axis"], ["mean"]),
        ],
        "reduce": [
            make("Mul", ["x", "real"], ["kept"]),
            make("ReduceSum", ["kept", "axis"], ["sum"], keepdims=0),
            make("Squeeze", ["count", "axis"], ["number"]),
            make("Div", ["sum", "number"], ["mean"]),
        ],
    }
    nodes = [
        *pools[pool],
        make("Gemm", ["mean", "w1", "b1"], ["h1"]),
        make("Gelu", ["h1"], ["h2"]),
        make("Gemm", ["h2", "w2", "b2"], ["flat"]),
        make("Reshape", ["flat", "heads"], ["logits"]),
        make("Softmax", ["logits"], ["p"], axis=-1),
        make("TopK", ["p", "all"], ["sorted", "order"], axis=-1, sorted=1),
        make("CumSum", ["sorted", "last"], ["mass"]),
        make("Less", ["mass", "c"], ["below"]),
        make("Cast", ["below"], ["ones"], to=TensorProto.FLOAT),
        make("ReduceSum", ["ones", "last1"], ["k"], keepdims=1),
        make("Split", ["p"], masks, axis=1, num_outputs=sites),
    ]
    constants = {
        "axis": np.array([1]),
        "w1": normal(width, hidden),
        "b1": normal(hidden),
        "w2": normal(hidden, sites * RANK),
        "b2": normal(sites * RANK),
        "heads": np.array([-1, sites, RANK]),
        "all": np.array([RANK]),
        "last": np.array(-1),
        "last1": np.array([-1]),
        "c": np.array(0.8, np.float32),
    }
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    axes = {"x": ["B", "T", width], "real": ["B", "T", 1], "count": ["B", 1, 1]}
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, a) for name, a in axes.items()]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("k", *masks)]
    graph = helper.make_graph(nodes, "router", given, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    runner = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {
        "x": normal(batch, tokens, width),
        "real": np.ones((batch, tokens, 1), np.float32),
        "count": np.full((batch, 1, 1), tokens, np.float32),
    }
    return lambda: runner.run(["k"], feed)


def torch_chain(form: Form | None, batch: int, tokens: int, width: int):
    """The same chain as eager torch calls."""
    import torch
    from torch.nn import functional

    x = torch.from_numpy(normal(batch, tokens, width))
    weights = [torch.from_numpy(normal(width, width)) for _ in range(LAYERS)]
    factors = [(torch.from_numpy(normal(RANK, width)), torch.from_numpy(normal(RANK, width))) for _ in range(LAYERS)]
    turned = [b.T.contiguous() for _, b in factors]
    mask = torch.zeros(batch, 1, RANK)
    mask[..., :ACTIVE] = 1
    active = torch.from_numpy(np.stack([SOURCE.permutation(RANK)[:ACTIVE] for _ in range(batch)]))
    slots = torch.ones(batch, ACTIVE, 1)

    def run():
        y = x
        for weight, (a, b), b_turned in zip(weights, factors, turned, strict=True):
            base = functional.linear(y, weight)
            if form is None:
                y = base
            elif form is Form.GATHERED:
                rows = functional.embedding(active, a) * slots
                u = torch.bmm(y, rows.transpose(1, 2))
                y = base + torch.bmm(u, functional.embedding(active, b))
            else:
                u = functional.linear(y, a)
                y = base + functional.linear(u * mask if form is Form.MASKED else u, b_turned)
        return y

    return torch.inference_mode()(run)


def main() -> None:
    forms = (Form.LORA, Form.MASKED, Form.GATHERED)
    for engine, build in (("onnxruntime", chain), ("torch", torch_chain)):
        constants = typical(engine)
        print(constants, file=sys.stdout)
        with pinned_threads(1):
            for batch, tokens, width in SHAPES:
                runs = {str(form or "frozen"): build(form, batch, tokens, width) for form in (None, *forms)}
                timings = compare(runs, warmup=5, rounds=30)
                measured = ratios(timings, "frozen")
                base = linear_figures((width, width), (batch, tokens), constants).seconds
                cells = []
                for form in forms:
                    shape = (width, width, RANK)
                    added = site_figures(form, shape, ACTIVE, (batch, tokens), constants).seconds
                    cells.append(f"{form} {measured[form] - 1:.1%} / {added / base:.1%}")
                milliseconds = timings["frozen"].median_s / LAYERS * 1e3
                print(
                    f"{engine} ({batch},{tokens},{width}) frozen {milliseconds:.3f}/{base * 1e3:.3f} ms:",
                    *cells,
                    sep="  ",
                )
        if engine == "onnxruntime":
            for batch, tokens, width in SHAPES:
                pools = {pool: router(batch, tokens, width, 256, 18, pool=pool) for pool in ("matmul", "reduce")}
                taken = compare(pools, rounds=50, repeats=5)
                modelled = router_figures((width, 256, 18, RANK), (batch, tokens), constants).seconds
                cells = [f"{pool} {timing.median_s * 1e6:.0f} us" for pool, timing in taken.items()]
                print(f"router ({batch},{tokens},{width}):", *cells, f"predicted {modelled * 1e6:.0f} us", sep="  ")


if __name__ == "__main__":
    print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")
    main()
