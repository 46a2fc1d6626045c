"""`alrpc serve`: it answers as `alrpc predict` does, tells what is wrong with a request, and ends without a trace."""

import base64
import html
import json
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest
import small_data
import torch
from click.testing import CliRunner
from conftest import ALRPC, LIMIT, free_port, patience

import alrpc
from alrpc.cli.main import main
from alrpc.config import load_config
from alrpc.inference.predictor import Predictor
from alrpc.runtime.run import run_sequentially

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from alrpc.inference.serve import app as serving  # noqa: E402
from alrpc.inference.serve.server import address_of, bind, hosts_of, serve  # noqa: E402

CHROMIUM = shutil.which("chromium")
TEXTS = ["lovely film", "awful film, dark and bitter", "a bright, warm cast"]
JSON = "application/json"


class Client:
    """A server in a thread of this process, and the run that it serves."""

    def __init__(self, predictor: Predictor, address: str):
        self.predictor, self.address, self.name = predictor, address, predictor.directory.name

    def ask(self, path: str, body: object = None, kind: str = JSON, **headers: str) -> tuple[int, object]:
        """The status and the value of an answer."""
        connection = HTTPConnection(self.address.removeprefix("http://"), timeout=LIMIT)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, data, {"Content-Type": kind, **headers})
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if answer.headers["content-type"] == JSON else text

    def infer(self, **asked: object) -> tuple[int, object]:
        return self.ask(f"/v2/models/{self.name}/infer", asked)


