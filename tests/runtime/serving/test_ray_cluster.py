"""Ray is started until it is there, joined clusters are left as they were, and a Serve of others is not touched."""

from __future__ import annotations

import importlib.util
import warnings
from types import ModuleType
from typing import Any

import pytest

from gatefx.errors import GatefxError, InputError
from gatefx.runtime.serving.options import ServeOptions

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed here: no cluster is started (pip install 'gatefx[serve]', or make serve-checks)",
)
SLOW = "The current node timed out during startup. This could happen because …"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, while it is imported
        from gatefx.runtime.serving import ray_cluster
    return ray_cluster


class Ray:
    """Stands in for Ray: starts after so many failures, and says what was asked of it."""

    def __init__(self, failures: list[str], cpus: float = 2.0) -> None:
        self.failures, self.cpus, self.calls = failures, cpus, list[tuple[Any, ...]]()

    def init(self, *address: str, **options: Any) -> None:
        self.calls.append(("init", *address))
        if self.failures:
            raise Exception(self.failures.pop(0))  # as Ray does

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cpus}

    def shutdown(self) -> None:
        self.calls.append(("shutdown",))


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_busy_machine_gets_more_than_one_try(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    ray = Ray([SLOW] * failures)
    monkeypatch.setattr(module, "ray", ray)
    module.start_ray()
    assert ray.calls == [("init", "local")] * (failures + 1)


@pytest.mark.parametrize(("failures", "tries"), [([SLOW] * 9, 3), (["no such address", SLOW], 1)])
def test_what_does_not_start_is_an_error(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, failures: list[str], tries: int
) -> None:
    ray = Ray(list(failures))
    monkeypatch.setattr(module, "ray", ray)
    with pytest.raises(GatefxError, match="does not start") as caught:
        module.start_ray()
    assert failures[0] in caught.value.given
    assert len(ray.calls) == tries


def test_more_replicas_than_cpus_are_refused_and_ray_is_stopped(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = Ray([])
    monkeypatch.setattr(module, "ray", ray)
    monkeypatch.delenv(module.ADDRESS, raising=False)
    with pytest.raises(InputError, match="fewer CPUs"), module.cluster(ServeOptions(replicas=2, threads=2)):
        raise AssertionError("it was let in")
    assert ray.calls == [("init", "local"), ("shutdown",)]


def test_a_cluster_that_is_joined_may_grow(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray([])
    monkeypatch.setattr(module, "ray", ray)
    monkeypatch.setenv(module.ADDRESS, "10.0.0.1:6379")
    with module.cluster(ServeOptions(replicas=64)):
        assert ray.calls == [("init",)]
    assert ray.calls[-1] == ("shutdown",)


def test_a_cluster_that_is_not_there_is_named(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ray", Ray(["no such address"]))
    monkeypatch.setenv(module.ADDRESS, "nowhere:6379")
    with pytest.raises(GatefxError, match="no Ray cluster") as caught, module.cluster(ServeOptions()):
        raise AssertionError("it was let in")
    assert "nowhere:6379" in caught.value.given


def test_a_serve_of_others_is_not_touched(module: ModuleType, cluster: str) -> None:
    from ray import serve

    @serve.deployment
    class Other:
        def __call__(self) -> str:
            return "here"

    handle = serve.run(Other.bind(), name="theirs", route_prefix="/theirs")
    opened = module.door(Other.bind(), "ours", host="127.0.0.1", port=8799, drain_s=1.0)
    with pytest.raises(InputError, match="runs in this cluster already") as caught, opened:
        raise AssertionError("it was let in")
    assert "theirs" in caught.value.given
    assert set(serve.status().applications) == {"theirs"}
    assert handle.remote().result() == "here"
    serve.delete("theirs")
