"""Adapter sites as PEFT writes them, in every form that LoRA takes; and near misses with their reasons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.adapters import AdapterSite, Miss, find_sites, plain_path
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import get_tensor

from ...sampling import rest_slow

peft = pytest.importorskip("peft")

QUERY = [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
BOTH = ["first", "second"]


def scramble(model: nn.Module) -> nn.Module:
    """B random instead of zero, or no adapter would show."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def lora_model(model: nn.Module, **options: Any) -> nn.Module:
    options = {"r": 4, "lora_alpha": 8, "target_modules": BOTH, **options}
    return scramble(peft.get_peft_model(model, peft.LoraConfig(**options)))


def sites_of(graph: fx.GraphModule) -> dict[str, AdapterSite]:
    sites, misses = find_sites(graph)
    assert misses == ()
    return {site.name: site for site in sites}


def family_graph(family: str, **options: Any) -> tuple[nn.Module, fx.GraphModule]:
    model = lora_model(tiny(family), **options)
    return model, capture(model, tiny_inputs(family, batch=3, tokens=6)).graph_module


@pytest.fixture
def lora_sites(plain: nn.Module, capture_plain: Any) -> Any:
    """LoraConfig options → sites of the plain module with that adapter."""
    return lambda **options: sites_of(capture_plain(lora_model(plain, **options)))


@pytest.fixture
def lora_misses(plain: nn.Module, capture_plain: Any) -> Any:
    def make(**options: Any) -> tuple[int, tuple[Miss, ...]]:
        sites, misses = find_sites(capture_plain(lora_model(plain, **options)))
        return len(sites), misses

    return make


def test_sites_of_several_targets_have_the_names_of_the_bare_model() -> None:
    model, graph = family_graph("bert", target_modules=["query", "value", "dense"], modules_to_save=["classifier"])
    sites = sites_of(graph)

    bare = {name for name, module in tiny("bert").named_modules() if isinstance(module, nn.Linear)}
    assert set(sites) == {name for name in bare if name.endswith(("query", "value", "dense"))}
    assert all(site.path == name and site.gate is None and site.rank == 4 for name, site in sites.items())
    assert all(site.scale == 2.0 for site in sites.values())
    parameters = dict(model.named_parameters())
    for site in sites.values():
        for half, node in (("A", site.lora_a), ("B", site.lora_b)):
            name = f"base_model.model.{site.path}.lora_{half}.default.weight"
            assert torch.equal(get_tensor(graph, str(node.target)), parameters[name])


def test_rank_and_alpha_patterns_are_read_per_layer(lora_sites: Any) -> None:
    sites = lora_sites(rank_pattern={"second": 5}, alpha_pattern={"first": 16})

    assert (sites["first"].rank, sites["second"].rank) == (4, 5)
    assert sites["first"].scale == 4.0
    assert sites["second"].scale == pytest.approx(8 / 5)


def test_rslora_scales_by_the_root_of_the_rank(lora_sites: Any) -> None:
    assert {site.scale for site in lora_sites(use_rslora=True).values()} == {4.0}


def test_dropout_of_the_branch_is_looked_through(lora_sites: Any) -> None:
    sites = lora_sites(lora_dropout=0.3)

    assert set(sites) == set(BOTH)
    assert all(site.branch_input is not site.x for site in sites.values())
    assert all(site.base.args[0] is site.x for site in sites.values())


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_change_no_site(bias: str, lora_sites: Any) -> None:
    assert set(lora_sites(bias=bias)) == set(BOTH)


def test_a_scale_of_one_is_a_scale(lora_sites: Any) -> None:
    assert {site.scale for site in lora_sites(lora_alpha=4).values()} == {1.0}


def test_an_adapter_as_wide_as_its_layer_is_known_by_its_name(lora_sites: Any) -> None:
    assert lora_sites(r=12)["second"].rank == 12


@pytest.mark.parametrize("family", rest_slow(["llama", "modernbert", "distilbert"]))
def test_all_linear_is_found_in_other_families(family: str) -> None:
    model, graph = family_graph(family, target_modules="all-linear")
    wanted = {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith("lora_A")}

    assert {f"base_model.model.{name}" for name in sites_of(graph)} == wanted


def test_deberta_s_projections_of_positions_are_misses_beside_the_sites() -> None:
    """Its query and key layers also project relative positions, which no example owns."""
    sites, misses = find_sites(family_graph("deberta-v2", target_modules=["query_proj", "value_proj"])[1])

    assert len(sites) == 4
    assert {miss.where.rpartition(".")[2] for miss in misses} == {"query_proj"}
    assert all("leading axis" in miss.reason for miss in misses)


