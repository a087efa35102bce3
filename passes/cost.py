"""What routing costs and gains, predicted before anything is built, and an honest verdict on where it cannot pay.

    engine = default_constants("onnxruntime")
    choose_forms(sites, {"q": ActiveRank(mean=6, largest=9)}, Workload(8, 128), engine)
    print(predict(sites, router, Workload(8, 128), 6, engine).verdict)

The sympy model is in `cost_model.py`, the choice between exact forms in `cost_choice.py`, the measured numbers in
`cost_constants.py`. Nothing here touches a graph.
Source: CCM-LoRA sections 2.7, 3.4, 4.2 and appendix B.4 (FLOPs of adapter and router, break-even length).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ..errors import SiteError
from .cost_choice import (
    ActiveRank,
    ActiveRanks,
    FormChoice,
    RouterShape,
    SiteShape,
    Workload,
    active_rank_of,
    choose_form,
    choose_forms,
    figures_of,
    gathered_form,
    gathered_ranks,
)
from .cost_constants import EngineConstants, default_constants
from .cost_model import Cost, Figures, Form, cost_of, frozen_linear_cost, router_cost, router_figures

__all__ = [
    "ActiveRank",
    "ActiveRanks",
    "Cost",
    "EngineConstants",
    "Form",
    "FormChoice",
    "Prediction",
    "RouterShape",
    "SiteShape",
    "Workload",
    "choose_forms",
    "cost_of",
    "default_constants",
    "frozen_linear_cost",
    "predict",
    "router_cost",
]

DOMINATES = 0.5
"""A part that takes more than this share of the routing's cost is named in the verdict."""
LONGEST = 1 << 20
"""Tokens: a break-even length in seconds beyond this is reported as never."""


@dataclass(frozen=True)
class Prediction:
    """What routing is predicted to cost over the model with its adapters merged into the frozen weights.

    Attributes:
        engine: that the seconds belong to.
        workload: of one batch.
        choices: the cheaper exact form of each site.
        adapter_flops_ratio: adapter FLOPs a token over static LoRA's, Σ k(d+d') / Σ r(d+d') (the paper's FLOPs/tok).
        computed_flops_ratio: the same for the chosen forms, which compute padded or masked ranks too.
        router_flops: of one example.
        router_flops_share: of adapter and router FLOPs together.
        break_even_tokens: length above which the skipped adapter FLOPs exceed the router's (section 2.7).
        break_even_tokens_seconds: length from which routing takes fewer seconds than unmerged LoRA; infinite if none.
        lora_seconds, routed_seconds: one batch, over the merged model; `routed_seconds` includes the router.
        router_seconds: its part of `routed_seconds`.
        launch_seconds: the part of `routed_seconds` that is starting nodes.
    """

    engine: str
    workload: Workload
    choices: tuple[FormChoice, ...]
    adapter_flops_ratio: float
    computed_flops_ratio: float
    router_flops: float
    router_flops_share: float
    break_even_tokens: float
    break_even_tokens_seconds: float
    lora_seconds: float
    routed_seconds: float
    router_seconds: float
    launch_seconds: float

    def to_json(self) -> dict[str, object]:
        """The fields as plain values; an infinite length is null."""
        lengths = ("break_even_tokens", "break_even_tokens_seconds")
        finite = {name: getattr(self, name) if math.isfinite(getattr(self, name)) else None for name in lengths}
        return asdict(self) | finite | {"verdict": list(self.verdict)}

    @property
    def verdict(self) -> tuple[str, ...]:
        """Why routing cannot pay here, worst first; nothing where it beats unmerged LoRA on every count."""
        rows: list[str] = []
        if self.routed_seconds >= self.lora_seconds:
            rows.append(
                f"On {self.engine}, routing is predicted to add {_ms(self.routed_seconds)} a batch and static LoRA "
                f"{_ms(self.lora_seconds)}; LoRA merged into the weights adds nothing and serves better."
            )
        if self.workload.tokens <= self.break_even_tokens:
            finite = math.isfinite(self.break_even_tokens)
            even = f"below {self.break_even_tokens:.0f} tokens" if finite else "at any length"
            rows.append(
                f"Inputs of {self.workload.tokens} tokens are too short: {even} the router costs more FLOPs than "
                "the skipped ranks save."
            )
        if self.router_seconds > DOMINATES * self.routed_seconds:
            rows.append(
                f"The router alone is {self.router_seconds / self.routed_seconds:.0%} of the routing's predicted time."
            )
        if self.launch_seconds > DOMINATES * self.routed_seconds:
            rows.append(
                f"Starting nodes is {self.launch_seconds / self.routed_seconds:.0%} of the routing's predicted time on "
                f"{self.engine}: the layers are too small for fewer ranks to show."
            )
        if all(choice.form is Form.MASKED for choice in self.choices):
            rows.append("At every site masking is as cheap as gathering, so all ranks are computed and none are saved.")
        return tuple(rows)