def serve_here(predictor: Predictor, patch: pytest.MonkeyPatch) -> Iterator[Client]:
    servers, there = [], threading.Event()

    class Recorded(uvicorn.Server):
        def __init__(self, config: uvicorn.Config):
            super().__init__(config)
            servers.append(self)

    patch.setattr(uvicorn, "Server", Recorded)
    with bind("127.0.0.1", 0) as listener:
        client = Client(predictor, address_of(listener))
        settings = {"exit": None, "max_batch": 8, "wait": 0.02, "ready": there.set}
        thread = threading.Thread(target=serve, args=(predictor, listener), kwargs=settings)
        thread.start()
        assert there.wait(LIMIT)
        yield client
        servers[0].should_exit = True
        thread.join(LIMIT)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("texts")
    file = small_data.write_texts(folder / "texts.jsonl")
    fields = (
        "model.name=lstm",
        "model.width=8",
        "model.hidden=8",
        "data.name=text-file",
        f"data.file={file}",
        "train.epochs=1",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        run_sequentially(load_config(None, fields), "run", folder / "run", quiet=True)
        yield from serve_here(alrpc.load_run(folder / "run"), patch)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("images")
    small_data.write_images(folder / "data")
    fields = ("data.name=image-folder", f"data.root={folder / 'data'}", "data.image_size=16", "model.widths=[16]")
    run_sequentially(load_config(None, [*fields, "train.epochs=1"]), "run", folder / "run", quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        yield from serve_here(alrpc.load_run(folder / "run"), patch)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    torch.manual_seed(0)
    split = alrpc.Split(torch.randn(40, 3), torch.randn(40, 2))
    dataset = alrpc.Dataset(split, split, alrpc.Values(2))
    network = alrpc.associate([torch.nn.Linear(3, 8)], dataset.sample, dataset.target, activation="none")
    run = tmp_path_factory.mktemp("vectors") / "run"
    alrpc.train(network, dataset, epochs=1, out=run)
    with pytest.MonkeyPatch.context() as patch:
        yield from serve_here(alrpc.load_run(run, network=network), patch)


def test_of_several_labels_each_has_its_probability_in_both_protocols(tmp_path):
    torch.manual_seed(0)
    split = alrpc.Split(torch.randn(40, 3), torch.randn(40, 3) > 0)
    dataset = alrpc.Dataset(split, split, alrpc.Labels(3), classes=["a", "b", "c"])
    network = alrpc.associate([torch.nn.Linear(3, 8)], dataset.sample, dataset.target)
    alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")
    shares = network.objective.probabilities(network(split.inputs[:2])).detach()
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": split.inputs[:2].tolist()}
    with pytest.MonkeyPatch.context() as patch:
        served = serve_here(alrpc.load_run(tmp_path / "run", network=network), patch)
        asked = [
            (client.infer(inputs=[tensor]), client.ask("/predict", {"input": split.inputs[0].tolist()})) for client in served
        ]
    (((_, answer), (_, plain)),) = asked
    outputs = {each["name"]: each for each in answer["outputs"]}
    assert outputs["label"]["data"] == ["a", "b", "c"] * 2 and outputs["label"]["shape"] == [2, 3]
    assert outputs["probability"]["data"] == pytest.approx(shares.flatten().tolist(), rel=1e-4)
    assert {each["label"] for each in plain["labels"]} == {
        name for name, share in zip("abc", shares[0], strict=True) if share > 0.5
    }


def predicted(client: Client, given: list, top_k: int) -> list[dict]:
    """What `alrpc predict` says of texts or files."""
    arguments = ["predict", client.predictor.directory, "-", "--top-k", top_k]
    done = CliRunner().invoke(main, list(map(str, arguments)), input="\n".join(map(str, given)))
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def numbers(answer: dict) -> list[float]:
    return [each["probability"] for each in answer["top"]]


def same(found: list[dict], expected: list[dict]) -> None:
    """Equal but for what the input is called, and for the rounding of other batches."""
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    assert [each["exit"] for each in found] == [each["exit"] for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other) and numbers(one) == pytest.approx(numbers(other), abs=1e-5)


def test_texts_are_answered_as_predict_does(texts):
    expected = predicted(texts, TEXTS, 2)
    status, several = texts.ask("/predict?top_k=2", {"inputs": TEXTS})
    assert status == 200
    same(several, expected)
    assert [each["input"] for each in several] == ["inputs[0]", "inputs[1]", "inputs[2]"]
    same([texts.ask("/predict?top_k=2", {"input": text})[1] for text in TEXTS], expected)
    same([texts.ask("/predict?top_k=2", text.encode(), "text/plain; charset=utf-8")[1] for text in TEXTS], expected)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [3, 1], "data": [[text] for text in TEXTS]}
    status, answer = texts.infer(id="7", inputs=[tensor], outputs=[{"name": "label"}])
    assert (status, answer["id"], answer["model_name"]) == (200, "7", "run")
    labels = [each["label"] for each in expected]
    assert answer["outputs"] == [{"name": "label", "datatype": "BYTES", "shape": [3, 1], "data": labels}]


def test_images_are_answered_as_predict_does_and_no_path_is_opened(images):
    files = sorted((images.predictor.directory.parent / "data" / "test").rglob("*.png"))
    expected = predicted(images, files, 2)
    encoded = [base64.b64encode(file.read_bytes()).decode() for file in files]
    same(images.ask("/predict?top_k=2", {"inputs": encoded})[1], expected)
    same([images.ask("/predict?top_k=2", file.read_bytes(), "image/png")[1] for file in files], expected)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": encoded}
    status, answer = images.infer(inputs=[tensor], parameters={"top_k": 2})
    assert status == 200 and answer["outputs"][0]["data"] == [each["label"] for one in expected for each in one["top"]]
    status, answer = images.ask("/predict", {"input": str(files[0])})
    assert status == 400 and answer["error"].startswith("input: not base64")
    assert images.ask("/predict", {"input": [[[0, 9, 255]] * 9] * 5})[0] == 200
    status, answer = images.ask("/predict", b"\x89PNG", "image/png")
    assert (status, answer["error"]) == (400, "body: not a readable image: cannot identify image file")


def test_arrays_are_answered_as_the_predictor_does(vectors):
    rows = [[0.5, -1, 2], [3, 4, 5.25]]
    expected = [list(each.values) for each in vectors.predictor.answers(rows)]
    status, answers = vectors.ask("/predict", {"inputs": rows})
    assert status == 200
    for each, values in zip(answers, expected, strict=True):
        assert each["values"] == pytest.approx(values, rel=1e-4)
    for data in (rows, [number for row in rows for number in row]):
        tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": data}
        status, answer = vectors.infer(inputs=[tensor])
        assert status == 200 and answer["outputs"][0]["shape"] == [2, 2]
        assert answer["outputs"][0]["data"] == pytest.approx([value for values in expected for value in values], rel=1e-4)
    assert answer["outputs"][1] == {"name": "exit", "datatype": "INT64", "shape": [2], "data": [1, 1]}


def test_what_the_server_is_can_be_asked(vectors):
    assert vectors.ask("/health")[1]["status"] == "ok"
    assert vectors.ask("/v2")[1]["name"] == "alrpc"
    assert vectors.ask("/v2/health/live") == (200, {"live": True})
    assert vectors.ask("/v2/health/ready") == (200, {"ready": True})
    assert vectors.ask("/v2/models/run/ready") == (200, {"name": "run", "ready": True})
    assert vectors.ask("/v2/models/run")[1] == {
        "name": "run",
        "platform": "alrpc",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [
            {"name": "values", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "exit", "datatype": "INT64", "shape": [-1]},
        ],
    }


X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "y"}, "inputs: got y; the model takes x"),
        ({"shape": [2, 3]}, "inputs[0]: shape [2, 3] has 6 elements; data has 3"),
        ({"shape": [3, 1]}, "sample 0: got (1,); give float32 (3,)"),
        ({"shape": [0, 3], "data": []}, "inputs: got 0 samples"),
        ({"shape": [-1, 3]}, "body: inputs.0.shape.0: got -1"),
        ({"shape": [1 << 30, 1 << 30]}, "inputs[0]: shape [1073741824, 1073741824] has"),
        ({"datatype": "FP33"}, "body: inputs.0.datatype: got 'FP33'"),
        ({"datatype": "BYTES"}, "inputs[0].datatype: got BYTES; give numbers"),
        ({"datatype": "INT64", "data": [1, 2, 3.5]}, "inputs[0].data: has a number that INT64 does not have"),
        ({"data": [1, 2, 1e300]}, "inputs[0].data: has a number that FP32 does not have"),
        ({"data": [1, 2, "3"]}, "inputs[0].data: got what is no array of numbers"),
        ({"data": [[1], [2, 3]]}, "inputs[0].data: got lists of different lengths"),
        ({"data": 5}, "body: inputs.0.data: got 5"),
    ],
)
def test_a_wrong_tensor_is_told(vectors, changed, message):
    status, answer = vectors.infer(inputs=[{**X, **changed}])
    assert status == 400 and answer["error"].startswith(message), answer


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "message"),
    [
        ("/predict", b'{"input', JSON, 400, "body: not JSON"),
        ("/predict", b'{"input": "\xff"}', JSON, 400, "body: not JSON"),
        ("/predict", b"[" * 9999, JSON, 400, "body: not JSON"),
        ("/predict", {"input": [1, 2, 3], "inputs": []}, JSON, 400, "body: inputs: got []"),
        ("/predict", {}, JSON, 400, 'body: give either "input"'),
        ("/predict", {"inputs": None}, JSON, 400, "body: inputs: got None; it should be a valid list"),
        ("/predict", {"input": None}, JSON, 400, "input: got what is no array of numbers"),
        ("/predict", b"null", JSON, 400, "body: got None; it should be a valid dictionary"),
        ("/predict", b'{"input": %b1%b}' % (b"[" * 150, b"]" * 150), JSON, 400, "input: got what is no array of numbers"),
        ("/v2/models/run/infer", {"inputs": None}, JSON, 400, "body: inputs: got None; it should be a valid list"),
        (
            "/v2/models/run/infer",
            {"inputs": [X], "parameters": None},
            JSON,
            400,
            "body: parameters: got None; it should be a valid",
        ),
        ("/predict", {"imput": 1}, JSON, 400, "body: imput: got 1"),
        ("/predict", {"input": ["a", 2, 3]}, JSON, 400, "input: got what is no array of numbers"),
        ("/predict", {"input": [10**400, 2, 3]}, JSON, 400, "input: got what is no array of numbers"),
        ("/predict", {"inputs": [[1, 2, 3], [1, 2]]}, JSON, 400, "inputs[1]: got (2,); give float32 (3,)"),
        ("/predict", {"input": [3e38, 3e38, 3e38]}, JSON, 400, "input: the network's answer is not finite"),
        ("/predict?top_k=0", {"input": [1, 2, 3]}, JSON, 400, "top_k: got '0'"),
        ("/predict", {"inputs": [[1, 2, 3]] * 1025}, JSON, 413, "body: has 1025 examples; give at most 1024"),
        ("/predict", b" " * (serving.LARGEST + 1), JSON, 413, "body: has more than 16777216 bytes"),
        ("/predict", b"1 2 3", "text/plain", 415, "Content-Type: got text/plain; give application/json"),
        ("/predict", None, JSON, 405, "/predict does not take GET"),
        ("/nowhere", None, JSON, 404, "no /nowhere"),
        ("/v2/models/other/infer", {}, JSON, 404, "no model 'other'; this server has 'run'"),
        ("/v2/models/run/infer", {"inputs": []}, JSON, 400, "body: inputs: got []"),
        ("/v2/models/run/infer", {"inputs": [X, X]}, JSON, 400, "inputs: got x, x; the model takes x"),
        ("/v2/models/run/infer", {"inputs": [X], "outputs": [{"name": "y"}]}, JSON, 400, "outputs[0].name: got 'y'"),
    ],
)
def test_a_wrong_request_is_told(vectors, path, body, kind, status, message):
    torch.nn.init.constant_(vectors.predictor.components[0].block.weight, 9)
    found, answer = vectors.ask(path, body, kind)
    assert found == status and answer["error"].startswith(message) and "instance of" not in answer["error"], answer


