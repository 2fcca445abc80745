"""A relay that takes its side of the network away, run in a container of its own.

A client connects and sends one line: `CONNECT host port` is answered with the
address of the relay's own connection there, and bytes pass from then on.
`CUT link host` takes the interface towards `host` down, `CUT route host` lets
the packets of `host` come in but nothing go back to it; `HEAL` undoes it.
No FIN and no RST passes a cut. Standard library only: the image has no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import threading

PORT = 7000
SIOCADDRT, SIOCDELRT = 0x890B, 0x890C
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFADDR = 0x8913, 0x8914, 0x8915
IFF_UP = 0x1
RTF_UP, RTF_HOST, RTF_REJECT = 0x1, 0x4, 0x200

_cuts: list[tuple[str, str]] = []


def _interface(host: str) -> str:
    """Return the interface that packets to `host` leave by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        address = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("16s24x", name.encode()))
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name
    raise OSError(f"no interface has the address {address}")


def _link(name: str, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        reply = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
        flags = struct.unpack_from("H", reply, 16)[0]
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags))


def _route(host: str, reject: bool) -> None:
    def address(text: str) -> bytes:
        return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))

    flags = RTF_UP | RTF_HOST | RTF_REJECT
    entry = struct.pack(
        "L16s16s16sHhLPhPLLH",
        0, address(host), address("0.0.0.0"), address("255.255.255.255"), flags, 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCADDRT if reject else SIOCDELRT, entry)


def _cut(kind: str, host: str) -> None:
    target = _interface(host) if kind == "link" else host
    _link(target, up=False) if kind == "link" else _route(target, reject=True)
    _cuts.append((kind, target))


def _heal() -> None:
    while _cuts:
        kind, target = _cuts.pop()
        _link(target, up=True) if kind == "link" else _route(target, reject=False)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _serve(client: socket.socket) -> None:
    line = b""
    while not line.endswith(b"\n"):
        byte = client.recv(1)
        if not byte:
            return
        line += byte
    match line.decode().split():
        case ["CONNECT", host, port]:
            server = socket.create_connection((host, int(port)), 5)
            server.settimeout(None)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall("{} {}\n".format(*server.getsockname()).encode())
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            _pump(client, server)
        case ["CUT", kind, host]:
            _cut(kind, host)
            client.sendall(b"ok\n")
        case ["HEAL"]:
            _heal()
            client.sendall(b"ok\n")
        case words:
            client.sendall(f"unknown command {words}\n".encode())


def _guarded(client: socket.socket) -> None:
    try:
        _serve(client)
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            client.sendall(f"{error}\n".encode())


def main() -> None:
    """Serve until killed."""
    with socket.create_server(("", PORT), backlog=512) as server:
        while True:
            client, _ = server.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_guarded, args=(client,), daemon=True).start()


if __name__ == "__main__":
    main()
