"""Two replicas on this machine answer as the session does, whoever asks beside them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gatefx
from gatefx.errors import BudgetError, InputError
from gatefx.runtime.serving.json_door import MOST_BYTES
from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.sessions.onnxruntime import OnnxSession

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed here: nothing is served (pip install 'gatefx[serve]', or make serve-checks)",
)
REQUESTS, CLIENTS, WINDOW_MS = 1000, 8, 60.0
BUDGETS = (None, 1, 2.5, 4)

Ask = Callable[..., tuple[int, Any]]
Text = Callable[[int], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def handle(cluster: str, served_folder: Path) -> Any:
    from ray import serve

    from gatefx.runtime.serving.ray_serve import APPLICATION, build_app

    options = ServeOptions(replicas=2, max_batch=CLIENTS, wait_ms=WINDOW_MS, measure_every=3)
    return serve.run(build_app(served_folder, options), name=APPLICATION)


def as_json(arrays: dict[str, np.ndarray], budget: Any = None) -> dict[str, Any]:
    inputs = {name: array[0].tolist() for name, array in arrays.items()}
    return {"inputs": inputs} if budget is None else {"inputs": inputs, "budget": budget}


def together(tasks: list[Callable[[], Any]]) -> list[Any]:
    """Their results, all started at once."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def mean(metric: Callable[[str], float], name: str) -> float:
    """Of a histogram's values, from a sum and a count that belong together."""
    for _ in range(60):
        counted, total = metric(f"{name}_count"), metric(f"{name}_sum")
        if metric(f"{name}_count") == counted:
            return total / counted
    raise AssertionError(f"{name} does not come to rest")


