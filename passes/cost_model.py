"""Sympy model of what one LoRA site, and one router, costs: FLOPs, bytes moved, nodes, seconds.

Every exact form of a site is a short list of nodes, and a node costs

    seconds = seconds_per_node + issued FLOPs / rate + bytes / bandwidth

The terms add: at small rank a matrix multiply's reads and writes were measured not to hide behind its arithmetic.
Two facts of real kernels are in "issued FLOPs": outer columns are rounded up to the kernel's lanes, so a
down-projection to 6 ranks costs what one to 8 (or 16) does; and the first 64 columns run at the skinny rate,
the rest at the dense rate, which keeps the model continuous and monotone in the rank.

    print(cost_of("gathered").flops)      # 2*B*T*d*k + 2*B*T*d_out*k + B*T*d_out + B*d*k

Source of the forms: CCM-LoRA, eq. 8 and sections 2.6, 2.7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import sympy
from sympy import Expr

from ..errors import InputError
from .cost_constants import SKINNY_WIDTH, EngineConstants

B, T, D, D_OUT, R, K = sympy.symbols("B T d d_out r k", positive=True)
"""Batch, tokens an example, input width, output width, rank of the adapter, ranks computed."""
HIDDEN, SITES = sympy.symbols("h S", positive=True)
"""The router's hidden width, and the number of sites it decides for."""
LAUNCH, DENSE, SKINNY, BATCHED, BANDWIDTH, ROW, LANES = sympy.symbols("launch F f f_b bw row L", positive=True)
"""The fields of EngineConstants: seconds a node, three FLOP rates, bytes a second, seconds a row, lanes."""

SHAPE = (B, T, D, D_OUT, R, K, HIDDEN, SITES)
ENGINE = (LAUNCH, DENSE, SKINNY, BATCHED, BANDWIDTH, ROW, LANES)
ZERO, ONE = sympy.Integer(0), sympy.Integer(1)
FLOAT = 4
"""Bytes of a float32."""
GELU_FLOPS, SOFTMAX_FLOPS = 5, 5
"""Per element: x·½·(1 + erf(x/√2)); divide by τ, subtract the maximum, exp, sum, divide."""


class Form(StrEnum):
    """How a site's update is computed. `masked` and `gathered` are two exact forms of one routed site."""

    MERGED = "merged"
    """The adapter is folded into the frozen weight: no extra work; only where the adapter is static."""
    LORA = "lora"
    """Static LoRA of full rank r: y + (x Aᵀ) Bᵀ."""
    MASKED = "masked"
    """All r ranks, then a multiply by the example's mask (B, 1, r)."""
    GATHERED = "gathered"
    """Only the k active rows of A and columns of B of each example, as batched matrix multiplies."""
    FUSED = "fused"
    """`gathered` where native kernels run it: the active directions join the sums of the layer's own kernel."""


@dataclass(frozen=True)
class Node:
    """One node of a form: its name, useful FLOPs, bytes read and written, and seconds in the symbols of ENGINE."""

    name: str
    flops: Expr
    bytes: Expr
    seconds: Expr


@dataclass(frozen=True)
class Cost:
    """The nodes of a form (or of the router), and their sums as sympy expressions."""

    nodes: tuple[Node, ...]

    @property
    def flops(self) -> Expr:
        """Useful arithmetic of one forward; a multiply-add counts two."""
        return sympy.expand(sum((node.flops for node in self.nodes), ZERO))

    @property
    def bytes(self) -> Expr:
        """Bytes that the nodes read and write."""
        return sympy.expand(sum((node.bytes for node in self.nodes), ZERO))

    @property
    def seconds(self) -> Expr:
        """Seconds of one forward, in the symbols SHAPE and ENGINE."""
        return sum((node.seconds for node in self.nodes), ZERO)

    @property
    def launches(self) -> int:
        """How many nodes the engine starts."""
        return len(self.nodes)


@dataclass(frozen=True)
class Figures:
    """A cost in numbers, for one shape on one engine."""

    flops: float
    bytes: float
    launches: int
    seconds: float


def _move(name: str, flops: Expr, elements: Expr, rows: Expr = ZERO) -> Node:
    """A node whose arithmetic hides behind its `elements` float32 reads and writes, and its broadcast `rows`."""
    return Node(name, flops, FLOAT * elements, LAUNCH + FLOAT * elements / BANDWIDTH + rows * ROW)


