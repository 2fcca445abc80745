"""The SIP client: what it says of a server that refuses."""

from __future__ import annotations

import pickle
import socket
import threading

import pytest

from scripts.freeswitch.sip import Client, Refused


def test_refusal_says_what_was_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SIP/2.0 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        client = Client("tcp", *server.getsockname())
        with pytest.raises(Refused, match=r"^REGISTER was answered 403 Forbidden$") as caught:
            client.register("ann", "secret", "example.test")
        client.close()
        thread.join()
    # Also in another process.
    assert pickle.loads(pickle.dumps(caught.value)).response.status == 403
