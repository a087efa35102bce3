"""MaskLoRA in numpy, as the paper defines it, against what gatefx trains and deploys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.score_histogram import ScoreHistogram
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.models.token_gate import SharePoint, TokenGate
from gatefx.models.token_objective import token_loss
from gatefx.models.token_scores import aggregated, clip_levels, normalized
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.token_scores import TOKEN_SCORES, ShowTokenScores
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import get_tensor
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.pipeline import Pipeline

NEAR = {"rtol": 0, "atol": 1e-10}


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def scored_graph() -> tuple[fx.GraphModule, dict[str, Tensor]]:
    """A small encoder in float64 with adapters that do something, answering its tokens' shifts."""
    inputs = tiny_inputs("bert", batch=3, tokens=7)
    attach = AttachLora(3, 6.0, 0.0, ("query", "value", "intermediate.dense"))
    graph = capture(tiny("bert").double(), inputs).graph_module
    graph = Pipeline((FreezeRegularization(), attach, ShowTokenScores()))(graph, verify=True).graph_module.eval()
    for name, parameter in graph.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.3)
    return graph, inputs


class Recorded(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def run_node(self, n: fx.Node) -> Any:
        self.values = getattr(self, "values", {})
        self.values[n] = super().run_node(n)
        return self.values[n]


def test_influence_is_the_norm_of_what_lora_adds() -> None:
    """§2.2, s_{i,ℓ} = ‖Δh_{i,ℓ}‖₂; §4.1, ΔWx = A(Bᵀx) from the low-rank path alone."""
    graph, inputs = scored_graph()
    run = Recorded(graph)
    shifts = run.run(*inputs.values())[TOKEN_SCORES].detach().numpy()
    wanted = np.zeros_like(shifts)
    for site in find_sites(graph)[0]:
        x = run.values[site.x].detach().numpy()
        if x.ndim < 3:
            continue
        b, a = (get_tensor(graph, str(node.target)).detach().numpy() for node in (site.lora_b, site.lora_a))
        delta = x @ (2.0 * b @ a).T
        wanted[int(site.name.split("layer.")[1][0])] += (delta**2).sum(-1)

    assert shifts.shape == (2, 3, 7)
    np.testing.assert_allclose(shifts, np.sqrt(wanted), **NEAR)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_scores_are_clipped_normalised_over_real_tokens_and_aggregated(how: str) -> None:
    """§2.2 and appendix C."""
    random = np.random.default_rng(0)
    shifts, lengths = random.exponential(size=(4, 3, 50)), [50, 31, 8]
    real = np.arange(50) < np.array(lengths)[:, None]
    cap = np.array([np.percentile(layer[real], 99.5) for layer in shifts])
    wanted = np.zeros((3, 50))
    for row, n in enumerate(lengths):
        clipped = np.minimum(shifts[:, row, :n], cap[:, None])
        hat = clipped / (1e-6 + clipped.mean(-1, keepdims=True))
        wanted[row, :n] = hat.mean(0) if how == "mean" else hat.max(0)
    given, mask = torch.tensor(shifts), torch.tensor(real)

    levels = clip_levels(given, mask)
    np.testing.assert_allclose(levels.numpy(), cap, **NEAR)
    np.testing.assert_allclose(aggregated(normalized(given, mask, levels), how).numpy(), wanted, **NEAR)


def gate_of(share: float = 0.5, **options: Any) -> TokenGate:
    config = MaskLoRA(**options)
    gate = TokenGate(config, layer=1, width=6, kept=(0,), share=SharePoint(share, share, share), layers=2)
    return gate.double().train()


def test_the_gate_is_a_hard_concrete_of_the_scores(monkeypatch: Any) -> None:
    """§2.3, m̃ = HC(φ, τ, u) with φ = a·(ŝ − κ − b)."""
    gate = gate_of(sharpness=3.0)
    u = torch.rand(2, 5, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand_like", lambda _like: u)
    gate.full = torch.rand(2, 5, dtype=torch.float64) * 2
    gate.offset.data.fill_(0.1)
    gate.temperature.fill_(0.7)
    answer = gate(torch.randn(2, 5, 6, dtype=torch.float64)).detach().numpy()
    scores = gate.full.numpy()

    kappa = np.quantile(scores, 0.5)
    phi = 3.0 * (scores - kappa - 0.1)
    wanted = np.clip(1.2 * sigmoid((np.log(u.numpy() / (1 - u.numpy())) + phi) / 0.7) - 0.1, 0, 1)
    wanted[:, 0] = 1  # a position that the head reads
    np.testing.assert_allclose(answer, wanted, rtol=0, atol=1e-6)


def test_the_objective_with_the_sign_of_the_bound() -> None:
    """Eq. 2; η weighs Σ ŝ(1 − m̃), the bound of Proposition 3.3, where the paper prints + ŝᵀm̃."""
    options = {"sparsity": 0.2, "consistency": 0.7, "concentration": 0.4, "penalty": 5.0}
    gate = gate_of(share=0.4, **options)
    gate.multiplier.fill_(0.3)
    gate.full = torch.rand(2, 5, dtype=torch.float64) + 0.5
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    gate(torch.randn(2, 5, 6, dtype=torch.float64), mask)
    record = gate.record
    assert record is not None
    m, s, p = (getattr(record, name).detach().numpy() for name in ("gate", "scores", "open"))
    real = mask.numpy()
    share, bound = (p * real).sum() / 8, (s * (1 - m) * real).sum() / 8
    predicted = ((record.predicted.detach().numpy() - np.log(s)) ** 2 * real).sum() / 8

    wanted = 0.2 * share + 0.7 * 1.5 + 0.4 * bound + 0.3 * (share - 0.4) + 5.0 * (share - 0.4) ** 2 + predicted
    loss = token_loss([gate], torch.tensor(1.5, dtype=torch.float64))
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-10)


def test_scores_carry_no_gradient_unless_asked() -> None:
    for stopped in (True, False):
        gate = gate_of(stop_gradient=stopped)
        scores = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
        gate.full = scores * 1.0
        gate(torch.randn(2, 5, 6, dtype=torch.float64)).sum().backward()
        assert (scores.grad is None) is stopped


def test_the_threshold_inverts_the_empirical_distribution() -> None:
    """Appendix C, κ = F⁻¹(1 − ρ)."""
    scores = np.random.default_rng(1).lognormal(sigma=0.4, size=5000)
    histogram = ScoreHistogram()
    for part in np.array_split(scores, 7):
        histogram.observe(torch.tensor(part))
    for share in (0.9, 0.7, 0.5, 0.3, 0.1):
        kappa = histogram.level(share)
        assert kappa == pytest.approx(np.quantile(scores, 1 - share), rel=2 ** (10 / 128) - 1)
        assert (scores >= kappa).mean() == pytest.approx(share, abs=0.01)


def network(states: np.ndarray, value: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Logits of one residual layer over masked streams, and a pooled head: smooth, so Lipschitz on what it is given."""
    return np.tanh(states + np.tanh(states @ value)).sum(0) @ out


def divergence(z: np.ndarray, other: np.ndarray) -> float:
    p, q = (np.exp(v - v.max()) / np.exp(v - v.max()).sum() for v in (z, other))
    return float((p * np.log(p / q)).sum())


def test_the_divergence_is_bounded_by_the_scores_of_what_is_dropped() -> None:
    """Lemma 3.1 with C = 2α·c_norm, α from assumption A4 along the path; and Corollary 3.2."""
    random = np.random.default_rng(0)
    n, d, classes = 6, 4, 3
    value, out = random.normal(size=(d, d)) * 0.3, random.normal(size=(d, classes)) * 0.2
    for _ in range(20):
        states = random.normal(size=(n, d)) * 0.5
        scores = np.linalg.norm(states, axis=1)
        hat = scores / (1e-6 + scores.mean())
        mask = random.integers(0, 2, n).astype(bool)
        mask[0], mask[1] = True, False
        erased = states * ~mask[:, None]
        alpha = 0.0
        for t in np.linspace(0, 1, 41):
            at = states - t * erased
            for i in np.flatnonzero(~mask):
                step = np.zeros_like(states)
                step[i] = 1e-6 * states[i]
                slope = (network(at + step, value, out) - network(at - step, value, out)) / 2e-6
                alpha = max(alpha, np.abs(slope).max() / scores[i])
        constant = 2 * alpha * 1.01 * (1e-6 + scores.mean())  # c_norm = ε + mean; 1 % for the grid over t
        whole, kept = network(states, value, out), network(states * mask[:, None], value, out)
        k = int(mask.sum())
        best = np.argsort(-hat)[:k]

        assert divergence(whole, kept) <= constant * hat[~mask].sum()
        assert np.delete(hat, best).sum() <= hat[~mask].sum() + 1e-12


@pytest.mark.parametrize("how", ["mean", "max"])
def test_the_shift_of_attention_logits_from_the_low_rank_factors(how: str) -> None:
    """§4.1, ‖Δα‖₂ from the product restricted to rank-r factors; appendix C, head mean and head max."""
    inputs = tiny_inputs("bert", batch=3, tokens=7)
    attach = AttachLora(3, 6.0, 0.0, ("query", "key"))
    graph = capture(tiny("bert").double(), inputs).graph_module
    passes = Pipeline((FreezeRegularization(), attach, ShowTokenScores("logits", how)))
    graph = passes(graph, verify=True).graph_module.eval()
    for name, parameter in graph.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.3)
    run = Recorded(graph)
    shifts = run.run(*inputs.values())[TOKEN_SCORES].detach().numpy()
    sites = {site.name: site for site in find_sites(graph)[0]}
    real = inputs["attention_mask"].numpy().astype(bool)
    for layer in range(2):
        delta = {}
        for part in ("query", "key"):
            site = sites[f"bert.encoder.layer.{layer}.attention.self.{part}"]
            b, a = (get_tensor(graph, str(node.target)).detach().numpy() for node in (site.lora_b, site.lora_a))
            delta[part] = (run.values[site.x].detach().numpy() @ (2.0 * b @ a).T).reshape(3, 7, 4, 8)
        alpha = np.einsum("bihe,bjhe->bhij", delta["query"], delta["key"]) / np.sqrt(8)
        norms = np.sqrt((alpha**2 * real[:, None, None, :]).sum(-1))
        wanted = norms.mean(1) if how == "mean" else norms.max(1)
        np.testing.assert_allclose(shifts[layer], wanted, **NEAR)
