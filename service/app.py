"""The composition root: builds every part from Settings, and starts and stops them together."""

import asyncio
import contextlib
import importlib.metadata
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry

from service.caches.breaker import Breaker
from service.caches.memory_cache import MemoryCache
from service.caches.redis_cache import RedisCache
from service.caches.redis_connection import RedisConnection
from service.caches.tiered_cache import TieredCache
from service.contract.checkpoint import Checkpoint
from service.engines.base import CHECK_EVERY_S, Engine, EngineModel
from service.engines.fake_engine import FakeEngine
from service.engines.vllm.engine import VllmEngine, require_vllm
from service.errors import CacheUnavailableError, ConfigurationError, ExplanationStoreError
from service.explaining.base import ModeStore, TraceStore
from service.explaining.explainer import DropReason, Explainer
from service.explaining.explanations import Explanations
from service.explaining.guard import Guard
from service.explaining.memory_stores import MemoryModeStore, MemoryTraceStore
from service.explaining.redis_stores import RedisModeStore, RedisTraceStore
from service.explaining.switch import Switch
from service.http.answering import Api, Backend
from service.http.auth import RELOAD_EVERY_S, Keyring
from service.http.console import build_console_router
from service.http.error_handlers import install_error_handlers
from service.http.explain_routes import build_explaining_router
from service.http.middleware import AdminPort, RequestObserver
from service.http.note_routes import build_note_router
from service.http.openapi import install_openapi
from service.http.rate_limit import PairsLimiter
from service.http.receive import BodyDiscarder
from service.http.routes import build_operating_router, build_scoring_router
from service.http.shadow_routes import build_shadow_router
from service.observability.background import cancel_and_wait, run_forever
from service.observability.live import LiveFigures
from service.observability.metrics import Metrics
from service.observability.tracing import Tracer
from service.scoring.admission import Admission, FullStep
from service.scoring.prompter import Prompter
from service.scoring.readiness import Readiness, bring_up, check_engine
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.shadowing.http_target import HttpTarget
from service.shadowing.shadow import Shadow
from service.vectors.base import NoteEncoder, VectorStore
from service.vectors.encoding import Encoding
from service.vectors.fake_encoder import FakeEncoder
from service.vectors.memory_store import MemoryVectorStore
from service.vectors.probed_encoder import ProbedEncoder
from service.vectors.process_encoder import ProcessEncoder
from service.vectors.redis_store import RedisVectorStore
from service.vectors.stored_vectors import StoredVectors

logger = logging.getLogger(__name__)

EXPLANATION_CONNECTIONS = 16
VERSION = importlib.metadata.version("notegrade")


@dataclass(frozen=True, slots=True)
class ScoringStack(Backend):
    """The service without its HTTP server. Enter `running` to start the engine in the background; leaving it stops everything."""

    cache: TieredCache
    stores: tuple[ModeStore, TraceStore]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        """Yield the task that starts the engine and checks its probes; `readiness` says how it ended."""
        logger.info("starting", extra={"version": VERSION, **self.checkpoint.manifest.versions})
        self.cache.start()
        self.explanations.start()
        if self.encoding:
            self.encoding.start()
        if self.shadow:
            self.shadow.start()
        bringing_up = asyncio.create_task(bring_up(self.engine, self.checkpoint, self.readiness))
        check = partial(check_engine, self.engine, self.readiness)
        checking = run_forever("the check of the engine", check, every_s=CHECK_EVERY_S)
        watching = asyncio.create_task(checking)
        try:
            yield bringing_up
        finally:
            self.readiness.set("draining", "the service is stopping")
            watching.cancel()
            await self.end_work()
            if self.encoding:
                await self.encoding.close()
            # The engine closes first, because that ends a load that is under way early, and its task with it.
            await self.engine.close()
            await asyncio.gather(bringing_up, watching, return_exceptions=True)
            await self.cache.close()
            if self.shadow:
                await self.shadow.close()
            for store in self.stores:
                await store.close()


def require_engine(settings: Settings) -> None:
    """Raise CommandError, which names the missing extra, if the engine of the settings is not installed."""
    if settings.engine == "vllm":
        require_vllm()