def _skinny(name: str, long_flops: Expr, width: Expr, issued: Expr, rate: Expr, elements: Expr) -> Node:
    """A matrix multiply of `width` columns, `long_flops` each, of which the kernel issues `issued`."""
    wide = sympy.Max(issued - SKINNY_WIDTH, 0)
    arithmetic = long_flops * ((issued - wide) / rate + wide / DENSE)
    return Node(name, long_flops * width, FLOAT * elements, LAUNCH + arithmetic + FLOAT * elements / BANDWIDTH)


def _rounded(columns: Expr) -> Expr:
    return LANES * sympy.ceiling(columns / LANES)


def _down(width: Expr, rate: Expr, copies: Expr) -> Node:
    """u = x Aᵀ: (B, T, d) → (B, T, width), `copies` different A in the batch."""
    elements = B * T * D + copies * width * D + B * T * width
    return _skinny("down-projection", 2 * B * T * D, width, _rounded(width), rate, elements)


def _up(width: Expr, rate: Expr, copies: Expr) -> Node:
    """Δy = u Bᵀ: (B, T, width) → (B, T, d_out). The inner dimension is not rounded up by kernels."""
    elements = B * T * width + copies * width * D_OUT + B * T * D_OUT
    return _skinny("up-projection", 2 * B * T * D_OUT, width, width, rate, elements)


def _add() -> Node:
    return _move("add to the frozen layer's output", B * T * D_OUT, 3 * B * T * D_OUT)


#: What the operator's function body does besides arithmetic, each a node of B·r numbers or fewer on (B, r) indices:
#: count, reduce and cut the listed directions (7), weigh them (4), flatten and restore the token axes (4).
_BOOKKEEPING = 15


def _gathered_nodes() -> tuple[Node, ...]:
    return (
        *(_move(f"list the active ranks ({step + 1})", ZERO, 2 * B * R) for step in range(_BOOKKEEPING)),
        _move("gather rows of A", ZERO, 2 * B * K * D),
        _move("gather columns of B", ZERO, 2 * B * K * D_OUT),
        # Examples with fewer active ranks than the batch's largest carry slots that must stay silent: the
        # gathered rows (B, k, d) times (B, k, 1), which is less than masking (B, T, k) as soon as T exceeds d.
        _move("silence unused slots", B * K * D, 2 * B * K * D + B * K, rows=B * K),
        _down(K, BATCHED, B),
        _up(K, BATCHED, B),
        _add(),
    )


def _fused() -> Node:
    """k more products for each state and each answer; nothing is read or written that the layer does not."""
    flops = 2 * B * T * K * (D + D_OUT)
    return Node("rank directions in the layer's kernel", flops, FLOAT * K * (D + D_OUT), LAUNCH + flops / DENSE)


@lru_cache(maxsize=len(Form))
def cost_of(form: Form | str) -> Cost:
    """What `form` adds to the frozen layer, in the symbols B, T, d, d_out, r, k.

    The scale α/r costs nothing: it is folded into B, or rides on the mask.

    Raises:
        InputError: no such form.
    """
    if form not in tuple(Form):
        forms = ", ".join(Form)
        raise InputError("Unknown form of a LoRA site.", given=repr(form), expected=f"one of {forms}")
    nodes: dict[Form, Callable[[], tuple[Node, ...]]] = {
        Form.MERGED: tuple,
        Form.LORA: lambda: (_down(R, SKINNY, ONE), _up(R, SKINNY, ONE), _add()),
        Form.MASKED: lambda: (
            _down(R, SKINNY, ONE),
            _move("multiply by the mask", B * T * R, 2 * B * T * R + B * R, rows=B * T),
            _up(R, SKINNY, ONE),
            _add(),
        ),
        Form.GATHERED: _gathered_nodes,
        Form.FUSED: lambda: (_fused(),),
    }
    return Cost(nodes[Form(form)]())


@lru_cache(maxsize=1)
def frozen_linear_cost() -> Cost:
    """The frozen layer itself, y = W0 x, for overheads in per cent."""
    flops = 2 * B * T * D * D_OUT
    elements = B * T * D + D * D_OUT + B * T * D_OUT
    return Cost(
        (Node("frozen linear", flops, FLOAT * elements, LAUNCH + flops / DENSE + FLOAT * elements / BANDWIDTH),)
    )