def predict(
    sites: Sequence[SiteShape],
    router: RouterShape,
    workload: Workload,
    k: ActiveRanks | ActiveRank | float,
    constants: EngineConstants,
) -> Prediction:
    """Cost of routing against static LoRA and against merged LoRA, in FLOPs and seconds.

    Args:
        sites: the routed sites.
        router: the one router that decides for all of them.
        workload: a typical batch.
        k: active ranks, for all sites alike or by site name.
        constants: of the engine that will run the graph.

    Raises:
        SiteError: no sites.
        InputError, BudgetError: as `choose_forms`.
    """
    if not sites:
        raise SiteError("There is nothing to predict without adapter sites.", given="no sites", expected="at least one")
    by_name = k if isinstance(k, Mapping) else {site.name: k for site in sites}
    ranks = {site.name: active_rank_of(site, by_name) for site in sites}
    model = _Model(tuple(sites), router, ranks, constants)
    return model.prediction(workload)


@dataclass(frozen=True)
class _Model:
    """The sums that a prediction is made of, at any workload."""

    sites: tuple[SiteShape, ...]
    router: RouterShape
    ranks: Mapping[str, ActiveRank]
    constants: EngineConstants

    def choices(self, workload: Workload) -> tuple[FormChoice, ...]:
        return tuple(choose_form(site, self.ranks[site.name], workload, self.constants) for site in self.sites)

    def lora_seconds(self, workload: Workload) -> float:
        return sum(figures_of(Form.LORA, site, site.rank, workload, self.constants).seconds for site in self.sites)

    def router_figures(self, workload: Workload) -> Figures:
        shape = (self.router.pool_width, self.router.hidden, self.router.sites, self.router.max_rank)
        return router_figures(shape, (workload.batch, workload.tokens), self.constants)

    def routed_seconds(self, workload: Workload) -> float:
        return sum(c.seconds for c in self.choices(workload)) + self.router_figures(workload).seconds

    def launch_seconds(self, choices: tuple[FormChoice, ...]) -> float:
        forms = {Form.GATHERED: gathered_form(self.constants)}
        nodes = router_cost().launches + sum(cost_of(forms.get(c.form, c.form)).launches for c in choices)
        return nodes * self.constants.seconds_per_node

    def width(self, rank_of: Callable[[SiteShape], float]) -> float:
        """Σ rank·(d + d'): multiply-adds of the adapters, a token."""
        return sum(rank_of(site) * (site.d_in + site.d_out) for site in self.sites)

    def prediction(self, workload: Workload) -> Prediction:
        choices, router = self.choices(workload), self.router_figures(workload)
        computed = {c.site: c.form for c in choices}
        dense = self.width(lambda s: s.rank)
        paper = self.width(lambda s: self.ranks[s.name].mean)
        gathered = {name: gathered_ranks(active, self.constants) for name, active in self.ranks.items()}
        done = self.width(lambda s: s.rank if computed[s.name] is Form.MASKED else gathered[s.name])
        router_flops = router.flops / workload.batch
        return Prediction(
            engine=self.constants.engine,
            workload=workload,
            choices=choices,
            adapter_flops_ratio=paper / dense,
            computed_flops_ratio=done / dense,
            router_flops=router_flops,
            router_flops_share=router_flops / (router_flops + 2 * paper * workload.tokens),
            break_even_tokens=self.break_even_tokens(2 * (dense - paper)),
            break_even_tokens_seconds=self.break_even_seconds(workload.batch),
            lora_seconds=self.lora_seconds(workload),
            routed_seconds=sum(c.seconds for c in choices) + router.seconds,
            router_seconds=router.seconds,
            launch_seconds=self.launch_seconds(choices),
        )

    def break_even_tokens(self, saved_a_token: float) -> float:
        """Least T with saved·T = router(T). The router's FLOPs are a + b·T: its pool reads every token."""
        at_one, at_two = (self.router_figures(Workload(1, tokens)).flops for tokens in (1, 2))
        slope = at_two - at_one
        return (at_one - slope) / (saved_a_token - slope) if saved_a_token > slope else math.inf

    def break_even_seconds(self, batch: int) -> float:
        """Least whole T at which routing takes fewer seconds than unmerged LoRA.

        Each form's seconds are affine in T and routing takes the least of two, so its lead over LoRA, once there,
        stays: bisection is sound.
        """

        def pays(tokens: int) -> bool:
            workload = Workload(batch, tokens)
            return self.routed_seconds(workload) < self.lora_seconds(workload)

        if not pays(LONGEST):
            return math.inf
        low, high = 0, LONGEST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if pays(middle) else (middle, high)
        return float(high)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
