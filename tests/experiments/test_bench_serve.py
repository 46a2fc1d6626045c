"""`alrpc bench serve`: the client that loads a server, against a server whose answers and delays are known."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from alrpc.cli.main import main

DELAY = 0.2  # seconds
TEXTS = ["fine", "wrong", "slow"]


class Answers(BaseHTTPRequestHandler):
    """Answers each text by its own exit; «wrong» with an error, «slow» after a while."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.tell(200, {"takes": "texts"})

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
        if text == "slow":
            time.sleep(DELAY)
        self.tell(400 if text == "wrong" else 200, {"exit": 1 + TEXTS.index(text)})

    def tell(self, status: int, tree: dict) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def measure(folder: Path, url: str, *arguments: str, texts: list[str] = TEXTS) -> Result:
    (folder / "a.txt").write_text("\n".join(texts))
    return CliRunner().invoke(main, ["bench", "serve", url, str(folder / "a.txt"), *arguments])


def test_requests_are_sent_at_each_rate_and_errors_are_counted(address, tmp_path):
    done = measure(tmp_path, f"http://{address}", "--rate", "60", "--rate", "3", "--seconds", "1", "--json")
    assert done.exit_code == 0, done.output
    many, few = json.loads(done.stdout)
    assert (many["requests"], many["errors"], many["exits"]) == (60, 20, {"1": 20, "3": 20})
    assert (few["requests"], few["errors"], few["exits"]) == (3, 1, {"1": 1, "3": 1})
    assert many["max_ms"] >= many["p99_ms"] >= 1000 * DELAY and 0 < many["per_second"] < 41
    line = measure(tmp_path, address, "--rate", "3", "--seconds", "1").stdout
    told = r"3/s: [\d.]+ answers/s, 1 errors; p50 [\d.,]+ ms, p99 [\d.,]+ ms; exit 1 50%, exit 3 50%\n"
    assert re.fullmatch(told, line), line


def test_what_no_client_was_free_to_send_counts_from_when_it_was_due(address, tmp_path):
    done = measure(tmp_path, address, "--rate", "50", "--seconds", "0.1", "--clients", "1", "--json", texts=["slow"])
    (result,) = json.loads(done.stdout)
    assert result["requests"] == 5 and result["max_ms"] >= 1000 * (5 * DELAY - 0.08)


def test_a_column_is_chosen_and_what_is_bad_is_named_by_its_place(address, tmp_path):
    file = tmp_path / "b.csv"
    file.write_text("n,review\n1,fine\n")

    def sent(*more: str) -> Result:
        return CliRunner().invoke(
            main, ["bench", "serve", address, str(file), "--rate", "1", "--seconds", "1", "--json", *more]
        )

    (result,) = json.loads(sent("--column", "review").stdout)
    assert (result["errors"], result["exits"]) == (0, {"1": 1})
    assert sent().stderr == f"alrpc: {file}:1: no column 'text'; set --column to some of: n, review\n"
    file.write_text("n,review\n1,fine\n2\n")
    told = sent("--column", "review")
    assert told.exit_code == 1 and told.stderr.startswith(f"alrpc: {file}:3: 1 fields; it must have 2"), told.stderr


@pytest.mark.parametrize(
    ("url", "code", "message"), [("ftp://a", 2, "URL: got 'ftp://a'"), ("127.0.0.1:1", 1, "127.0.0.1:1: no")]
)
def test_what_is_no_server_is_told_in_one_line(tmp_path, url, code, message):
    done = measure(tmp_path, url)
    assert done.exit_code == code and done.stderr.startswith(f"alrpc: {message}") and done.stderr.count("\n") == 1, done.stderr
