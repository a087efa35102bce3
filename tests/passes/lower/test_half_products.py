"""Products in 16 bits, the rest in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gatefx.passes.lower.half_products import half_products


class Layer(nn.Module):
    """Attention with a mask and whole numbers, a residual sum, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear, self.norm = nn.Embedding(11, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, ids: Tensor, seen: Tensor) -> dict[str, Tensor]:
        x = self.table(ids)
        y = functional.scaled_dot_product_attention(x, self.linear(x), x, attn_mask=seen[:, None, :])
        return {"states": self.norm(x + y), "ids": ids}


@pytest.mark.parametrize(("half", "bound"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
def test_products_are_cast_and_nothing_else(half: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    ids = torch.randint(11, (2, 5))
    seen = torch.rand(2, 5) < 0.7
    seen[:, 0] = True
    model = Layer().eval()
    program = torch.export.export(model, (ids, seen), strict=False)
    cast = torch.export.export(half_products(program.module(False), half), (ids, seen), strict=False)
    values = {node.target: node.meta.get("val") for node in cast.graph.nodes if node.op == "call_function"}
    kinds = {target: value.dtype for target, value in values.items() if isinstance(value, Tensor)}
    aten = torch.ops.aten
    assert kinds[aten.linear.default] == kinds[aten.scaled_dot_product_attention.default] == half
    assert kinds[aten.layer_norm.default] == kinds[aten.add.Tensor] == kinds[aten.embedding.default] == torch.float32
    answer, expected = cast.module()(ids, seen), model(ids, seen)
    assert answer["states"].dtype == torch.float32
    assert torch.equal(answer["ids"], ids)
    assert 0 < (answer["states"] - expected["states"]).abs().max() < bound
    assert program.module()(ids, seen)["states"].equal(expected["states"])
