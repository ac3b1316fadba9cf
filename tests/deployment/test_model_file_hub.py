"""The Hub, as far as a model goes to it and comes from it, answered by a server of this test."""

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest
import yaml

import gradsurgery as gs
from gradsurgery.deployment.model_file import push
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError, OutputError, WeightsError
from gradsurgery.report.model_card import short_card

COMMIT = "0123456789" * 4


class StandIn(BaseHTTPRequestHandler):
    """Repositories in memory: made, committed to, and resolved."""

    files: ClassVar[dict[str, dict[str, bytes]]] = {}

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            if name == "taken":
                return self.answer(403, {"error": "you may not write to taken"})
            self.files.setdefault(f"someone/{name}", {})
            return self.answer(200, {"url": f"{self.address}/someone/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        repository = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            named = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            modes = [{"path": each["path"], **mode} for each in named]
            return self.answer(200, {"files": modes})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.files[repository][entry["value"]["path"]] = content
        url = f"{self.address}/{repository}/commit/{COMMIT}"
        return self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        repository, _, file = self.path.strip("/").partition("/resolve/main/")
        content = self.files.get(repository, {}).get(file)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[dict[str, dict[str, bytes]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(StandIn, "files", {})
    yield StandIn.files
    server.shutdown()
    server.server_close()


def test_a_model_goes_to_the_hub_and_comes_back(trained, hub, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    (folder / "README.md").write_text("A model.")
    url = push(folder / "model.safetensors", "hf://someone/shop")
    assert url.endswith(f"/someone/shop/commit/{COMMIT}")
    kept = {"model.safetensors", "record.json", "split.json", "README.md"}
    assert set(hub["someone/shop"]) == kept
    files = trained.files("test", "shop_d")
    expected = gs.load_model(folder).predict(files).probabilities
    assert (gs.load_model("hf://someone/shop").predict(files).probabilities == expected).all()


def test_a_model_without_a_card_gets_a_short_one(trained, hub, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    (folder / "README.md").unlink(missing_ok=True)
    model, record = gs.load_model(folder), Record.load(folder)
    push(folder / "model.safetensors", "hf://someone/shop", card=short_card(model.about, record))
    _, front, text = hub["someone/shop"]["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    target = record.configuration.target
    (line,) = [line for line in text.splitlines() if "held out" in line]
    assert f"{record.result.best.target_accuracy:.1%}" in line.replace("\\", "")
    assert target.replace("_", "") in line.replace("\\", "").replace("_", "")
    assert "gs.load_model" in text
    alone = short_card(model.about.model_copy(update={"target": None, "domains": None}), None)
    assert "was not measured" in alone


def test_what_the_hub_lacks_is_one_line(hub):
    with pytest.raises(WeightsError, match=r"cannot get the model hf://someone/else") as caught:
        gs.load_model("hf://someone/else")
    assert "\n" not in str(caught.value)


def test_what_the_hub_refuses_is_one_line(trained, hub):
    with pytest.raises(OutputError, match=r"cannot upload to hf://someone/taken") as caught:
        push(trained.folder / "model.safetensors", "hf://someone/taken")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf://", "hf://one", "hf://a/b/c", "hf://a/b@", "hf://a b/c"])
def test_other_names_are_refused_before_anything_is_asked(name):
    with pytest.raises(ArgumentError, match="expected hf://owner/name"):
        gs.load_model(name)
