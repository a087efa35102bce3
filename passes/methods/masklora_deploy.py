"""MaskLoRA, deployed: trained gates → hard, calibrated choices of tokens → the rest of the graph on kept tokens.

harden    (scores of the full forward on calibration data) → FoldAdapters → HardenTokenGates → calibrate cut after cut
compact   CompactTokens

Adapters fold into their layers before the choices are calibrated, so that the masked graph and the compacted one rank
tokens by the very same numbers. They stay where a gate reads them: scores of the path, other methods' gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from ...errors import BudgetError
from ...models.configs.masklora import MaskLoRA
from ...models.hard_token_gate import HardTokenGate
from ...models.score_predictor import ScorePredictor
from ...models.token_gate import TokenGate
from ...models.token_scores import aggregated, normalized
from ...progress import track
from ..chain import Chain
from ..decision import Decision, RuntimeBudget
from ..graph.signature import signature_of
from ..harden.settle_tokens import SettleTokenGates
from ..harden.token_calibration import CutCalibration, calibrate_cuts, hard_gates
from ..harden.token_gate import SHARE, HardenTokenGates
from ..recovery import Recovery, entropy_bound
from ..simplify.fold_adapters import FoldAdapters
from .masklora_full import FullAnswer, FullForward, clip_from
from .method import DeployOptions

UNIT = "share of tokens kept"
ALL = 1.0
_LOGITS = "logits"

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class TokenDecision(Decision):
    """What hardening decided about tokens.

    Attributes:
        cuts: what each keeps on the calibration data; empty without data.
        masked: whether tokens are dropped at all; predictors: of every cut, as fitted on the data.
    """

    cuts: tuple[CutCalibration, ...] = ()
    masked: bool = True
    predictors: tuple[ScorePredictor, ...] = ()


def keep_every_token(chain: Chain, *, fold: bool) -> tuple[Chain, TokenDecision]:
    """A budget that keeps everything: no gate is left, and the graph is the plain adapters' bit for bit."""
    settled = chain.then(SettleTokenGates())
    note = "the budget keeps every token, so nothing is cut"
    decision = TokenDecision(ALL, ALL, notes=(note,), masked=False)
    return (settled.then(FoldAdapters()) if fold else settled), decision


def choose_tokens(
    chain: Chain, config: MaskLoRA, budget: float, data: Batches | None, options: DeployOptions
) -> tuple[Chain, TokenDecision]:
    """Gates → choices by predicted scores or those of the path, fitted and calibrated on the data."""
    full = full_answers(chain.graph, data, show=options.show) if data else []
    recovery = _recovery(config, full)
    if options.fold is not False and config.scores == "predicted":
        chain = chain.then(FoldAdapters())

    def harden(gate: TokenGate) -> HardTokenGate:
        return HardTokenGate(gate, config=config)

    masked = chain.then(HardenTokenGates(budget, harden))
    scores = scores_of(full, config)
    runtime = RuntimeBudget(SHARE, ((max(config.floor, 0.01), max(config.floor, 0.01)), (ALL, ALL)), UNIT)
    if data is None:
        note = "the predictors are those of training, not fitted again (no data=); every cut keeps its share by top-k"
        return masked, TokenDecision(budget, ALL, runtime=runtime, notes=(note,))
    cuts = calibrate_cuts(masked.graph, data, scores, select=config.select, show=options.show)
    cold = config.select == "threshold" and any(not cut.table for cut in cuts)
    notes = tuple(_achieved(cut) for cut in cuts)
    notes += ("too few tokens for a threshold: cuts choose by top-k",) if cold else ()
    return masked, TokenDecision(
        budget,
        ALL,
        runtime=runtime,
        recovery=recovery,
        notes=notes,
        facts=_facts(config, cuts),
        cuts=cuts,
        predictors=predictors_of(masked.graph),
    )


def full_answers(graph_module: fx.GraphModule, data: Batches, *, show: bool | None = None) -> list[FullAnswer]:
    """What the model says with every token, batch by batch."""
    full, signature = FullForward(graph_module), signature_of(graph_module)
    return [full(signature.arrange(batch)) for batch in track(data, "scoring tokens", show=show)]


def scores_of(answers: Sequence[FullAnswer], config: MaskLoRA) -> list[Tensor]:
    """ŝ of all layers, batch by batch (B,T), clipped at the data's own P99.5."""
    cap = clip_from(answers) if answers else None
    return [
        aggregated(normalized(answer.shifts, answer.real, cap), config.aggregate, config.kinds) for answer in answers
    ]


def _recovery(config: MaskLoRA, answers: Sequence[FullAnswer]) -> Recovery | None:
    """The rule by which examples are run again.

    Raises:
        BudgetError: it is asked for where no bound can be calibrated.
    """
    if not config.recover_if_spike:
        return None
    bound = entropy_bound([answer.outputs for answer in answers], _LOGITS)
    if bound is None:
        raise BudgetError(
            "Spikes are told by the entropy of class predictions on data.",
            given="recover_if_spike=True without data, or a model without logits (B, classes)",
            expected="a classifier, and data=",
            remedy="pass data=[batch, …], or leave recover_if_spike out",
        )
    return Recovery(_LOGITS, bound, SHARE)


def predictors_of(masked: fx.GraphModule) -> tuple[ScorePredictor, ...]:
    """The predictors of a masked graph, cut by cut; none where scores come from the path."""
    return tuple(gate.predictor for gate in hard_gates(masked) if gate.predictor is not None)


def keep_predictors(gates: Sequence[TokenGate], fitted: Sequence[ScorePredictor]) -> None:
    """Write fitted predictors back into the trained gates; nothing where none was fitted."""
    for gate, predictor in zip(gates, fitted, strict=False):
        gate.predictor.load_state_dict(predictor.state_dict())


def _achieved(cut: CutCalibration) -> str:
    return (
        f"after layer {cut.layer} {cut.share:.1%} ± {cut.deviation:.1%} of an example's tokens stay on the "
        "calibration data"
    )


def _facts(config: MaskLoRA, cuts: Sequence[CutCalibration]) -> dict[str, object]:
    return {
        "select": config.select,
        "scores": config.scores,
        "cuts": [
            {"layer": c.layer, "share": c.share, "deviation": c.deviation, "predictor_error": c.predictor_error}
            for c in cuts
        ],
    }