@lru_cache(maxsize=1)
def router_cost() -> Cost:
    """One router forward, once for all S sites: width d, hidden h, S·r logits (CCM-LoRA section 2.3).

    Masked mean over T tokens → Linear → GELU → Linear → softmax → sort → cumulative sum → k(x) → one mask a site.
    """
    logits = B * SITES * R
    compares = logits * sympy.log(sympy.Max(R, 2), 2)
    return Cost(
        (
            _move("share of each token", B * T, 2 * B * T + B),
            # One row times a matrix, (B, 1, T) x (B, T, d): a multiply and a reduction over the middle axis were
            # measured five to ten times as slow.
            _skinny("masked mean", 2 * B * T * D, ONE, ONE, BATCHED, B * T * D + B * T + B * D),
            _skinny("linear to hidden", 2 * D * HIDDEN, B, B, SKINNY, B * D + D * HIDDEN + B * HIDDEN),
            _move("gelu", GELU_FLOPS * B * HIDDEN, 2 * B * HIDDEN),
            _skinny("linear to logits", 2 * HIDDEN * SITES * R, B, B, SKINNY, B * HIDDEN + HIDDEN * SITES * R + logits),
            _move("softmax", SOFTMAX_FLOPS * logits, 2 * logits),
            _move("sort", compares, 2 * logits + 2 * compares),
            _move("cumulative sum", logits, 2 * logits),
            _move("compare with c", logits, 2 * logits),
            _move("count k(x)", logits, logits + B * SITES),
            _move("one mask a site", ZERO, 2 * logits),
        )
    )


Compiled = Callable[..., tuple[float, float, float]]


def _compile(cost: Cost) -> Compiled:
    """Plain-Python arithmetic of `cost`: sympy is left behind after the first call."""
    compiled: Compiled = sympy.lambdify(
        (*SHAPE, *ENGINE), (cost.flops, cost.bytes, cost.seconds), modules="math", cse=True
    )
    return compiled


@lru_cache(maxsize=len(Form))
def _compiled_form(form: Form) -> Compiled:
    return _compile(cost_of(form))


@lru_cache(maxsize=1)
def _compiled_router() -> Compiled:
    return _compile(router_cost())


@lru_cache(maxsize=1)
def _compiled_linear() -> Compiled:
    return _compile(frozen_linear_cost())


def _engine(constants: EngineConstants) -> tuple[float, ...]:
    rates = (constants.gemm_flops, constants.skinny_flops, constants.batched_skinny_flops)
    return (
        constants.seconds_per_node,
        *rates,
        constants.bytes_per_second,
        constants.seconds_per_row,
        float(constants.lanes),
    )


def _figures(compiled: Compiled, launches: int, shape: tuple[float, ...], constants: EngineConstants) -> Figures:
    flops, moved, seconds = compiled(*shape, *_engine(constants))
    return Figures(float(flops), float(moved), launches, float(seconds))


@lru_cache(maxsize=4096)
def site_figures(
    form: Form, shape: tuple[int, int, int], active: float, workload: tuple[int, int], constants: EngineConstants
) -> Figures:
    """`form` at a site of `shape` (d, d_out, r) with `active` ranks computed, for `workload` (B, T)."""
    numbers = (*workload, *shape, active, 0, 0)
    return _figures(_compiled_form(form), cost_of(form).launches, numbers, constants)


def linear_figures(shape: tuple[int, int], workload: tuple[int, int], constants: EngineConstants) -> Figures:
    """The frozen layer of `shape` (d, d_out), for `workload` (B, T)."""
    return _figures(_compiled_linear(), 1, (*workload, *shape, 0, 0, 0, 0), constants)


def router_figures(shape: tuple[int, int, int, int], workload: tuple[int, int], constants: EngineConstants) -> Figures:
    """The router of `shape` (width, hidden, sites, rank), for `workload` (B, T)."""
    width, hidden, sites, rank = shape
    numbers = (*workload, width, 0, rank, 0, hidden, sites)
    return _figures(_compiled_router(), router_cost().launches, numbers, constants)
