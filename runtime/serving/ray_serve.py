"""An artifact folder as an application of Ray Serve. Beside `ray_cluster.py` the only file that knows Ray.

    client ─HTTP JSON─▶ proxy ─▶ Door ─▶ Model ×replicas (serve.batch ─▶ one session each), a Model for each folder
    handle ─arrays────────────▶ Door ─┘

The door checks requests, so that replicas see only good ones, and sends a request again when its replica dies: answers
depend on nothing but the request, so that is safe. It loads no engine, which makes its own death unlikely.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GatefxError, UnansweredError, missing_package
from .answering import Answer, answers
from .batching import Request
from .json_door import LATER, MOST_BYTES, OK, answered, parsed, refused, too_large
from .options import ServeOptions
from .process import check_port, stop_signal
from .ray_cluster import cluster, door
from .served_model import ServedModel, open_session, served_model
from .served_models import OWN, ServedModels
from .spending import Spending

try:
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
    from ray.util import metrics
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response
except ImportError as error:
    raise missing_package("ray", extra="serve", feature="Serving a folder") from error

APPLICATION = "gatefx"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)
BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
SPENT = (
    ("effective_rank", "Ranks that an adapter ran at, the mean over sites.", (0.5, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64)),
    (
        "retention",
        "Share of the tokens that was left after the last cut.",
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    ),
)
_JSON = "application/json"
_ATTEMPTS = 3
_DRAIN_CHECK_S = 0.1
_HEALTH_PERIOD_S = 5.0


def build_app(
    folder: str | Path, options: ServeOptions | None = None, adapters: Mapping[str, str | Path] | None = None
) -> Any:
    """The application that serves `folder`: `serve.run(build_app("out/"), name="gatefx")`.

    Opens every folder here once, so that one that cannot be served is refused before anything starts.

    Args:
        folder: what `gatefx.export` wrote, at this path on every machine of the cluster; options: see `ServeOptions`.
        adapters: name → another such folder, which answers the requests that name it, with replicas of its own.

    Raises:
        ArtifactError, ProviderError, InputError: as `open_session`, `served_model` and `ServedModels`.
    """
    chosen = options or ServeOptions()
    others = {name: _opened(place, chosen) for name, place in (adapters or {}).items()}
    models = ServedModels(_opened(folder, chosen), others)
    # The door takes what the replicas hold and no more, so that nothing waits at the door when it closes.
    held = chosen.queued * chosen.replicas * len(list(models))
    door = serve.deployment(
        name="Door",
        max_ongoing_requests=held,
        max_queued_requests=held,
        ray_actor_options={"num_cpus": 0},
        **_draining(chosen),
    )(Door)
    return door.bind(models, {key: _replicas(key, model, chosen) for key, model in models})


def _opened(folder: str | Path, options: ServeOptions) -> ServedModel:
    """What the folder holds, once it has answered something."""
    place = str(Path(folder).absolute())
    session = open_session(place, options)
    model = served_model(place, session, options)
    answers(session, model, [model.probe()], width=1, most=1)
    return model


def _replicas(key: str, model: ServedModel, options: ServeOptions) -> Any:
    deployment = serve.deployment(
        name=f"Model-{key}" if key else "Model",
        num_replicas=options.replicas,
        max_ongoing_requests=options.queued,
        health_check_period_s=_HEALTH_PERIOD_S,
        ray_actor_options={"num_cpus": options.threads},
        **_draining(options),
    )(Model)
    return deployment.bind(model, options)


def _draining(options: ServeOptions) -> dict[str, float]:
    return {"graceful_shutdown_timeout_s": options.drain_s, "graceful_shutdown_wait_loop_s": _DRAIN_CHECK_S}


def serve_folder(
    folder: str | Path,
    options: ServeOptions,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    host: str,
    port: int,
    ready: Callable[[str], None],
) -> None:
    """Serve `folder` until SIGINT or SIGTERM, then answer what is in flight and return.

    Joins the cluster that $RAY_ADDRESS names, else starts one on this machine that ends with this call.

    Args:
        adapters: as `build_app`; host, port: of the HTTP door; ready: is told its address once it answers.

    Raises:
        InputError: a port that is taken, more replicas than CPUs, or a cluster where Serve runs already.
        GatefxError: Ray does not start. Others as `build_app`.
    """
    application = build_app(folder, options, adapters)
    check_port(host, port)
    opened = door(application, APPLICATION, host=host, port=port, drain_s=options.drain_s)
    with cluster(options, models=1 + len(adapters or {})), stop_signal() as stopped, opened:
        ready(f"http://{host}:{port}")
        stopped.wait()


class Model:
    """One replica: a session, and the window in which requests meet."""

    def __init__(self, model: ServedModel, options: ServeOptions) -> None:
        self._model, self._options = model, options
        self._session = open_session(model.folder, options)
        self._window = serve.batch(max_batch_size=options.max_batch, batch_wait_timeout_s=options.wait_ms / 1000)(
            self._together
        )
        self._padding = metrics.Histogram(
            "gatefx_padding_share", "Share of a batch's tokens that is padding.", boundaries=SHARES
        )
        self._spending = Spending.open(model, options.threads) if options.measure_every else None
        self._measuring: asyncio.Task[None] | None = None
        self._answered = 0
        self._spent = {name: metrics.Histogram(f"gatefx_{name}", text, bounds) for name, text, bounds in SPENT}
        self._again = metrics.Counter(
            "gatefx_recovered_examples", "Examples run again because they were too uncertain."
        )

    async def answer(self, request: Request) -> Answer:
        """Of one request, from the batch that it runs in."""
        answer: Answer = await self._window(request)
        self._answered += 1
        due = self._spending is not None and self._answered % self._options.measure_every == 0
        if due and not isinstance(answer, GatefxError) and (self._measuring is None or self._measuring.done()):
            self._measuring = asyncio.create_task(self._measure(request))
        return answer

    async def health(self) -> dict[str, str]:
        """What runs here; it answers only where the model runs."""
        await self.check_health()
        return {"provider": self._session.provider, "native": str(self._session.native)}

    async def check_health(self) -> None:
        """Ray restarts a replica whose check raises."""
        await asyncio.to_thread(self._session.run, self._model.probe().arrays)

    async def _measure(self, request: Request) -> None:
        if self._spending is not None:
            for name, value in (await asyncio.to_thread(self._spending.measured, request)).items():
                self._spent[name].observe(value)

    async def _together(self, requests: list[Request]) -> list[Answer]:
        before = self._session.recovered
        found, shares = await asyncio.to_thread(
            answers,
            self._session,
            self._model,
            requests,
            width=self._options.width,
            most=self._options.max_batch,
        )
        for share in shares:
            self._padding.observe(share)
        if self._session.recovered > before:
            self._again.inc(self._session.recovered - before)
        return found


class Door:
    """Takes requests over HTTP and from handles, and answers each of them once."""

    def __init__(self, models: ServedModels, replicas: Mapping[str, Any]) -> None:
        self._models, self._replicas = models, replicas
        self._seconds = metrics.Histogram(
            "gatefx_request_seconds", "From the door and back.", boundaries=SECONDS, tag_keys=("outcome",)
        )
        self._budgets = metrics.Histogram(
            "gatefx_budget",
            "What a request's budget lets an example take on average: effective ranks, share of tokens kept.",
            boundaries=BUDGETS,
            tag_keys=("method", "unit"),
        )
        self._again = metrics.Counter("gatefx_sent_again", "Requests whose replica died before it answered.")

    async def __call__(self, http: HttpRequest) -> Response:
        """POST answers a request; GET describes the models, or at /health says that they run."""
        try:
            if http.method == "POST":
                return Response(answered(await self.infer(*parsed(await _body(http)))), OK, media_type=_JSON)
            if http.url.path.rstrip("/").endswith("/health"):
                return Response(json.dumps(await self.health()), OK, media_type=_JSON)
            return Response(json.dumps(self._models.described()), OK, media_type=_JSON)
        except GatefxError as error:
            status, body = refused(error)
            return Response(body, status, {"retry-after": "1"} if status == LATER else None, media_type=_JSON)

    async def infer(self, arrays: Mapping[str, Any], budget: Any = None, adapter: Any = None) -> dict[str, np.ndarray]:
        """Output name → (1, …) of one example: the door for Python handles.

        Args:
            arrays: input name → (T,) or (1, T); budget: as `gatefx.load(folder).run`; adapter: whose answer, by name.

        Raises:
            InputError, BudgetError: as `ServedModel.request`, or what only running shows.
            UnansweredError: no replica could answer; the request may be sent again.
        """
        started, outcome = time.perf_counter(), "refused"
        try:
            key, request = self._models.request(arrays, budget, adapter)
            model = self._models.model(key)
            for method, spent in model.spent(request).items():
                self._budgets.observe(spent, tags={"method": method, "unit": model.units[method]})
            answer: Answer = await self._sent(self._replicas[key].answer, request)
            if isinstance(answer, GatefxError):
                raise answer
            outcome = "answered"
            return answer
        except UnansweredError:
            outcome = "unanswered"
            raise
        finally:
            self._seconds.observe(time.perf_counter() - started, tags={"outcome": outcome})

    async def health(self) -> dict[str, str]:
        """What a replica of the own model runs on, once one of every model has answered.

        Raises:
            UnansweredError: none answers.
        """
        found: dict[str, dict[str, str]] = {key: await self._sent(made.health) for key, made in self._replicas.items()}
        return {"status": "ok", **found[OWN]}

    async def _sent(self, method: Any, *arguments: Any) -> Any:
        """The answer of some replica; a request whose replica dies is sent again."""
        problem = ""
        for _ in range(_ATTEMPTS):
            try:
                return await method.remote(*arguments)
            except (RayActorError, DeploymentUnavailableError, BackPressureError) as error:
                problem = type(error).__name__
                if isinstance(error, RayActorError):
                    self._again.inc()
        raise UnansweredError(
            "No replica answered this request.",
            given=f"{problem}, {_ATTEMPTS} times",
            expected="a replica that lives until it has answered",
            remedy="Send the request again.",
        )


async def _body(http: HttpRequest) -> bytes:
    """Of a request, as far as it may be read.

    Raises:
        TooLargeError: it goes on.
    """
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise too_large(len(body))
    return bytes(body)
