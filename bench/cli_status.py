"""`cli-status`: time of `hcp-agent status`, process start included, against a live socket."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

from bench.figure import Figure, at_most, quantile

RUNS = 100
ROOT = Path(__file__).resolve().parent.parent
_STATUS = {
    "version": "0",
    "up_s": 1.0,
    "hub": {"online": True, "heard_age_s": 1.0, "backlog": 0},
    "site": {
        "site_id": "bench",
        "market": [
            {"name": "price_usd_per_mwh", "value": 20.0, "age_s": 3.0},
            {"name": "btc_price_usd", "value": 65e3, "age_s": 3.0},
        ],
        "power_w": 8e7,
        "power_counted_w": 8.1e7,
        "power_cap_w": 1e8,
        "earning_usd_per_h": 4e4,
        "switches": {"count": 0, "open": 0, "p50_ms": None, "p99_ms": None, "rolled_back": 0},
        "classes": [
            {"device_class": name, "total": 5_000, "by_activity": {"mine": 4_000, "curtailed": 9}}
            for name in ("S21", "S19XP", "H100", "A100")
        ],
        "problems": [],
    },
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(_STATUS).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "local"

    def log_message(self, *args: object) -> None:
        del args


def run() -> list[Figure]:
    """Start the command many times and take the quantiles."""
    with tempfile.TemporaryDirectory() as folder:
        server = UnixStreamServer(str(Path(folder) / "view.sock"), _Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # As the installed launcher starts it: no environment, no site directories.
        start = (
            f"import sys; sys.path.append({str(ROOT)!r}); "
            "from edge_agent.__main__ import main; sys.exit(main())"
        )
        argv = [sys.executable, "-IS", "-c", start, "status", "--run-dir", folder]
        took = [_once(argv) for _ in range(RUNS)]
        server.shutdown()
        server.server_close()
    conditions = {
        "runs": RUNS,
        "p50_ms": round(quantile(took, 0.5), 1),
        "answering": "stand-in",
        "started": "-IS",
    }
    return [at_most("cli-status p95", quantile(took, 0.95), "ms", 60.0, conditions)]


def _once(argv: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1_000
