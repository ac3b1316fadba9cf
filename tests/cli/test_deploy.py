"""From a data set to a deployed model."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import gradsurgery as gs
from gradsurgery.cli import deploy
from gradsurgery.documents.deployment import Deployment
from gradsurgery.documents.record import Record
from gradsurgery.report.report import Report
from tests.sweep.processes import started, until

# Figures are rendered by the same command in tests/website, where the tutorials run.
pytestmark = pytest.mark.usefixtures("unrendered")

Command = Callable[..., tuple[int, str, str]]
SHORT = [
    *["--backbone", "small-cnn", "--image-size", "8", "--iterations", "4", "--batch-size", "2"],
    *["--validate-every", "2", "--device", "cpu", "--workers", "1", "--seeds", "1"],
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains, two classes, five images each."""
    folder = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for domain in ("left", "middle", "right"):
        for name, low in (("dark", 0), ("light", 128)):
            place = folder / domain / name
            place.mkdir(parents=True)
            for i in range(5):
                pixels = numbers.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def test_a_folder_becomes_a_model_with_its_card(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["deploy", str(photos), "--methods", "deep-all,agr-sum", "--out", "mine", *SHORT]
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "model and card: mine/model" in out
    assert "Always to name the most frequent class is right for 50 %." in " ".join(out.split())
    deployment = Deployment.load(tmp_path / "mine" / "model")
    assert [each.method for each in deployment.candidates] == ["deep-all", "agr-sum"]
    final = tmp_path / "mine" / deployment.directory
    record = Record.load(final)
    assert record.configuration.target == "none"
    assert deployment.tested == dict.fromkeys(("left", "middle", "right"), 2)
    assert record.configuration.method == deployment.candidate.method
    assert f"\ntraining {record.configuration.method} on all domains\n" in err
    assert record.result.best.target_accuracy is None
    assert set(record.result.best.test_accuracy) == {"left", "middle", "right"}
    scores = [
        each.score("leave-one-domain-out", deployment.domains) for each in deployment.candidates
    ]
    assert scores[deployment.chosen] == max(scores)
    for target, accuracies in deployment.candidate.unseen.items():
        runs = (tmp_path / "mine" / "photos0" / target).rglob("record.json")
        found = [Record.load(path) for path in runs]
        assert accuracies == [
            r.result.best.target_accuracy
            for r in found
            if r.configuration.method == deployment.candidate.method
        ]
    saved = tmp_path / "mine" / "model" / "model.safetensors"
    assert saved.read_bytes() == (final / "model.safetensors").read_bytes()
    model = gs.load_model(tmp_path / "mine" / "model")
    assert model.classes == ("dark", "light")
    assert model.about.target is None
    assert model.about.domains == ["left", "middle", "right"]
    assert len(model.predict(photos / "left" / "dark" / "0.png").names) == 1
    monkeypatch.setattr(deploy, "make_report", lambda _: Report(Path("report.html"), []))
    check_repeated(command, arguments, tmp_path / "mine", final)


def check_repeated(command: Command, arguments: list[str], folder: Path, final: Path) -> None:
    """Whatever is lost at the end is made again, to the same bytes, and nothing else is."""
    kept = {path: path.read_bytes() for path in folder.rglob("record.json")}
    card = (folder / "model" / "README.md").read_bytes()
    shutil.rmtree(folder / "model")
    (final / "record.json").unlink()  # as if the process had died in that run
    code, _, err = command(*arguments)
    assert code == 0, err
    assert (folder / "model" / "README.md").read_bytes() == card
    (final / "record.json").read_bytes()
    del kept[final / "record.json"]
    assert all(path.read_bytes() == content for path, content in kept.items())


def killed_in_the_last_run(arguments: list[str], folder: Path, log: Path) -> dict[Path, bytes]:
    """Kill -9 a deployment in the run on all domains; the records that it leaves, each whole."""
    with started([sys.executable, "-m", "gradsurgery", *arguments], log) as process:
        until(lambda: any(folder.glob("*/none/*/*/checkpoint.pt")) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
    for path in folder.rglob("[!.]*.json"):
        json.loads(path.read_bytes())
    for path in folder.rglob("[!.]*.safetensors"):
        load_file(path)
    assert not (folder / "model").exists()
    return {path: path.read_bytes() for path in folder.rglob("record.json")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "plan.yaml"], "targets is not for a deployment"),
        (["--criterion", "oracle"], "oracle"),
        (["--grid", "classes=common,all"], "classes is not for a deployment"),
        (["--grid", "split=70/10/20,80/10/10"], "split is not for a deployment, whose candidates"),
        (["--grid", "split_seed=0,1"], "split_seed is not for a deployment"),
        (["--grid", "test_on=test,all"], "test_on is not for a deployment"),
        (["--grid", "drop_duplicates=true,false"], "drop_duplicates is not for a deployment"),
        (["--grid", "validation_mean=images,domains"], "validation_mean is not for a deployment"),
        (["--augment", "warp"], "augment must be 'none', 'flip'"),
    ],
)
def test_what_cannot_be_deployed_is_refused(
    arguments: list[str], words: str, command: Command, photos: Path
) -> None:
    Path("plan.yaml").write_text(json.dumps({"targets": ["left"]}))
    code, _, err = command("deploy", str(photos), *arguments)
    assert code != 0
    assert words in err
    assert not Path("deployments").exists()