def build_stack(
    settings: Settings, checkpoint: Checkpoint, registry: CollectorRegistry, engine: Engine | None = None
) -> ScoringStack:
    """Build the service on the checkpoint, on the engine of the settings unless one is given; nothing is started yet."""
    if settings.reading == "text":
        checkpoint = replace(checkpoint, vectors=None)
    metrics = Metrics(registry)
    metrics.build_info.labels(version=VERSION, **checkpoint.manifest.versions).set(1)
    engine = engine or _build_engine(settings, checkpoint)
    cache = _build_cache(settings, metrics)
    step = FullStep(settings.engine_max_batched_tokens, settings.engine_max_sequences)
    admission = Admission(settings.max_backlog_tokens, step, monotonic, metrics)
    live = LiveFigures()
    readiness = Readiness(metrics)
    # Not while the engine loads: the encoder would load beside it.
    encoding = _build_encoding(
        settings, checkpoint, lambda: readiness.is_ready and not admission.backlog_tokens, metrics
    )
    prompter = Prompter(checkpoint, settings.reading, encoding)
    scorer = Scorer(checkpoint, prompter, engine, cache, admission, metrics, live)
    stores = _build_stores(settings)
    switch = Switch(stores[0], metrics)
    guard = Guard(switch, live, lambda: admission.backlog_share, settings, metrics)

    def why_not_explain() -> DropReason | None:
        if switch.now.name == "off":
            return "mode_off"
        return "scoring_busy" if guard.is_breached else None

    explainer = Explainer(
        checkpoint, engine, settings, why_not_explain, metrics, log_texts=settings.log_texts
    )
    explanations = Explanations(switch, guard, explainer, stores[1], settings.explanation_max_ttl_s)
    return ScoringStack(
        checkpoint=checkpoint,
        engine=engine,
        scorer=scorer,
        explanations=explanations,
        shadow=_build_shadow(settings, len(checkpoint.manifest.labels), metrics),
        readiness=readiness,
        metrics=metrics,
        live=live,
        encoding=encoding,
        cache=cache,
        stores=stores,
    )


def build_app(settings: Settings, stack: ScoringStack, admin_port: int | None = None) -> FastAPI:
    """Build the HTTP application, which starts and stops the stack. Raises ConfigurationError for bad keys.

    With an admin port, the routes for operators are served on that port only.
    """
    keyring = load_keyring(settings)
    versions = {f"notegrade.{name}": value for name, value in stack.checkpoint.manifest.versions.items()}
    tracer = Tracer(VERSION, versions) if settings.tracing else None

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        reloading = _start_reloading(keyring, settings)
        try:
            async with stack.running():
                yield
        finally:
            await cancel_and_wait(*reloading)
            if tracer:
                await asyncio.to_thread(tracer.close)

    # Offline: the scripts of /docs come from a package, because clusters seldom reach a public CDN.
    app = FastAPIOffline(
        redoc_url=None,
        title="Notegrade",
        version=VERSION,
        lifespan=lifespan,
        summary="Grades how well notes answer a query.",
    )
    if admin_port is not None:
        app.add_middleware(AdminPort, port=admin_port)
    app.add_middleware(BodyDiscarder, timeout_s=settings.request_body_timeout_s)
    app.add_middleware(
        RequestObserver,
        metrics=stack.metrics,
        tracer=tracer,
        versions=stack.checkpoint.manifest.versions,
        log_texts=settings.log_texts,
    )
    install_error_handlers(app)
    pairs_limiter = PairsLimiter(settings.rate_limit) if settings.rate_limit else None
    api = Api(stack, keyring, settings, pairs_limiter, VERSION, settings.log_texts)
    app.include_router(build_scoring_router(api))
    app.include_router(build_operating_router(api))
    app.include_router(build_explaining_router(api))
    app.include_router(build_shadow_router(api))
    app.include_router(build_note_router(api))
    app.include_router(build_console_router())
    install_openapi(app, settings)
    return app


def listening_addresses(settings: Settings) -> list[tuple[str, int]]:
    """Return the host and port to listen on, and those for operators if they are set.

    Raises ConfigurationError for an address beyond loopback while no keys are set.
    """
    keyless = load_keyring(settings).is_empty
    host = settings.host or ("127.0.0.1" if keyless else "0.0.0.0")  # noqa: S104 - keys are set
    addresses = [(host, settings.port)]
    if settings.admin_port is not None:
        addresses.append((settings.admin_host or host, settings.admin_port))
    for public in (host for host, _ in addresses if keyless and not _is_loopback(host)):
        raise ConfigurationError(
            f"without NOTEGRADE_KEYS only loopback is served, not {public}: `notegrade key` makes a key"
        )
    return addresses


