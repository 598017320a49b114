"""Raw HTTP over the agent's Unix socket, and the last snapshot when nobody answers.

Exit codes: 0 fine, 1 a problem was found, 2 usage, 3 agent not reachable, 4 not allowed, 5 refused
by a safety gate, 6 timed out.
"""

from __future__ import annotations

import json
import os
import socket
import time

TYPE_CHECKING = False  # typing itself takes 3 ms to import
if TYPE_CHECKING:
    from typing import Any

EXIT_OK = 0
EXIT_PROBLEM = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_NOT_ALLOWED = 4
EXIT_REFUSED = 5
EXIT_TIMED_OUT = 6

ANSWER_BYTES_MAX = 64 << 20
_DEADLINE_S = 5.0
_STATUS_EXITS = {403: EXIT_NOT_ALLOWED, 409: EXIT_REFUSED}


class CliError(Exception):
    """A command that cannot be carried out.

    Args:
        exit_code: as in the module's list. text: one or two sentences, with what to do next.
    """

    def __init__(self, exit_code: int, text: str) -> None:
        """Keep the facts as attributes."""
        super().__init__(text)
        self.exit_code = exit_code


def ask(run_dir: str, path: str, query: dict[str, str] | None = None) -> Any:  # noqa: ANN401 - JSON
    """Read from the agent.

    Raises:
        CliError: with the exit code that fits.
    """
    fields = "&".join(f"{name}={_quoted(value)}" for name, value in (query or {}).items())
    target = f"{path}?{fields}" if fields else path
    return _exchange(os.path.join(run_dir, "view.sock"), f"GET {target} HTTP/1.1\r\n\r\n".encode())


def act(run_dir: str, path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """Ask the agent to do something.

    Raises:
        CliError: with the exit code that fits.
    """
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    return _exchange(os.path.join(run_dir, "ctl.sock"), head + data)


def snapshot(run_dir: str, data_dir: str) -> tuple[dict[str, Any], float]:
    """Read the last snapshot that the agent wrote; give it with its age in seconds.

    Raises:
        CliError: there is none (exit 3).
    """
    for folder in (run_dir, data_dir):
        path = os.path.join(folder, "snapshot.json")
        try:
            with open(path, encoding="utf-8") as stream:
                value: dict[str, Any] = json.load(stream)
            return value, max(0.0, time.time() - os.stat(path).st_mtime)
        except (OSError, ValueError):
            continue
    raise CliError(
        EXIT_UNREACHABLE,
        f"the agent does not answer on {run_dir} and left no snapshot; "
        "see: systemctl status hcp-agent",
    )


def _quoted(text: str) -> str:
    # urllib.parse.quote, without the import of urllib.parse.
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _exchange(path: str, request: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        answer = _send(path, request)
    except PermissionError:
        group = "hcp-ctl" if path.endswith("ctl.sock") else "hcp-view"
        text = f"no access to {path}; you need to be in group {group}"
        raise CliError(EXIT_NOT_ALLOWED, text) from None
    except TimeoutError:
        text = f"no answer within {_DEADLINE_S:.0f} s"
        raise CliError(EXIT_TIMED_OUT, text) from None
    except OSError as exc:
        raise CliError(EXIT_UNREACHABLE, f"agent not reachable on {path}: {exc}") from None
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise CliError(EXIT_UNREACHABLE, f"agent closed {path} without an answer")
    status = int(words[1])
    value = json.loads(body) if body else None
    if status == 200:
        return value
    raise CliError(
        _STATUS_EXITS.get(status, EXIT_PROBLEM), (value or {}).get("detail", str(status))
    )


def _send(path: str, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_DEADLINE_S)
        channel.connect(path)
        channel.sendall(request)
        parts, size = [], 0
        while part := channel.recv(1 << 16):
            parts.append(part)
            size += len(part)
            if size > ANSWER_BYTES_MAX:
                raise OSError("answer too large")
        return b"".join(parts)