def test_images_that_have_changed_are_for_another_folder(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    """Runs of a new domain beside those of the old images would be in vain, and in the way."""
    months = tmp_path / "months"
    shutil.copytree(photos, months)
    shutil.rmtree(months / "right")
    arguments = ["deploy", "months", "--methods", "deep-all", "--out", "april", *SHORT]
    assert command(*arguments)[0] == 0
    before = {path: path.read_bytes() for path in Path("april").rglob("*") if path.is_file()}
    shutil.copytree(photos / "right", months / "right")
    code, _, err = command(*arguments)
    assert code == 1
    assert "the images of months have changed since the runs in april were finished" in err
    assert {
        path: path.read_bytes() for path in Path("april").rglob("*") if path.is_file()
    } == before
    (months / "right").rename(tmp_path / "apart")
    assert command(*arguments)[0] == 0


def test_images_that_have_been_moved_are_the_same(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "old" / "photos")
    arguments = ["--methods", "deep-all", "--out", "mine", *SHORT]
    assert command("deploy", "old/photos", *arguments)[0] == 0
    kept = {path: path.read_bytes() for path in Path("mine").rglob("record.json")}
    assert len(kept) == 4
    card = Path("mine", "model", "README.md")
    written = card.read_bytes()
    card.unlink()
    (tmp_path / "old").rename(tmp_path / "new")
    code, _, err = command("deploy", "new/photos", *arguments)
    assert code == 0, err
    assert card.read_bytes() == written
    assert {path: path.read_bytes() for path in Path("mine").rglob("record.json")} == kept


def test_candidates_may_differ_in_how_the_same_images_are_resized(
    command: Command, photos: Path
) -> None:
    arguments = ["deploy", str(photos), "--methods", "deep-all", "--out", "mine", *SHORT]
    code, _, err = command(*arguments, "--grid", "resize=squash,crop")
    assert code == 0, err
    tried = Deployment.load(Path("mine") / "model").candidates
    assert [each.options.get("resize", "squash") for each in tried] == ["squash", "crop"]


def test_a_domain_called_none_is_a_domain(command: Command, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "named")
    (tmp_path / "named" / "left").rename(tmp_path / "named" / "none")
    code, _, err = command("deploy", "named")
    assert code == 1
    assert "has a domain called 'none'" in err
    arguments = ["train", "named", "--target", "none", "--out", "run", *SHORT[:10]]
    code, out, err = command(*arguments, "--device", "cpu")
    assert code == 0, err
    assert "accuracy on none" in out


def test_training_on_all_domains_says_so(command: Command, photos: Path) -> None:
    arguments = ["train", str(photos), "--target", "none", "--method", "deep-all", "--out", "run"]
    code, out, err = command(*arguments, *SHORT[:10], "--device", "cpu")
    assert code == 0, err
    assert "trained on left, middle, right: validation accuracy" in out
    assert "no domain was held out" in out
    assert Record.load(Path("run")).result.last.target_accuracy is None
    code, out, err = command("show", "run")
    assert code == 0, err
    assert "test middle" in out
    assert "target none" not in out


def test_images_that_are_in_two_domains_are_told_of_and_kill_9_loses_nothing(
    command: Command, photos: Path, tmp_path: Path, cache: Path
) -> None:
    shutil.copytree(photos, tmp_path / "copied")
    shutil.rmtree(tmp_path / "copied" / "right")
    for name in ("dark", "light"):
        for picture in (photos / "left" / name).iterdir():
            shutil.copy(picture, tmp_path / "copied" / "middle" / name / picture.name)
    arguments = ["deploy", "copied", "--methods", "deep-all", "--out", "mine", *SHORT]
    arguments += ["--iterations", "40", "--cache", str(cache)]
    kept = {}
    if sys.platform.startswith("linux"):  # finds processes through /proc
        kept = killed_in_the_last_run(arguments, tmp_path / "mine", tmp_path / "log")
        assert len(kept) == 2
    code, out, err = command(*arguments)
    assert code == 0, err
    assert all(path.read_bytes() == content for path, content in kept.items())
    deployment = Deployment.load(tmp_path / "mine" / "model")
    assert [each.domain for each in deployment.copied] == ["left", "middle"]
    for each in deployment.copied:
        (record,) = [
            Record.load(path)
            for path in (tmp_path / "mine").rglob("record.json")
            if f"/{each.domain}/" in path.as_posix()
        ]
        assert record.data.identical is not None
        assert each.identical == record.data.identical.of_target > 0
    card = (tmp_path / "mine" / "model" / "README.md").read_text()
    assert card.count("ATTENTION") == " ".join(out.split()).count("ATTENTION: of the") == 2


def test_classes_left_out_are_named(command: Command, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "gap")
    for domain in ("left", "middle"):
        shutil.copytree(photos / domain / "dark", tmp_path / "gap" / domain / "cow")
    grouped = ["--classes", "all", "--layout", "{domain}/{class}/{group}.png", "--out", "mine"]
    code, out, err = command("deploy", "gap", "--methods", "deep-all", *grouped, *SHORT)
    assert code == 0, err
    shared = "ATTENTION: 5 groups are in several domains by name, as 0 in left and middle and right"
    card = (tmp_path / "mine" / "model" / "README.md").read_text()
    page = (tmp_path / "mine" / "report" / "report.html").read_text()
    assert all(shared in " ".join(text.split()) for text in (out, card, page))
    assert "right has no image of cow. The accuracy on a domain is that of the classes it" in card
    few = "so it is for left, middle and right. With --test-on all every image of a domain"
    assert all(few in " ".join(text.split()) for text in (out, card))
    assert page.index("Expect ") < page.index("was trained on gap")
    arguments = ["train", "gap", "--target", "left", "--classes", "common", "--out", "run"]
    code, _, err = command(*arguments, *SHORT[:10], "--device", "cpu")
    assert code == 0, err
    assert "left out, for not every domain has them: cow (10 images, none in right)" in err
    code, out, err = command("show", "run")
    assert code == 0, err
    assert "Classes left out, for not every domain has them: cow" in " ".join(out.split())
