"""Images behind http(s) addresses: from hosts that the operator named, and from nowhere else."""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import httpx

from steering.images import InvalidImage
from vector_store.names import quoted

SECONDS = 10.0


def is_public(address: str) -> bool:
    return ip_address(address).is_global


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches images from the named hosts, each by the address that was checked.

    hosts: names, lower case. most_bytes: of one image. seconds: for one image, all told. allowed: whether an
    address may be asked; by default no private, loopback or link-local one.
    """

    hosts: frozenset[str]
    most_bytes: int
    seconds: float = SECONDS
    allowed: Callable[[str], bool] = is_public

    async def fetch_all(self, urls: Mapping[str, str]) -> dict[str, bytes]:
        """Return the bytes behind each place's URL, data URLs left out."""
        remote = {place: url for place, url in urls.items() if url[:5].lower() != "data:"}
        fetched = await asyncio.gather(*(self.fetch(url, place) for place, url in remote.items()))
        return dict(zip(remote, fetched, strict=True))

    async def fetch(self, url: str, param: str) -> bytes:
        parsed = self._checked(url, param)
        try:
            async with asyncio.timeout(self.seconds):
                return await self._read(parsed, await self._address(parsed, param), param)
        except TimeoutError:
            raise InvalidImage(f"{parsed.host} took longer than {self.seconds:g} s", param) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise InvalidImage(f"{parsed.host} did not answer ({type(error).__name__})", param) from None

    def _checked(self, url: str, param: str) -> httpx.URL:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            raise InvalidImage("not a URL", param) from None
        if parsed.scheme not in ("http", "https") or parsed.userinfo:
            raise InvalidImage("send the image as a data URL: 'data:image/png;base64,...'", param)
        if parsed.host.lower() not in self.hosts:
            hosts = ", ".join(sorted(self.hosts))
            fetched = f"fetches images from {hosts} only" if hosts else "fetches no images"
            raise InvalidImage(
                f"this server {fetched}, and none from {quoted(parsed.host)} (its operator can allow that "
                "with --image-host); send the image as a data URL: 'data:image/png;base64,...'",
                param,
            )
        return parsed

    async def _address(self, url: httpx.URL, param: str) -> str:
        """Return the host's address, looked up once: what is checked is what is asked."""
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        addresses: Sequence[str] = [str(entry[4][0]) for entry in found]
        if not addresses or not all(map(self.allowed, addresses)):
            raise InvalidImage(f"{url.host} has an address that this server does not ask", param)
        return addresses[0]

    async def _read(self, url: httpx.URL, address: str, param: str) -> bytes:
        pinned = url.copy_with(host=address)
        headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*"}
        async with (
            httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=self.seconds) as client,
            client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": url.host}) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise InvalidImage(f"{url.host} answered {answer.status_code}, not an image", param)
            body = bytearray()
            # As they come, not unpacked: a few compressed bytes can stand for very many.
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > self.most_bytes:
                    raise InvalidImage(f"the image is larger than {self.most_bytes} bytes", param)
        return bytes(body)
