"""What every route needs, in one value."""

from dataclasses import dataclass, field

from anyio import CapacityLimiter
from starlette.requests import Request

from server.config import Settings
from server.engine.protocol import Engine
from server.fetching import Fetcher
from server.intake import Intake
from server.metrics import Metrics
from server.translate import Translator
from vector_store.store import VectorStore

TRANSLATIONS = 2  # requests read at a time, beside the event loop
TOKENIZINGS = 1  # of texts that are only counted: requests for answers do not queue behind them
PICTURES = 1  # of them with images, which take longer: words do not queue behind them


@dataclass(frozen=True, slots=True)
class Service:
    settings: Settings
    engine: Engine
    store: VectorStore
    metrics: Metrics
    translator: Translator
    fetcher: Fetcher
    intake: Intake
    translating: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(TRANSLATIONS))
    tokenizing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(TOKENIZINGS))
    picturing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(PICTURES))


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
