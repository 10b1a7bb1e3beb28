"""Refuse every network connection that leaves this machine, so that a notebook which needs the network is found out.

`refuse_network()` works on the Python process that calls it: programs it starts are not covered. As a command,
`python -m mi_utils.offline -f CONNECTION_FILE` is a Jupyter kernel that refuses from before its first import on.
"""

import ipaddress
import os
import sys
from pathlib import Path

LOG_VARIABLE = "MI_REFUSED_LOG"
"""Environment variable: a file to which each refused destination is appended, one a line."""

OFFLINE_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

_NAME_LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_refused: list[str] = []
_installed = False


class NetworkRefusedError(ConnectionError):
    """A connection to somewhere else than this machine was asked for while the network is refused."""


def refuse_network() -> None:
    """Refuse, from now on and for good, every connection and name look-up of this process except loopback.

    Unix sockets stay open. The hub libraries are told that they are offline, so that they look in their caches
    at once; call this before they are imported.
    """
    global _installed
    os.environ.update(OFFLINE_VARIABLES)
    if not _installed:
        sys.addaudithook(_check)
        _installed = True


def refused() -> list[str]:
    """The destinations refused so far in this process, in order, one entry an attempt."""
    return list(_refused)


def is_local(host: str | bytes | None) -> bool:
    """Whether a host name or address is this machine. An unknown name is not, even if it resolves to it."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name.split("%")[0]).is_loopback
    except ValueError:
        return False


def _check(event: str, arguments: tuple) -> None:
    if event in _NAME_LOOKUPS:
        host, port = arguments[0], arguments[1] if len(arguments) > 1 else None
    elif event in _SENDS and isinstance(arguments[1], tuple):  # a Unix socket has a path instead
        host, port = arguments[1][:2]
    else:
        return
    if not is_local(host):
        _refuse(f"{host}:{port}" if port else str(host))


def _refuse(destination: str) -> None:
    _refused.append(destination)
    if log := os.environ.get(LOG_VARIABLE):
        with Path(log).open("a", encoding="utf8") as file:
            file.write(destination + "\n")
    raise NetworkRefusedError(
        f"connection to {destination} refused: notebooks and tests run without the network. "
        "Use a model or a text that is on this machine, or run this outside of ./lab"
    )


if __name__ == "__main__":
    from mi_utils import offline  # the importable copy: __main__ would keep a list of its own

    offline.refuse_network()
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()