def load_keyring(settings: Settings) -> Keyring:
    """Load the keys of the settings and of the file that they name. Raises ConfigurationError."""
    return Keyring.load(settings.keys.get_secret_value(), settings.keys_file)


def _start_reloading(keyring: Keyring, settings: Settings) -> list["asyncio.Task[None]"]:
    if settings.keys_file is None:
        return []
    reload = partial(keyring.reload, settings.keys.get_secret_value(), settings.keys_file)
    return [asyncio.create_task(run_forever("the reload of keys", reload, every_s=RELOAD_EVERY_S))]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _build_engine(settings: Settings, checkpoint: Checkpoint) -> Engine:
    manifest, second = checkpoint.manifest, checkpoint.vectors
    model = EngineModel(
        checkpoint.folder,
        manifest.label_token_ids,
        max(checkpoint.renderer.max_prompt_tokens, second.max_prompt_tokens if second else 0),
        checkpoint.end_token_ids,
        settings.explanation_max_tokens,
        second.reading.width if second else 0,
    )
    return FakeEngine(model) if settings.engine == "fake" else VllmEngine(model, settings)


def _build_cache(settings: Settings, metrics: Metrics) -> TieredCache:
    local = MemoryCache(settings.local_cache_pairs, settings.cache_ttl_s)
    remote = None
    if settings.redis_url is not None:
        remote = RedisCache(
            settings.redis_url.get_secret_value(),
            settings.cache_ttl_s,
            settings.redis_timeout_ms / 1000,
            settings.redis_max_connections,
            cluster=settings.redis_cluster,
        )
    breaker = Breaker(settings.breaker_failures, settings.breaker_open_s)
    return TieredCache(local, remote, breaker, metrics)


def _build_encoding(
    settings: Settings, checkpoint: Checkpoint, is_idle: Callable[[], bool], metrics: Metrics
) -> Encoding | None:
    if (second := checkpoint.vectors) is None:
        return None
    reading, ttl_s = second.reading, settings.vector_ttl_s
    store: VectorStore = MemoryVectorStore(settings.vector_memory_mib << 20, ttl_s)
    if settings.redis_url is not None:
        connection = RedisConnection(
            settings.redis_url.get_secret_value(),
            settings.redis_timeout_ms / 1000,
            settings.redis_max_connections,
            CacheUnavailableError,
            cluster=settings.redis_cluster,
        )
        store = RedisVectorStore(connection, ttl_s, cluster=settings.redis_cluster)
    stored = StoredVectors(
        store,
        Breaker(settings.breaker_failures, settings.breaker_open_s),
        metrics,
        encoder_fingerprint=checkpoint.manifest.encoder_fingerprint,
        per_note=reading.per_note,
        width=reading.width,
    )
    encoder: NoteEncoder = FakeEncoder(reading.per_note, reading.width)
    if settings.engine == "vllm":
        encoder = ProcessEncoder(second.encoder, reading.per_note)
    probed = ProbedEncoder(encoder, second)
    return Encoding(second.renderer, stored, probed, is_idle, settings, metrics)


def _build_stores(settings: Settings) -> tuple[ModeStore, TraceStore]:
    kept_s, kept_requests = settings.explanation_kept_s, settings.explanation_kept_requests
    if settings.redis_url is None:
        return MemoryModeStore(), MemoryTraceStore(kept_s, kept_requests, max_traces=settings.max_notes)
    connection = RedisConnection(
        settings.redis_url.get_secret_value(),
        # No score waits for these calls: a second's wait is better than a flip that fails because Redis was slow once.
        timeout_s=max(1.0, settings.redis_timeout_ms / 1000),
        max_connections=EXPLANATION_CONNECTIONS,
        failure=ExplanationStoreError,
        cluster=settings.redis_cluster,
    )
    traces = RedisTraceStore(connection, kept_s, kept_requests, max_traces=settings.max_notes)
    return RedisModeStore(connection), traces


def _build_shadow(settings: Settings, grades: int, metrics: Metrics) -> Shadow | None:
    if settings.shadow_url is None:
        return None
    key, timeout_s = settings.shadow_key.get_secret_value(), settings.shadow_timeout_ms / 1000
    target = HttpTarget(settings.shadow_url, key, timeout_s)
    return Shadow(target, grades, settings, metrics, log_texts=settings.log_texts)