def test_a_thousand_ragged_requests_are_answered_as_the_session_does(
    handle: Any, cluster: str, session: Any, text: Text, ask: Ask, tolerance: Any, record_property: Any
) -> None:
    """Half over HTTP, half by handle. Padding changes the order of sums, so not every bit has to be the same."""

    def budget_of(seed: int) -> Any:
        return BUDGETS[seed // CLIENTS % len(BUDGETS)]  # of all clients at a time, so that they share batches

    def client(number: int) -> list[np.ndarray]:
        found = []
        for seed in range(number, REQUESTS, CLIENTS):
            budget = budget_of(seed)
            if number % 2:
                status, body = ask(cluster, as_json(text(seed), budget))
                assert status == 200, body
                found.append(np.asarray(body["outputs"]["logits"], dtype=np.float32))
            else:
                found.append(handle.infer.remote(text(seed), budget).result()["logits"])
        return found

    answers = together([lambda number=number: client(number) for number in range(CLIENTS)])
    same = 0
    for seed in range(REQUESTS):
        answer = answers[seed % CLIENTS][seed // CLIENTS]
        expected = session.run(text(seed), budget=budget_of(seed))["logits"]
        np.testing.assert_allclose(answer, expected, atol=tolerance[torch.float32], rtol=0)
        same += np.array_equal(answer, expected)
    record_property("bit-equal", same)
    print(f"{same} of {REQUESTS} answers have the bits of the session's")


def test_a_bad_request_is_told_why_and_its_neighbours_are_answered(
    handle: Any, cluster: str, session: Any, text: Text, ask: Ask, tolerance: Any
) -> None:
    good = as_json(text(0))
    ids = good["inputs"]["input_ids"]
    mask = {"attention_mask": [1] * len(ids)}
    bad: list[tuple[Any, str]] = [
        ({"inputs": {**good["inputs"], "token_types": ids}}, "no input 'token_types'"),
        ({"inputs": {"input_ids": [0.5] * len(ids), **mask}}, "'input_ids' does not fit"),
        ({"inputs": {"input_ids": [1] * 129, "attention_mask": [1] * 129}}, "too long"),
        ({**good, "budget": 99}, "budget"),
        ({"inputs": {"input_ids": [9999] * len(ids), **mask}}, "could not run the model"),
        (b"{", "no JSON"),
    ]
    tasks = [lambda body=body: ask(cluster, body) for body, _ in bad]
    tasks += [lambda seed=seed: ask(cluster, as_json(text(seed))) for seed in range(10)]
    found = together(tasks)
    for (status, body), (_, said) in zip(found, bad, strict=False):
        assert status == 422
        assert said in body["error"]
        assert body["given"]
        assert body["expected"]
        assert not body["retriable"]
    for seed, (status, body) in enumerate(found[len(bad) :]):
        assert status == 200, body
        expected = session.run(text(seed))["logits"]
        np.testing.assert_allclose(body["outputs"]["logits"], expected, atol=tolerance[torch.float32], rtol=0)


def test_a_body_too_large_is_refused(handle: Any, cluster: str, ask: Ask) -> None:
    status, body = ask(cluster, b" " * (MOST_BYTES + 1))
    assert (status, body["error"]) == (413, "The body is too large.")


def test_requests_of_one_window_have_their_own_budgets(handle: Any, session: Any, text: Text, tolerance: Any) -> None:
    budgets = [1, 4, None, 2.5, {"ccm": 4}, 1]
    found = together([lambda budget=budget: handle.infer.remote(text(0), budget).result() for budget in budgets])
    logits = [answer["logits"] for answer in found]
    for budget, answer in zip(budgets, logits, strict=True):
        expected = session.run(text(0), budget=budget)["logits"]
        np.testing.assert_allclose(answer, expected, atol=tolerance[torch.float32], rtol=0)
    assert np.abs(logits[0] - logits[1]).max() > 100 * tolerance[torch.float32]


def test_handles_raise_the_errors_of_the_library(handle: Any, text: Text) -> None:
    with pytest.raises(InputError, match="lacks the input 'attention_mask'"):
        handle.infer.remote({"input_ids": [1, 2]}).result()
    with pytest.raises(BudgetError, match="not one the artifact was calibrated for"):
        handle.infer.remote(text(0), 99).result()


def test_the_door_says_what_it_takes_and_that_a_replica_runs(handle: Any, cluster: str, ask: Ask) -> None:
    status, body = ask(cluster)
    assert (status, list(body["inputs"])) == (200, ["input_ids", "attention_mask"])
    assert body["budgets"]["ccm"]["most"] == 4
    status, body = ask(f"{cluster}/health")
    assert (status, body["status"], body["provider"]) == (200, "ok", "CPUExecutionProvider")


def test_metrics_reach_prometheus(handle: Any, text: Text, metric: Callable[[str], float]) -> None:
    together([lambda seed=seed: handle.infer.remote(text(seed), 3).result() for seed in range(CLIENTS)])
    for name in (
        "gatefx_request_seconds_count",
        "gatefx_budget_sum",
        'unit="ranks"',
        "gatefx_padding_share_sum",
        "gatefx_effective_rank_sum",
    ):
        assert metric(name) > 0, name


def test_a_second_application_has_adapters_of_both_kinds(
    handle: Any,
    cluster: str,
    plain_folder: Path,
    pruned_folder: Path,
    text: Text,
    ask: Ask,
    tolerance: Any,
    metric: Callable[[str], float],
) -> None:
    """Beside the first, behind the same door; one of its adapters cuts tokens and says how many."""
    from ray import serve

    from gatefx.runtime.serving.ray_serve import build_app

    options = ServeOptions(max_batch=CLIENTS, wait_ms=WINDOW_MS, measure_every=1)
    application = build_app(plain_folder, options, {"pruned": pruned_folder})
    serve.run(application, name="adapters", route_prefix="/adapters")
    address, plain = f"{cluster}/adapters", gatefx.load(plain_folder, threads=1)
    assert isinstance(plain, OnnxSession)
    pruned = gatefx.load(pruned_folder, threads=1)
    names = (None, "higher", "pruned", "lower")

    def expected(seed: int) -> np.ndarray:
        name = names[seed % len(names)]
        answer = pruned.run(text(seed)) if name == "pruned" else plain.run(text(seed), adapter=name)
        return answer["logits"]

    for first in range(0, 80, CLIENTS):
        seeds = range(first, first + CLIENTS)
        bodies = [as_json(text(seed)) | {"adapter": names[seed % len(names)]} for seed in seeds]
        tasks = [lambda body=body: ask(address, body) for body in bodies]
        for seed, (status, body) in zip(seeds, together(tasks), strict=True):
            assert status == 200, body
            given = body["outputs"]["logits"]
            np.testing.assert_allclose(given, expected(seed), atol=tolerance[torch.float32], rtol=0)
    status, body = ask(address, as_json(text(0)) | {"adapter": "legal"})
    assert (status, body["error"], body["given"]) == (422, "The server has no such adapter.", "'legal'")
    assert "higher, lower, pruned" in body["expected"]
    assert ask(address)[1]["adapters"] == ["higher", "lower", "pruned"]
    status, body = ask(f"{address}/health")
    assert (status, body["status"]) == (200, "ok")
    assert 0.4 < mean(metric, "gatefx_retention") < 0.6