def test_conv1d_of_gpt2_is_a_site() -> None:
    sites = sites_of(family_graph("gpt2", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)[1])

    assert {(site.d_in, site.d_out) for name, site in sites.items() if "c_attn" in name} == {(32, 96)}
    assert len(sites) == 6


def test_an_image_model_s_sites() -> None:
    assert len(sites_of(family_graph("vit", target_modules=["q_proj", "query"])[1])) == 2


def test_two_adapters_active_at_once_are_two_sites_each(plain: nn.Module, capture_plain: Any) -> None:
    model = lora_model(plain)
    model.add_adapter("other", peft.LoraConfig(r=3, lora_alpha=6, target_modules=BOTH))
    model.base_model.set_adapter(["default", "other"])

    sites = sites_of(capture_plain(scramble(model)))

    assert set(sites) == {*BOTH, *(f"{name}[other]" for name in BOTH)}
    assert {site.path for site in sites.values()} == set(BOTH)
    assert {site.rank for name, site in sites.items() if "[other]" in name} == {3}


def test_dora_is_a_miss_that_says_so(lora_misses: Any) -> None:
    count, misses = lora_misses(use_dora=True)

    assert count == 0
    assert {plain_path(f"{miss.where}.weight") for miss in misses} == set(BOTH)
    assert all("DoRA" in miss.reason for miss in misses)


def test_a_bias_on_b_is_a_miss_that_says_so(lora_misses: Any) -> None:
    count, misses = lora_misses(lora_bias=True)

    assert count == 0
    assert len(misses) == 2
    assert all("has a bias" in miss.reason for miss in misses)


def test_an_embedding_adapter_is_a_miss_beside_the_sites() -> None:
    sites, misses = find_sites(family_graph("bert", target_modules=["query", "word_embeddings"])[1])

    assert {site.name for site in sites} == set(QUERY)
    assert ["embedding adapter" in miss.reason for miss in misses] == [True]
    assert "word_embeddings" in misses[0].where


class _Odd(nn.Module):
    """A layer whose branch is named like LoRA and used in a way a test chooses."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(12, 10)
        self.lora_A = nn.Linear(12, 3, bias=False)
        self.lora_B = nn.Linear(3, 10, bias=False)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        down = self.lora_A(x * 2 if self.kind == "other input" else x)
        update = self.lora_B(torch.relu(down) if self.kind == "between" else down)
        base = self.layer(x)
        if self.kind == "read twice":
            return {"logits": base + update, "update": update}
        if self.kind == "multiplied":
            return base * update
        if self.kind == "A read twice":
            return {"logits": base + update, "down": down}
        if self.kind == "subtracted":
            return torch.add(base, update, alpha=-1)
        return base + update


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("other input", "reads another input"),
        ("between", "do not form linear"),
        ("read twice", "read in several places"),
        ("multiplied", "not added to a layer"),
        ("A read twice", "besides B"),
        ("subtracted", "another shape"),
    ],
)
def test_near_misses_say_why(kind: str, reason: str, capture_plain: Any) -> None:
    sites, misses = find_sites(capture_plain(_Odd(kind)))

    assert sites == ()
    assert len(misses) == 1
    assert reason in misses[0].reason


def test_a_site_without_a_telling_name_is_found_by_structure_alone(capture_plain: Any) -> None:
    class Unnamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 10)
            self.down, self.up = nn.Linear(12, 3, bias=False), nn.Linear(3, 10, bias=False)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + self.up(self.down(x)) * 0.5

    ((site,), misses) = find_sites(capture_plain(Unnamed()))
    assert (site.path, site.rank, site.scale, misses) == ("layer", 3, 0.5, ())


def test_a_feed_forward_block_is_no_site(capture_plain: Any) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(12, 48), nn.Linear(48, 12)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(x)))

    assert find_sites(capture_plain(Residual())) == ((), ())


def test_a_site_over_shared_rows_is_a_miss(capture_plain: Any) -> None:
    class Table(_Odd):
        def __init__(self) -> None:
            super().__init__("plain")
            self.rows = nn.Parameter(torch.randn(7, 12))

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return x.sum((1, 2), keepdim=True)[..., 0] + super().forward(self.rows, attention_mask).sum()

    sites, misses = find_sites(capture_plain(Table()))
    assert sites == ()
    assert "leading axis" in misses[0].reason
