"""Images in requests, over HTTP, on a tiny vision-language model: answered as `generate` does, or refused."""

import asyncio
import base64
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.engine.batcher import BatchLimits
from server.engine.protocol import GenerationJob, SamplingParams
from server.engine.transformers_engine import TransformersEngine
from server.fetching import Fetcher
from steering.images import InvalidImage, decoded
from steering.loading import LoadedModel
from steering.picturing import Pictured
from steering.types import SteeringPlan, SteeringTerm
from tests.server.engine.reference import naive_text
from tests.server.engine.test_seeing import noise
from tests.server.running import Running, error_of, running
from tests.server.test_whole import publish_random
from tests.tiny_vlms import load_tiny_vlm
from vector_store.local import LocalStore

TOKENS = 12
PLACE = "messages[0].content[1].image_url.url"


class Seeing:
    """A running server of a tiny LLaVA and what its answers must be."""

    def __init__(self, loaded: LoadedModel, store: LocalStore, server: Running) -> None:
        assert loaded.image_token is not None
        self.loaded = loaded
        self.store = store
        self.server = server
        self.pictured = Pictured(loaded.processor, loaded.image_token)

    def body(self, *urls: str, words: str = "what is this", **fields: Any) -> dict[str, Any]:
        images = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
        content = [{"type": "text", "text": words}, *images]
        message = {"role": "user", "content": content if images else words}
        asked = {"model": self.loaded.identity.id, "messages": [message]}
        return {**asked, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, **fields}

    def post(self, *urls: str, **fields: Any) -> Any:
        return self.server.client.post("/v1/chat/completions", json=self.body(*urls, **fields))

    def refusal(self, *urls: str, **fields: Any) -> dict[str, Any]:
        return error_of(self.post(*urls, **fields))

    def job(self, *pictures: Image.Image, words: str = "what is this", plan: Any = None) -> GenerationJob:
        parts = [{"type": "text", "text": words}] + [{"type": "image"}] * len(pictures)
        text = self.pictured.render([{"role": "user", "content": parts}])
        prompt, images = self.pictured.prompt(text, pictures)
        sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
        return GenerationJob("job", prompt, sampling, plan or SteeringPlan(), images)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    loaded = load_tiny_vlm("llava", tmp_path_factory.mktemp("llava"))
    store = LocalStore(tmp_path_factory.mktemp("store"))
    publish_random(store, "calm", (1, 2), loaded, seed=1)
    engine = TransformersEngine(loaded, BatchLimits(4, 32, 4 * 512, 512), max_waiting=64)
    with running(store, engine, max_images=4, max_image_pixels=100_000) as server:
        yield Seeing(loaded, store, server)


