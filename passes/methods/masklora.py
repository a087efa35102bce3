"""MaskLoRA: token selection by LoRA-induced shift, as passes over a captured graph.

    prepare    capture → [AttachLora] → InsertTokenGates → FeedTokenGates                a model that trains
    training   full forward (answers, ŝ) → masked forward → Eq. 2                        two forwards a step
    budget in FLOPs   schedules priced and tried on data (`masklora_search.py`) → gates at the cuts of the best
    optimize   FreezeRegularization → (ŝ on data) → FoldAdapters → HardenTokenGates      the masked graph
               → CompactTokens                                                           a model that serves

Deviations from the paper, each with its reason:
    * deployed scores are predicted at the cut from the state there (`models/score_predictor.py`): the score of all
      layers needs the full forward that masking is to save; `scores="path"` takes the layers before the cut;
    * tokens leave between layers, not at the embeddings: no score is known before the first layers ran;
    * φ = a·(ŝ − κ − b) with two learned numbers a cut: logits φ_i of their own could not be given to a new input;
    * η·Σ ŝ(1 − m̃)/T instead of +η·ŝᵀm̃, whose sign contradicts Proposition 3.3 (`models/token_objective.py`);
    * λ alone (1e-4 … 1e-3) meets no budget against η: a multiplier and a square drive every cut to its share;
    * the running clip and κ are smoothed, not ŝ_i, which has no predecessor in another batch (`masklora_full.py`);
    * KL(full ‖ masked) takes the full answers without gradients and without dropout: they are what to be true to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from ...config import Budget, Flops, resolve_share
from ...errors import BudgetError, MethodError, PassError
from ...models.configs.masklora import MaskLoRA
from ...models.families import ATTENTION_MASK
from ...models.gate_records import gates_among
from ...models.score_predictor import ScorePredictor
from ...models.token_gate import TokenGate
from ...models.token_objective import token_loss
from ..chain import Chain
from ..compact.tokens import CompactTokens
from ..contract import Pass
from ..decision import Decision
from ..gate.token_cuts import PlaceTokenGates
from ..gate.token_scores import FeedTokenGates, required_layers, token_gates
from ..graph.signature import signature_of
from ..harden.distill import output_divergence
from ..harden.settle_tokens import SettleTokenGates
from ..sites import DeployedSite
from .masklora_deploy import ALL, UNIT, TokenDecision, choose_tokens, keep_every_token, keep_predictors
from .masklora_fit import fit_gates
from .masklora_full import FullAnswer, TrainingForward, set_scores
from .masklora_schedule import TokenSchedule
from .masklora_search import choose_schedule
from .masklora_trials import Trials
from .method import Batches, DeployOptions, FitQuality, ShareMethod

if TYPE_CHECKING:
    from ..gated import GatedModel

_DEFAULT_SHARE = 0.5


class TokenPruning(ShareMethod[MaskLoRA]):
    """Gates on tokens of one model; its budget is the share of the tokens that the last cut keeps."""

    name = "masklora"
    unit = UNIT
    budget: float

    def __init__(self, config: MaskLoRA, budget: float | None) -> None:
        super().__init__(config, budget)
        self._forward = TrainingForward()
        self._answer: FullAnswer | None = None
        self._mask: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles make their own full forward."""
        return {**self.__dict__, "_forward": TrainingForward(), "_answer": None, "_mask": None}

    @classmethod
    def check_budget(cls, config: MaskLoRA, budget: Budget | None) -> None:
        """Refuse what is no share in (0, 1].

        Raises:
            BudgetError: no share, a count, or FLOPs, which only `optimize` spends.
        """
        if isinstance(budget, Flops):
            raise BudgetError(
                "A budget in FLOPs is spent by optimize, on data: cuts are chosen by what they do to a tuned model.",
                given=f"budget={budget!r}",
                expected='a share of tokens here, or gatefx.optimize(tuned, "masklora", Flops(…), data=…)',
                remedy="to train with the schedule that optimize found, pass MaskLoRA(keep=…) from its report",
            )
        if isinstance(budget, int) and not isinstance(budget, bool) and budget != 1:
            raise BudgetError(
                "masklora keeps a share of every example's tokens, whatever their number.",
                given=f"budget={budget!r}",
                expected='a number in (0, 1] or a string such as "50%"',
                remedy="pass for example budget=0.5",
            )
        super().check_budget(config, budget)

    @classmethod
    def resolve_budget(cls, config: MaskLoRA, budget: Budget | None, graph_module: fx.GraphModule) -> float:
        """The budget as a share in (0, 1]: what `keep` says, or half of the tokens.

        Raises:
            SiteError: no cut, or no adapter that scores tokens; BudgetError: no share, or a count.
        """
        required_layers(graph_module)
        cls.check_budget(config, budget)
        if budget is not None:
            return resolve_share(budget, unit=UNIT)
        return _DEFAULT_SHARE if config.keep is None else config.keep[-1][1]

    def spend(self, model: GatedModel, flops: Flops, data: Batches | None, *, show: bool | None) -> None:
        """Choose a schedule, and gate the model's tokens at its cuts; gates that were trained there stay as they are.

        The report gets the schedule as a note, and with all that were tried as `facts["schedule"]["masklora"]`.

        Raises:
            BudgetError: no data, or a share that no schedule costs; SiteError: no cut saves anything.
            MethodError: scores of the path, with which a first cut of several is not compacted.
        """
        if self.config.scores == "path":
            raise MethodError(
                "Cuts are chosen by FLOPs for predicted scores.",
                given="scores='path'",
                expected="scores='predicted'",
                remedy="name the cuts with MaskLoRA(scores='path', keep={layer: share})",
            )
        if data is None:
            raise BudgetError(
                "A schedule of cuts is chosen by what it does to data.",
                given=f"budget={flops!r}, data=None",
                expected="unlabelled batches like those the model will serve",
                remedy="pass data=[batch, …], or name the cuts yourself with MaskLoRA(keep={layer: share})",
            )
        trials = Trials(model, self.config, data, show=show)
        choice = choose_schedule(trials, self.config, flops.share, show=show)
        config = dataclasses.replace(self.config, keep=choice.chosen.keep)
        budget = choice.chosen.keep[-1][1]
        model.graph_module = cut_anew(model.graph_module, config, budget, trials.predictors(choice.chosen.keep))
        model.methods[self.name] = type(self)(config, budget)
        model.report = model.report.extended(notes=(str(choice),), facts={"schedule": {self.name: choice.to_json()}})

    def limit(self, graph_module: fx.GraphModule) -> float:  # noqa: ARG002
        """Every token."""
        return ALL

    def gates(self) -> tuple[Pass, ...]:
        """A gate at every cut."""
        return (PlaceTokenGates(self.config, self.budget), FeedTokenGates(self.config))

    def open_gates(self, graph_module: fx.GraphModule) -> tuple[Pass, ...]:  # noqa: ARG002
        """Every token kept."""
        return (SettleTokenGates(),)

    def before(self, model: GatedModel, tensors: Sequence[Tensor]) -> None:
        """The full forward: reference answers, and scores for the gates.

        Raises:
            MethodError: a decoder, whose gates are fitted and not trained.
        """
        gradients = not self.config.stop_gradient and torch.is_grad_enabled()
        self._answer = self._forward.of(model)(tensors, gradients=gradients)
        names = signature_of(model.graph_module).input_names
        self._mask = tensors[names.index(ATTENTION_MASK)] if ATTENTION_MASK in names else None
        set_scores(gates_among(model.graph_module, TokenGate), self._answer)

    def loss(self, model: GatedModel, outputs: Mapping[str, Tensor]) -> Tensor:
        """Sparsity, consistency, concentration and budget on the last batch."""
        gates = gates_among(model.graph_module, TokenGate)
        wanted = self._answer.outputs if self._answer is not None else {}
        known = {name: value for name, value in wanted.items() if name in outputs and value.is_floating_point()}
        return token_loss(gates, output_divergence(known, outputs, self._mask) if known else None)

    def schedule(
        self,
        model: GatedModel,
        total_steps: int,
        optimizer: torch.optim.Optimizer | None,  # noqa: ARG002
    ) -> TokenSchedule:
        """Temperature and the budget's multiplier."""
        return TokenSchedule(model, total_steps)

    def is_trained(self, graph_module: fx.GraphModule) -> bool:
        """Whether the gates saw any step; scores of the path need none."""
        gates = token_gates(graph_module)
        return self.config.scores == "path" or any(int(gate.updates) > 0 for _, gate in gates)

    def fit(self, model: GatedModel, data: Batches, *, steps: int, show: bool | None) -> FitQuality:
        """Fit the predictors to the scores of the full forward; the adapters stay as they are."""
        return fit_gates(model, self.config, data, steps=steps, show=show)

    def harden(self, chain: Chain, data: Batches | None, options: DeployOptions) -> tuple[Chain, TokenDecision]:
        """Gates → hard choices; none where the budget keeps everything."""
        if self.budget == ALL:
            return keep_every_token(chain, fold=bool(options.fold))
        return choose_tokens(chain, self.config, self.budget, data, options)

    def compact(self, chain: Chain, decision: Decision, options: DeployOptions) -> Chain:
        """What follows a cut, on the tokens that it keeps; forms="masked" leaves it on all of them."""
        dense = not _own(decision).masked or options.forms == "masked"
        return chain if dense else chain.then(CompactTokens())

    def trained_facts(self, graph_module: fx.GraphModule) -> Mapping[str, object]:
        """The cuts, and the share of the tokens that each is to keep at the budget."""
        gates = [gate for _, gate in token_gates(graph_module)]
        return {"planned": [{"layer": gate.layer, "share": gate.shares.at(self.budget)} for gate in gates]}

    def keep_calibration(self, graph_module: fx.GraphModule, decision: Decision) -> None:
        """Keep the predictors that deployment fitted."""
        keep_predictors([gate for _, gate in token_gates(graph_module)], _own(decision).predictors)

    def describe(
        self,
        sites: Mapping[str, DeployedSite],
        decision: Decision,
        graph_module: fx.GraphModule,  # noqa: ARG002
    ) -> Mapping[str, DeployedSite]:
        """Sites as they are: tokens are dropped between layers."""
        _own(decision)
        return sites


def cut_anew(
    graph_module: fx.GraphModule, config: MaskLoRA, budget: float, predictors: Mapping[int, ScorePredictor]
) -> fx.GraphModule:
    """The graph with token gates at the cuts of `config.keep` instead of those it has, or with both where they meet.

    Args:
        predictors: of new gates, by layer.
    """
    trained = {gate.layer: gate for _, gate in token_gates(graph_module) if int(gate.updates) > 0}
    chain = Chain(graph_module).then(SettleTokenGates(), PlaceTokenGates(config, budget), FeedTokenGates(config))
    for _, gate in token_gates(chain.graph):
        gate.train(graph_module.training)
        if gate.layer in trained:
            gate.load_state_dict(trained[gate.layer].state_dict())
        elif gate.layer in predictors:
            gate.predictor.load_state_dict(predictors[gate.layer].state_dict())
    return chain.graph


def _own(decision: Decision) -> TokenDecision:
    if not isinstance(decision, TokenDecision):
        raise PassError(f"A {type(decision).__name__} is no decision about tokens.")
    return decision
