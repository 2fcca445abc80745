"""Users from an HTTP directory."""

from __future__ import annotations

import base64
import secrets
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest
import trustme

from scripts.freeswitch.sip import Refused
from scripts.scenario.lab import DOMAIN
from scripts.templates import render
from tests.image.deployment.node import (
    Run,
)


class HttpDirectory(ThreadingHTTPServer):
    """An HTTP directory that knows bob, and wants a user and a password itself."""

    def __init__(self, host: str, credentials: str, password: str) -> None:
        super().__init__((host, 0), _DirectoryHandler)
        self.credentials = credentials
        self.password = password
        self.asked: list[dict[str, str]] = []


class _DirectoryHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, HttpDirectory)
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        expected = "Basic " + base64.b64encode(server.credentials.encode()).decode()
        if self.headers.get("Authorization") != expected:
            self.send_error(401)
            return
        asked = {name: values[0] for name, values in form.items()}
        server.asked.append(asked)
        user = render("freeswitch/user", user="bob", password=server.password)
        user = user.replace("<include>", "").replace("</include>", "")
        known = asked.get("user") == "bob"
        found = f'<domain name="{DOMAIN}"><groups><group name="all"><users>{user}</users></group></groups></domain>'
        section = (
            f'<section name="directory">{found}</section>'
            if known
            else ('<section name="result"><result status="not found"/></section>')
        )
        body = f'<document type="freeswitch/xml">{section}</document>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def users(gateway: str) -> Iterator[HttpDirectory]:
    server = HttpDirectory(gateway, "switch:s3cret", secrets.token_hex(8))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_users_from_an_http_directory(run: Run, users: HttpDirectory) -> None:
    host, port = users.server_address[:2]
    node = run(
        DIRECTORY_URL=f"http://{host!s}:{port}/directory", DIRECTORY_USER="switch", DIRECTORY_PASSWORD="s3cret"
    ).ready()
    client = node.client()
    client.register("bob", users.password, DOMAIN)
    assert any(asked.get("user") == "bob" and asked.get("domain") == DOMAIN for asked in users.asked)
    with pytest.raises(Refused):
        node.client().register("bob", "wrong", DOMAIN)
    # Whom it does not know is looked for in the files.
    node.register().close()


def test_users_from_an_https_directory(run: Run, users: HttpDirectory, gateway: str) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(gateway).configure_cert(context)
    users.socket = context.wrap_socket(users.socket, server_side=True)
    environment = {
        "DIRECTORY_URL": f"https://{gateway}:{users.server_port}/",
        "DIRECTORY_USER": "switch",
        "DIRECTORY_PASSWORD": "s3cret",
    }
    # The authorities of the distribution don't know this one.
    stranger = run(**environment).ready()
    with pytest.raises(Refused):
        stranger.client().register("bob", users.password, DOMAIN)
    assert not users.asked
    node = run(
        files={"tls/directory.pem": authority.cert_pem.bytes().decode()},
        DIRECTORY_CA_FILE="/etc/freeswitch/tls/directory.pem",
        **environment,
    ).ready()
    node.client().register("bob", users.password, DOMAIN)
    assert any(asked.get("user") == "bob" for asked in users.asked)


def test_http_directory_that_refuses(run: Run, users: HttpDirectory) -> None:
    host, port = users.server_address[:2]
    node = run(DIRECTORY_URL=f"http://{host!s}:{port}/", DIRECTORY_USER="switch", DIRECTORY_PASSWORD="wrong").ready()
    with pytest.raises(Refused):
        node.client().register("bob", users.password, DOMAIN)
    assert not users.asked