def as_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def url_of(raw: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def content(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_an_image_is_answered_as_generate_answers_it(seeing: Seeing) -> None:
    first, second = noise((40, 30), 1), noise((16, 16), 2)
    answers = [
        content(seeing.post(url_of(as_bytes(first)))),
        content(seeing.post(url_of(as_bytes(first)), url_of(as_bytes(second)))),
        content(seeing.post(words="no image at all")),
    ]
    jobs = [seeing.job(first), seeing.job(first, second), seeing.job(words="no image at all")]
    assert answers == [naive_text(seeing.loaded, job) for job in jobs]
    assert len(set(answers)) == 3


@pytest.mark.parametrize("tokens", ["all", "text", "image"])
def test_steering_moves_the_kind_of_tokens_that_was_asked_for(seeing: Seeing, tokens: Any) -> None:
    picture = noise((40, 30), 1)
    steering = {"profile": "calm", "strength": 1.5, "tokens": tokens}
    answer = seeing.post(url_of(as_bytes(picture)), steering=steering)
    calm = seeing.store.get("calm").vectors
    term = SteeringTerm(calm, 1.5, calm.layers, "all", tokens)
    job = seeing.job(picture, plan=SteeringPlan((term,)))
    assert content(answer) == naive_text(seeing.loaded, job)
    assert job.images is not None
    of_images = sum(end - begin for begin, end in job.images.spans)
    read = len(job.prompt) + TOKENS - 1
    proof = answer.json()["steering"][0]
    expected = {"all": read, "text": read - of_images, "image": of_images}
    assert (proof["tokens"], proof["steered_tokens"]) == (tokens, expected[tokens])


def test_image_tokens_that_are_not_there_cannot_be_steered(seeing: Seeing) -> None:
    refusal = seeing.refusal(steering={"profile": "calm", "tokens": "image"})
    assert (refusal["status"], refusal["code"]) == (400, "invalid_steering")
    assert "hold no image" in refusal["message"]


def test_image_tokens_are_never_generated(seeing: Seeing) -> None:
    steering = {"profile": "calm", "tokens": "image", "positions": "generated"}
    refusal = seeing.refusal(url_of(as_bytes(noise((9, 9), 1))), steering=steering)
    assert (refusal["code"], refusal["param"]) == ("invalid_steering", "steering.tokens")


def test_image_tokens_are_not_steered_where_nothing_reads_them(seeing: Seeing) -> None:
    last = seeing.loaded.identity.layers - 1
    publish_random(seeing.store, "last", (last - 1, last), seeing.loaded, 5)
    picture = url_of(as_bytes(noise((9, 9), 1)))
    steering = {"profile": "last", "tokens": "image", "layers": [last]}
    refusal = seeing.refusal(picture, steering=steering)
    assert (refusal["code"], refusal["param"]) == ("invalid_steering", "steering.tokens")
    assert seeing.post(picture, steering={**steering, "layers": [last - 1, last]}).status_code == 200
    assert seeing.post(picture, steering={**steering, "tokens": "all"}).status_code == 200


def test_words_do_not_queue_behind_images_that_are_read(
    seeing: Seeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*asked: Any) -> Image.Image:
        time.sleep(1.0)
        return decoded(*asked)

    monkeypatch.setattr("server.prompts.decoded", slowly)
    url = url_of(as_bytes(noise((9, 9), 1)))
    with ThreadPoolExecutor(3) as pool:
        images = [pool.submit(seeing.post, url) for _ in range(3)]
        time.sleep(0.2)
        started = time.monotonic()
        assert content(seeing.post(words="no image")) is not None
        assert time.monotonic() - started < 0.8
        assert len({content(image.result()) for image in images}) == 1


def test_words_that_stand_for_an_image_are_refused(seeing: Seeing) -> None:
    refusal = seeing.refusal(words="look at this <image> here")
    assert (refusal["status"], refusal["param"]) == (400, "messages[0].content")
    assert "<image>" in refusal["message"]


def sixteen_bits() -> bytes:
    return as_bytes(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16))


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return as_bytes(noise((30, 20), 3), "JPEG", exif=exif.tobytes())


@pytest.mark.parametrize(
    "raw",
    [
        as_bytes(Image.new("RGB", (1, 1))),
        as_bytes(Image.new("CMYK", (20, 20), (10, 20, 30, 40)), "JPEG"),
        sixteen_bits(),
        as_bytes(Image.new("1", (20, 20))),
        as_bytes(Image.new("RGBA", (20, 20), (10, 20, 30, 40))),
        as_bytes(Image.new("P", (20, 20)), "GIF", transparency=0),
        as_bytes(Image.new("LA", (20, 20), (10, 40)), "WEBP"),
        as_bytes(Image.new("RGB", (100, 2))),
        rotated(),
    ],
    ids=["1x1", "CMYK", "16 bits", "1 bit", "RGBA", "palette", "grey with alpha", "strip", "rotated"],
)
def test_an_unusual_image_is_still_an_image(seeing: Seeing, raw: bytes) -> None:
    assert content(seeing.post(url_of(raw))) is not None


def test_sixteen_bits_become_eight_and_transparency_becomes_white(seeing: Seeing) -> None:
    grey = Image.fromarray((np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16 >> 8).astype(np.uint8))
    assert content(seeing.post(url_of(sixteen_bits()))) == naive_text(
        seeing.loaded, seeing.job(grey.convert("RGB"))
    )
    clear = as_bytes(Image.new("RGBA", (20, 20), (0, 0, 0, 0)))
    white = seeing.job(Image.new("RGB", (20, 20), "white"))
    assert content(seeing.post(url_of(clear))) == naive_text(seeing.loaded, white)


def bomb(width: int, height: int) -> bytes:
    """Return a PNG that says it is that large; its rows, all zero, fill next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 + width * 3) * 64, 9)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def animated() -> bytes:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    return as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (url_of(as_bytes(noise((60, 60), 1))[:2000]), "broken"),
        (url_of(as_bytes(noise((60, 60), 1), "JPEG")[:900], "image/jpeg"), "broken"),
        (url_of(bomb(30_000, 30_000)), "pixels"),
        (url_of(bomb(10_000, 9_000)), "pixels"),
        (url_of(as_bytes(Image.new("L", (400, 300)))), "400 x 300"),
        (url_of(animated(), "image/gif"), "animated"),
        (url_of(as_bytes(Image.new("L", (30_000, 1)))), "a side may be 50 times"),
        (url_of(as_bytes(Image.new("L", (1, 51)))), "a side may be 50 times"),
        (url_of(b"this is no image"), "not an image"),
        (url_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "not an image"),
        (url_of(as_bytes(Image.new("RGB", (9, 9)), "TIFF"), "image/tiff"), "not an image"),
        (url_of(b""), "not an image"),
        ("data:image/png;base64,@@@@", "base64 is broken"),
        ("data:image/png;base64,iVBORw0KGg", "base64 is broken"),
        ("data:image/png,abc", "looks like"),
        ("data:", "looks like"),
        ("", "data URL"),
        ("ftp://example.org/a.png", "data URL"),
        ("file:///etc/passwd", "data URL"),
        ("http://example.org/a.png", "fetches no images"),
        ("https://user:secret@example.org/a.png", "data URL"),
    ],
)
def test_a_bad_image_is_refused_with_its_place_and_the_reason(seeing: Seeing, url: str, reason: str) -> None:
    started = time.monotonic()
    refusal = seeing.refusal(url)
    assert (refusal["status"], refusal["code"], refusal["param"]) == (400, "invalid_image", PLACE)
    assert reason in refusal["message"]
    assert time.monotonic() - started < 5


def test_the_pixels_of_all_images_count_together(seeing: Seeing) -> None:
    large = url_of(as_bytes(Image.new("L", (200, 300))))
    assert seeing.refusal(large, large)["param"] == "messages[0].content[2].image_url.url"


def test_more_images_than_allowed_are_refused(seeing: Seeing) -> None:
    small = url_of(as_bytes(Image.new("L", (2, 2))))
    refusal = seeing.refusal(*[small] * 100)
    assert (refusal["status"], refusal["param"]) == (400, "messages[0].content[5].image_url.url")
    assert "there are 100 images" in refusal["message"]


def test_a_body_of_fifty_megabytes_is_refused(seeing: Seeing) -> None:
    refusal = seeing.refusal("data:image/png;base64," + "A" * 50_000_000)
    assert refusal["status"] == 413


def test_a_system_message_and_an_answer_may_stand_beside_images(seeing: Seeing) -> None:
    body = seeing.body(url_of(as_bytes(noise((9, 9), 1))))
    body["messages"].insert(0, {"role": "system", "content": "be brief"})
    body["messages"] += [{"role": "assistant", "content": "a dot"}, {"role": "user", "content": "sure?"}]
    assert content(seeing.server.client.post("/v1/chat/completions", json=body)) is not None


@contextmanager
def image_host(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


FETCHER = Fetcher(frozenset({"localhost"}), most_bytes=10_000, seconds=1.0, allowed=lambda _: True)


def fetch(url: str, fetcher: Fetcher = FETCHER) -> bytes:
    return asyncio.run(fetcher.fetch(url, PLACE))


def serves(body: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_an_image_is_fetched_from_a_host_that_was_named() -> None:
    hosts = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        hosts.append(handler.headers["Host"])
        serves(b"pixels")(handler)

    with image_host(answer) as port:
        assert fetch(f"http://localhost:{port}/a.png") == b"pixels"
    assert hosts == [f"localhost:{port}"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (serves(b"", 302, Location="http://localhost/"), "answered 302"),
        (serves(b"", 404), "answered 404"),
        (serves(b"x" * 20_000), "larger than"),
    ],
)
def test_what_is_no_image_within_the_limits_is_refused(answer: Any, reason: str) -> None:
    with image_host(answer) as port, pytest.raises(InvalidImage, match=reason):
        fetch(f"http://localhost:{port}/a.png")


def test_a_host_that_drips_is_left_in_time() -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return
            time.sleep(0.1)

    with image_host(drip) as port, pytest.raises(InvalidImage, match="took longer"):
        fetch(f"http://localhost:{port}/a.png", replace(FETCHER, seconds=0.3))


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "0.0.0.0", "[::ffff:10.0.0.1]"]
)
def test_a_private_address_is_not_asked_even_if_its_host_was_named(host: str) -> None:
    named = Fetcher(frozenset({host.strip("[]")}), most_bytes=10, seconds=1.0)
    with pytest.raises(InvalidImage, match="does not ask"):
        fetch(f"http://{host}:9/a.png", named)


def test_a_host_that_was_not_named_is_never_asked() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        with pytest.raises(InvalidImage, match="and none from"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png")
        with pytest.raises(TimeoutError):
            listener.accept()
