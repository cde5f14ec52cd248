"""Images through the host's proxy, whose login is a secret."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.oci_layout import Layout, entry, layer
from tests.fakes.registry import push, registry
from tests.fakes.settings import image_rules
from vmdriver.errors import DriverError
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.images import BaseDisk
from vmdriver.oci.image_service import ImageService
from vmdriver.oci.policy import ImagePolicy
from vmdriver.oci.proxies import Proxies

NAME = "registry.test"
LOGIN, WRITTEN = "robot:p@ss word", "robot:p%40ss%20word"


class Proxy(http.server.BaseHTTPRequestHandler):
    """Knows one registry by a name that nobody else knows, for whoever has the login."""

    wanted = "Basic " + base64.b64encode(LOGIN.encode()).decode()
    seen: list[tuple[str, str]]
    behind: str

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path))  # type: ignore[attr-defined]
        if self.headers.get("Proxy-Authorization") != self.wanted:
            self.send_error(407, "Proxy Authentication Required")
            return
        path = self.path.partition(NAME)[2].partition("/")[2]
        kept = {"Accept": ", ".join(self.headers.get_all("Accept", ["*/*"]))}
        asked = urllib.request.Request(f"http://{self.server.behind}/{path}", headers=kept, method=self.command)  # type: ignore[attr-defined]  # fmt: skip
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            answer = opener.open(asked)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in {
                    "transfer-encoding",
                    "connection",
                    "content-length",
                }:
                    self.send_header(name, value)
            length = answer.headers.get("Content-Length", str(len(body)))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        self.server.seen.append((self.command, self.path))  # type: ignore[attr-defined]
        known = self.headers.get("Proxy-Authorization") == self.wanted
        self.send_error(
            502 if known else 407, None if known else "Proxy Authentication Required"
        )

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    made = Layout(tmp_path / "layout")
    made.image("it", [layer(entry("hello", "x"))])
    with registry(tmp_path / "registry") as address:
        push(made.path, "it", f"{address}/it:1")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        server.seen, server.behind = [], address  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        server.server_close()


def policy(server: http.server.ThreadingHTTPServer, login: str) -> ImagePolicy:
    address = f"http://{login}@127.0.0.1:{server.server_port}"
    proxies = Proxies.of({"http_proxy": address, "HTTPS_PROXY": address})
    rules = image_rules(insecure_registries=(NAME,))
    return dataclasses.replace(rules, proxies=proxies)


async def prepared(store: Path, wanted: ImagePolicy) -> BaseDisk:
    threads = Threads("images", 2)
    service = ImageService(store, threads, wanted, numbers=UserNamespace())
    await service.open()
    try:
        return await service.prepare(f"{NAME}/it:1", "s1", lambda _progress: None)
    finally:
        await service.close()
        threads.close()


async def test_an_image_is_fetched_through_the_proxy_of_the_host(
    proxy: http.server.ThreadingHTTPServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    disk = await prepared(tmp_path / "store", policy(proxy, WRITTEN))
    assert Path(disk.path).is_file()
    assert any(method == "GET" and "/blobs/" in path for method, path in proxy.seen)  # type: ignore[attr-defined]
    assert "p%40ss" not in caplog.text


async def test_a_login_of_a_proxy_is_in_no_error_and_no_log(
    proxy: http.server.ThreadingHTTPServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for login in (
        "robot:wr%6fng-hush",
        "robot:bad hush%zz",
    ):  # the second is no address, and passed over
        with pytest.raises(DriverError) as refused:
            await prepared(tmp_path / "store", policy(proxy, login))
        said = f"{refused.value.text()} {refused.value.detail} {caplog.text}"
        assert "hush" not in said
    assert ("CONNECT", f"{NAME}:443") in proxy.seen  # type: ignore[attr-defined]


async def test_what_no_proxy_names_is_asked_directly(
    proxy: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    wanted = policy(proxy, WRITTEN)
    direct = Proxies({**wanted.proxies.environment, "no_proxy": NAME})
    with pytest.raises(DriverError, match="cannot be fetched|did not answer"):
        await prepared(tmp_path / "store", dataclasses.replace(wanted, proxies=direct))
    assert proxy.seen == []  # type: ignore[attr-defined]


def test_small_letters_win_and_a_web_servers_variable_is_none() -> None:
    both = {
        "http_proxy": "http://a",
        "HTTP_PROXY": "http://b",
        "NO_PROXY": "x",
        "https_proxy": "",
    }
    assert Proxies.of(both).environment == {"http_proxy": "http://a", "no_proxy": "x"}
    assert (
        Proxies.of({"HTTP_PROXY": "http://b", "REQUEST_METHOD": "GET"}).environment
        == {}
    )
    assert "http://a" not in repr(Proxies.of(both))
