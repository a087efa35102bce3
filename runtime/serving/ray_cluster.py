"""Ray and its Serve for as long as one server needs them: started here, or a cluster of others that is left as it was.

Beside `ray_serve.py` the only file that knows Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...errors import GatefxError, InputError, missing_package
from .options import ServeOptions

try:
    import ray
    from ray import serve
except ImportError as error:
    raise missing_package("ray", extra="serve", feature="Serving a folder") from error

ADDRESS = "RAY_ADDRESS"
"""Environment variable of Ray: the cluster to join."""
_STARTS = 3
_TOO_SLOW = "timed out during startup"
_DELETING_S = 60
"""How long Ray waits for an application to go, whatever its replicas were granted."""


@contextmanager
def cluster(options: ServeOptions, models: int = 1) -> Iterator[None]:
    """Ray with room for replicas of so many models: the cluster that $RAY_ADDRESS names, else this process's own.

    Raises:
        InputError: more replicas than CPUs, in a cluster that nobody will enlarge; GatefxError: Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a server that was not asked to sends nothing home
    own = ADDRESS not in os.environ
    if own:
        start_ray()
    else:
        _join(os.environ[ADDRESS])
    try:
        if own:
            _check_room(options, models)
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        ray.init(log_to_driver=False)
    except Exception as error:
        # Errors of an address have no type in common but Exception.
        raise GatefxError(
            "There is no Ray cluster to join.",
            given=f"{ADDRESS}={address}: {error}",
            expected="the address of a cluster that runs, such as HOST:6379",
            remedy=f"start one with `ray start --head`, or unset {ADDRESS} to serve on this machine alone",
        ) from error


def start_ray(cpus: int | None = None) -> None:
    """A cluster of this machine that ends with this process; `cpus` it has, None for those of the machine.

    Ray gives a node 30 seconds to come up. A busy machine takes longer now and then, so it is tried again; processes of
    a failed attempt end with this one, as Ray binds them to it.

    Raises:
        GatefxError: it did not come up.
    """
    for attempt in range(_STARTS):
        try:
            # "local": without an address Ray joins whatever cluster somebody runs on this machine.
            ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
            return
        except Exception as error:
            # Ray's error for this has no type but Exception.
            if _TOO_SLOW not in str(error) or attempt + 1 == _STARTS:
                raise GatefxError(
                    "Ray does not start on this machine.",
                    given=f"{error}, attempt {attempt + 1}",
                    expected="a node that comes up within 30 seconds",
                    remedy=f"Try again when the machine is less busy, or join a cluster: set {ADDRESS}.",
                ) from error


@contextmanager
def door(application: Any, name: str, *, host: str, port: int, drain_s: float) -> Iterator[None]:
    """Serve in the cluster with one application, behind an HTTP door at host:port.

    At the end the application answers what it has and goes, and Serve with it unless others serve there by then.

    Raises:
        InputError: Serve runs there already. Its door is where others opened it, and its applications are theirs.
    """
    _check_unused()
    serve.start(http_options={"host": host, "port": port})
    try:
        serve.run(application, name=name)
        yield
    finally:
        for _ in range(1 + int(drain_s // _DELETING_S)):
            with suppress(TimeoutError):  # some replica answers still
                serve.delete(name)
                break
        if not serve.status().applications:
            serve.shutdown()


def _check_unused() -> None:
    found = serve.status()
    if found.proxies or found.applications:
        raise InputError(
            "Ray Serve runs in this cluster already.",
            given=f"$RAY_ADDRESS, with {', '.join(sorted(found.applications)) or 'no application'}",
            expected="a cluster without Serve",
            remedy="Run `serve shutdown` if nobody needs it, or add the folder to it in Python: "
            "serve.run(build_app(folder), name=…, route_prefix=…), build_app of gatefx.runtime.serving.ray_serve.",
        )


def _check_room(options: ServeOptions, models: int) -> None:
    there, needed = int(ray.cluster_resources().get("CPU", 0)), models * options.replicas * options.threads
    if needed > there:
        raise InputError(
            "There are fewer CPUs than the replicas take.",
            given=f"{models} models of {options.replicas} replicas of {options.threads} threads",
            expected=f"at most {there} together",
            remedy=f"Ask for fewer replicas or threads, or set {ADDRESS} to a larger cluster.",
        )