def test_texts_that_are_nested_too_deep_are_told(texts):
    deep = json.loads("[" * 150 + '"a"' + "]" * 150)
    assert texts.ask("/predict", {"input": deep}) == (400, {"error": "input: got list; give a text"})
    status, answer = texts.infer(inputs=[{"name": "text", "datatype": "BYTES", "shape": [1], "data": deep}])
    assert status == 400 and answer["error"].startswith("inputs[0].data: got other things than a string for each sample")


def test_a_server_of_this_machine_is_called_by_its_names_alone(vectors):
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"):
        assert vectors.ask("/predict", {"input": [0, 0, 0]}, Host=host)[0] == 200, host
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1@evil.example", "", "["):
        for path, body in (("/", None), ("/health", None), ("/predict", {"input": [0, 0, 0]})):
            told = {"error": f"Host: got {host!r}; call this server localhost, or 127.0.0.1"}
            assert vectors.ask(path, body, Host=host) == (400, told)
    with bind("0.0.0.0", 0) as open_to_all:
        assert hosts_of(open_to_all) is None


def test_binary_tensors_and_bodies_without_a_length_are_bounded_too(vectors):
    status, answer = vectors.ask("/v2/models/run/infer", {}, Inference_Header_Content_Length="2")
    assert status == 400 and answer["error"].startswith("Inference-Header-Content-Length: ")
    connection = HTTPConnection(vectors.address.removeprefix("http://"), timeout=LIMIT)
    chunks = (b" " * (1 << 20) for _ in range(17))
    connection.request("POST", "/predict", chunks, {"Content-Type": JSON}, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_many_clients_are_computed_together_and_counted(texts):
    alone = {text: texts.ask("/predict", {"input": text})[1]["label"] for text in TEXTS}
    before = metrics_of(texts)
    asked = TEXTS * 8
    with ThreadPoolExecutor(12) as clients:
        found = list(clients.map(lambda text: texts.ask("/predict", {"input": text})[1]["label"], asked))
    assert found == [alone[text] for text in asked]
    texts.ask("/predict", {"input": 5})
    after = metrics_of(texts)
    added = {name: after[name] - before.get(name, 0) for name in after}
    assert added['alrpc_requests_total{route="predict",status="200"}'] == len(asked)
    assert added['alrpc_requests_total{route="predict",status="400"}'] == 1
    assert added['alrpc_samples_total{exit="4"}'] == added["alrpc_batch_size_sum"] == len(asked)
    assert added["alrpc_batch_size_count"] < len(asked)
    assert added['alrpc_request_seconds_count{route="predict"}'] == len(asked) + 1


def metrics_of(client: Client) -> dict[str, float]:
    status, text = client.ask("/metrics")
    assert status == 200
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")}


def test_a_server_is_measured_under_load(texts, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    arguments = ["bench", "serve", texts.address, str(tmp_path / "a.txt"), "--rate", "100", "--seconds", "0.2", "--json"]
    (result,) = json.loads(CliRunner().invoke(main, arguments).stdout)
    assert (result["requests"], result["errors"], result["exits"]) == (20, 0, {"4": 20})


DRIVERS = {
    "texts": 'input.value = "lovely film"; find("form").requestSubmit();',
    "images": """
const canvas = document.createElement("canvas");
canvas.width = canvas.height = 16;
canvas.getContext("2d").fillRect(0, 0, 16, 8);
canvas.toBlob(blob => {
  const chosen = new DataTransfer();
  chosen.items.add(new File([blob], "a.png", {type: "image/png"}));
  input.files = chosen.files;
  input.dispatchEvent(new Event("change"));
});""",
}


@pytest.mark.parametrize("kind", DRIVERS)
def test_the_page_answers_in_a_browser(kind, request, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium")
    client = request.getfixturevalue(kind)
    status, text = client.ask("/")
    assert status == 200 and re.findall(r"""(?:src|href|action)=|url\(|@import|https?://""", text) == []
    page = tmp_path / "page.html"
    page.write_text(
        text.replace("<head>", f'<head><base href="{client.address}/">').replace("</script>", f"{DRIVERS[kind]}</script>")
    )
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    command = [CHROMIUM, *flags.split(), "--disable-web-security", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert shown.returncode == 0, shown.stderr
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    label = html.unescape(re.search(r'<p id="answer">([^<]+)</p>', shown.stdout)[1])
    names = client.predictor.carried.classes
    assert label in names and re.search(r'<p id="facts">exit \d of \d, [\d.]+ ms</p>', shown.stdout)
    bars = re.findall(r'<li><span>([^<]+)</span><span class="track"><span style="width: [\d.]+%;"></span></span>', shown.stdout)
    assert sorted(bars) == sorted(names)


def test_a_server_ends_at_sigterm_and_a_second_one_finds_the_port_taken(texts, commands):
    run, port = texts.predictor.directory, free_port()
    server = commands.start(ALRPC, "serve", str(run), "--port", port, "--exit", "2")
    timer = threading.Timer(LIMIT, server.kill)
    timer.start()
    said = server.stdout.readline()
    assert said == f"serving {run}, which takes texts, at http://127.0.0.1:{port}; Ctrl-C ends it\n", server.stderr.read()
    client = Client(texts.predictor, f"http://127.0.0.1:{port}")
    (expected,) = texts.predictor.answers(TEXTS[:1], exit=2)
    assert client.ask("/predict", {"input": TEXTS[0]})[1] == {
        "input": "input",
        "label": expected.label,
        "probability": pytest.approx(expected.probability, abs=1e-5),
        "exit": 2,
    }
    second = commands.alrpc("serve", str(run), "--port", port)
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert second.stderr.startswith(f"alrpc: --port: cannot listen at 127.0.0.1 port {port}: Address already in use")
    server.send_signal(signal.SIGTERM)
    _, told = server.communicate(timeout=patience(10))
    timer.cancel()
    assert server.returncode == -signal.SIGTERM and told == ""


def test_a_server_that_others_reach_says_so_and_a_mistake_is_one_line(tmp_path):
    def told(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["serve", str(tmp_path / "nowhere"), "--port", "0", *arguments])
        assert done.exit_code != 0 and done.stdout == ""
        return done.stderr

    assert told().startswith(f"alrpc: {tmp_path / 'nowhere'}") and told().count("\n") == 1
    assert told("--host", "0.0.0.0").startswith("alrpc: --host: whoever reaches 0.0.0.0 can use this server")
    assert told("--host", "no such host").startswith("alrpc: --host: got 'no such host'; give a name or an address")
    assert told("--host", "192.0.2.1").startswith("alrpc: --host: cannot listen at 192.0.2.1 port 0: Cannot assign")
