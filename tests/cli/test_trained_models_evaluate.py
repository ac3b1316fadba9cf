"""The command evaluate."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from gradsurgery.documents.deployment import EvaluationFile
from gradsurgery.documents.record import Record

# Figures are rendered by the same command in tests/website, where the tutorials run.
pytestmark = pytest.mark.usefixtures("unrendered")


def test_a_model_is_evaluated_on_data(command, model, tmp_path):
    code, out, err = command("evaluate", model, "photos", "--domains", "c", "--part", "test")
    assert (code, err) == (0, "")
    shown = command("show", "run")[1]
    (line,) = (line for line in shown.splitlines() if line.startswith("target c"))
    assert f"{line.split()[2].rstrip('%')} % [" in out.splitlines()[0]  # of the best model
    assert "It was trained on a and b of photos; c was held out." in out
    assert "Images by class (rows) and prediction" in out
    (folder,) = (tmp_path / "evaluation" / "photos").iterdir()
    assert folder.name.startswith("agr-sum-c-seed-0-test-c-")
    assert (folder / "evaluation-confusion.png").exists()


def test_evaluations_with_other_options_have_other_folders(command, model, tmp_path):
    every = ([], ["--domains", "c"], ["--part", "test"], ["--part", "train"], ["--part", "test"])
    for options in every:
        assert command("evaluate", model, "photos", *options)[0] == 0
    folders = list((tmp_path / "evaluation" / "photos").iterdir())
    assert len(folders) == 4  # the last is the third again
    found = [EvaluationFile.load(folder) for folder in folders]
    assert sorted(each.part for each in found) == ["all", "all", "test", "train"]


def test_a_deployed_model_knows_where_its_run_is(command, model, tmp_path):
    from gradsurgery.documents.deployment import Deployment, DeploymentCandidate

    candidate = DeploymentCandidate(method="agr-sum", options={}, unseen={"a": []}, validation={})
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((tmp_path / "run/model.safetensors").read_bytes())
    ways = (["evaluate", "model", "photos", "--part", "test"], ["explain", "model"])
    for way in ways:
        assert command(*way)[0] == 1
    Deployment(
        data="photos",
        data_digest="",
        domains=["a"],
        classes=["dark", "light"],
        criterion="training-domain",
        seeds=[0],
        candidates=[candidate],
        chosen=0,
        without_it={},
        directory="run",
    ).save(folder)
    assert command(*ways[0])[1] == command("evaluate", "run", *ways[0][2:])[1].replace(
        "run/", "model/"
    )
    assert command(*ways[1])[0] == 0
    assert (folder / "explanation").is_dir()
    assert command(*ways[0])[1] == command("evaluate", ".", *ways[0][2:])[1]  # of the deployment
    (tmp_path / "photos").rename(tmp_path / "moved")
    code, _, err = command("explain", "model")
    assert (code, err.count("\n")) == (1, 1)
    assert "was trained on, photos; say where that is now with --data: " in err
    assert command("explain", "model", "--data", "moved")[0] == 0


def test_a_folder_of_one_domain_is_evaluated(command, model):
    code, out, _ = command("evaluate", model, "photos/c", "--as-domain", "new", "--out", "here")
    assert code == 0
    assert "of 12 images right" in out.replace("\n", " ")


def test_one_domain_alone_is_evaluated_and_told(command, model, tmp_path):
    (tmp_path / "photos/c/notes.txt").write_text("not among the images")
    code, alone, err = command("evaluate", model, "photos/c", "--out", "here")
    assert (code, err.splitlines()[0]) == (0, "note: photos/c is class/image, of one domain: c")
    assert "left out of c: 1 file is something else than an image" in err
    (tmp_path / "new ones").mkdir()
    (tmp_path / "photos/c").rename(tmp_path / "new ones/c")
    code, within, err = command("evaluate", model, "new ones", "--out", "here")
    assert (code, within) == (0, alone.replace(" on c:", " on new ones:", 1))


def test_one_domain_is_evaluated_in_any_layout_or_table(command, model, tmp_path):
    alone = command("evaluate", model, "photos/c", "--out", "here")[1].partition("By domain")[2]
    rows = ["path,label,domain"]
    for path in sorted((tmp_path / "photos/c").rglob("*.png")):
        rows.append(f"photos/{path.relative_to(tmp_path / 'photos')},{path.parts[-2]},c")
    (tmp_path / "c.csv").write_text("\n".join(rows))
    assert (
        command("evaluate", model, "c.csv", "--out", "here")[1].partition("By domain")[2] == alone
    )
    for path in sorted((tmp_path / "photos/c").rglob("*.png")):
        (path.parent / f"patient {path.stem}").mkdir()
        path.rename(path.parent / f"patient {path.stem}" / path.name)
    ways = (
        ["photos/c", "--layout", "{class}/{id}/{name}"],
        ["photos/c", "--layout", "{class}/**/{name}", "--as-domain", "c"],
    )
    for way in ways:
        code, said, _ = command("evaluate", model, *way, "--out", "here")
        assert (code, said.partition("By domain")[2]) == (0, alone)
    code, _, err = command("evaluate", model, "photos/c")
    assert (code, 'say so with --layout "{class}/**/{name}"' in err) == (1, True)
    layout = "{domain}/{class}/{id}/{name}"
    code, _, err = command("evaluate", model, "photos", "--layout", layout, "--as-domain", "c")
    assert (code, "a layout without {domain}" in err) == (1, True)


def test_a_folder_of_two_forms_is_not_taken_for_one_domain(command, model, tmp_path):
    (tmp_path / "photos/c/dark/0.png").rename(tmp_path / "photos/c/0.png")
    code, _, err = command("evaluate", model, "photos")
    assert (code, "0.png lies directly in domain c" in err) == (1, True)


def test_a_class_without_images_is_named(command, model, tmp_path):
    (tmp_path / "photos/c/dim").mkdir()
    code, _, err = command("evaluate", model, "photos")
    assert (code, err) == (0, "left out of photos: class dim (0 images, none in any domain)\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "run", "photos", "--domains", "z"], "has no domain 'z'"),
        (["evaluate", "run", "absent"], "no data set 'absent'"),
        (["evaluate", "run", "photos/c/dark"], "lies directly in the data set's folder"),
        (["evaluate", "run", "run", "--as-domain", "x"], "holds no image in {class}/{name}"),
    ],
)
def test_an_error_is_one_line(command, model, arguments, words):
    code, out, err = command(*arguments)
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("way", ["layout", "table"])
def test_a_run_s_data_are_read_as_the_run_read_them(command, train_small, model, tmp_path, way):
    (tmp_path / "deep").mkdir()
    lines = ["file,label,domain,patient"]
    for number, path in enumerate(sorted((tmp_path / "photos").glob("*/*/*.png"))):
        d, c, name = path.parts[-3:]
        to = tmp_path / "deep" / d / f"p{number // 2}" / c / name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
        lines.append(f"{to.relative_to(tmp_path)},{c},{d},p{number // 2}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    data, how = "deep", ["--layout", "{domain}/{group}/{class}/{name}"]
    if way == "table":
        data, how = "list.csv", ["--columns", "path=file,group=patient"]
    assert train_small(data, "--target", "c", *how, "--out", "grouped")[0] == 0
    code, out, err = command("evaluate", "grouped", data, "--part", "test")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith(f"note: {data} is read as the model's run read it, with ")
    told = command("evaluate", "grouped", data, "--part", "test", *how)
    assert (told[1].split("By domain")[0], told[2]) == (out.split("By domain")[0], "")
    code, _, err = command("evaluate", "run", data, "--part", "test", *how)
    assert (code, "there is no split of" in err) == (1, True)  # this run was on other data
    other = tmp_path / "elsewhere" / data  # which may be another set of that name
    other.parent.mkdir()
    shutil.copytree(tmp_path / "deep", tmp_path / "elsewhere" / "deep")
    if way == "table":
        other.write_bytes((tmp_path / data).read_bytes())
    err = command("evaluate", "grouped", f"elsewhere/{data}")[2]
    assert err.startswith(f"note: the model's run read {data} with ")
    assert f"; elsewhere/{data} is not\n" in err
    alone = "those of a are taken for independent: where they are not, say so with --columns group"
    assert alone in command("evaluate", "grouped", "photos/a")[2]  # class/image
    assert "independent" not in command("evaluate", "run", "photos/a")[2]


def test_weights_that_knew_the_domain_held_out_are_told_of(command, train_small, model, tmp_path):
    """A model of a and b (c held out); then one with a held out; then c, which both knew not."""
    first = "run/model.safetensors"
    of_a, of_c = (["--target", target, "--method", "deep-all"] for target in "ac")
    code, out, err = train_small("photos", *of_a, "--weights", first, "--out", "second")
    assert code == 0
    assert f"the weights {first} were trained on a, by what their file says" in err
    told = "ATTENTION: runs with a of photos held out began with weights that had been trained on"
    assert told in out
    assert told in command("show", "second")[1].replace("\n", " ").replace("  ", " ")
    assert Record.load(tmp_path / "second").model.weights_domains == ["a", "b"]
    said = command("evaluate", "second", "photos", "--domains", "a")[1]
    assert "a was held out. Its initial weights had been trained on a and b of it." in said
    code, out, err = train_small("photos", *of_c, "--weights", first, "--out", "third")
    assert (code, "ATTENTION" in out, "were trained on" in err) == (0, False, False)
    last = "second/model.safetensors"  # trained on b and c, and before that on a and b
    train_small("photos", *of_a, "--weights", last, "--out", "fourth")
    assert Record.load(tmp_path / "fourth").model.weights_domains == ["a", "b", "c"]
    (tmp_path / "photos").rename(tmp_path / "others")
    train_small("others", *of_a, "--weights", first, "--out", "fifth")
    assert Record.load(tmp_path / "fifth").model.weights_domains == []


@pytest.mark.parametrize(
    ("arguments", "work"),
    [
        (["report", "run"], "gradsurgery.cli.finished_runs.take_inventory"),
        (["evaluate", "run", "photos"], "gradsurgery.cli.trained_models.built_model"),
        (["explain", "run"], "gradsurgery.cli.explain.loaded"),
        (["diagnose", "--run", "run"], "gradsurgery.cli.studies.open_source"),
        (["similarity", "photos", "--target", "c"], "gradsurgery.cli.studies.open_source"),
        (["study", "tasks-vs-domains", "rotated-digits"], "gradsurgery.cli.studies.open_source"),
        (["train", "photos", "--target", "c"], "gradsurgery.cli.train.open_source"),
        (["sweep", "photos"], "gradsurgery.cli.sweep.opened_sources"),
        (["compare", "photos"], "gradsurgery.cli.sweep.opened_sources"),
        (["deploy", "photos"], "gradsurgery.cli.deploy.opened_sources"),
        (["reproduce", "figure1"], "gradsurgery.cli.reproduce.open_examples"),
    ],
)
@pytest.mark.parametrize("out", ["file/within", "n" * 300])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    command, model, tmp_path, monkeypatch, arguments, work, out
):
    def never(*arguments, **options):
        raise AssertionError("nothing is to be done in vain")

    (tmp_path / "file").touch()
    monkeypatch.setattr(work, never)
    there = sorted(tmp_path.rglob("*"))
    code, _, err = command(*arguments, "--out", out)
    assert code == 1
    assert "error: cannot write" in err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "run", "photos", "--out", "file/p.csv"],
        ["predict", "run", "photos", "--out", "p.txt"],
    ],
)
def test_a_file_that_cannot_be_written_is_found_before_the_model_is_loaded(
    command, model, tmp_path, monkeypatch, arguments
):
    (tmp_path / "file").touch()
    monkeypatch.delattr("gradsurgery.cli.trained_models.built_model")
    code, _, err = command(*arguments)
    assert code == 1
    assert err.startswith("error: cannot write")


def test_the_home_of_a_user_who_is_none_is_no_place(command, model):
    for arguments in (
        ["evaluate", "run", "~nobody-of-this-name/photos"],
        ["train", "photos", "--target", "c", "--split", "~nobody-of-this-name/split.json"],
    ):
        code, _, err = command(*arguments)
        assert (code, err.splitlines()[-1].startswith("error: ")) == (1, True)


def test_a_damaged_record_is_not_in_the_way(command, model, tmp_path):
    (tmp_path / "run" / "record.json").write_text("{")
    assert command("evaluate", "run", "photos")[0] == 0


@pytest.fixture
def older(train_small, model) -> str:
    """The folder of a run on the same photos with another domain held out, at another size."""
    other = ["--image-size", "10", "--seed", "1", "--iterations", "3", "--out", "older"]
    assert train_small("photos", "--target", "b", *other)[0] == 0
    return "older"


def test_two_models_are_compared(command, model, older, tmp_path):
    plain = command("evaluate", model, "photos")[1]
    code, out, err = command("evaluate", model, "photos", "--against", older)
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    verdict = (
        r"(is (better|worse) than older/model.safetensors|and older/model.safetensors are not)"
    )
    assert re.match(f"run/model.safetensors {verdict}", said)
    assert re.search(
        r"Left out of the comparison: \d+ images that one of the two was trained", said
    )
    assert "older/model.safetensors was trained on a and c of photos; b was held out." in said
    assert "Against older/model.safetensors, by domain" in said
    first = plain.index("By domain")
    assert plain[first:].split("tables and")[0] in out  # what is said of one alone stays
    folders = {each.name for each in (tmp_path / "evaluation" / "photos").iterdir()}
    assert len(folders) == 2
    (compared,) = (name for name in folders if "against-another" in name)
    found = EvaluationFile.load(tmp_path / "evaluation" / "photos" / compared)
    assert found.against.model == "older/model.safetensors"
    written = (tmp_path / "evaluation" / "photos" / compared / "evaluation.md").read_text()
    assert "Against older/model.safetensors, by domain" in written


def test_classes_that_are_spelled_another_way_than_the_models_are_named(command, model, tmp_path):
    same = "differ in spelling alone: if they are one, rename them"
    (tmp_path / "photos" / "a" / "dark").rename(tmp_path / "photos" / "a" / "Dark")
    code, out, err = command("evaluate", model, "photos")
    assert (code, err) == (0, f"note: classes dark and Dark {same}\n")
    assert "Not counted, of classes that the model does not know, in a: 6 images, Dark (6)." in out
    for domain in ("a", "b", "c"):
        for label in ("dark", "Dark", "light"):
            if (folder := tmp_path / "photos" / domain / label).exists():
                folder.rename(folder.with_name(label.upper()))
    code, _, err = command("evaluate", model, "photos")
    assert code == 1
    assert err.splitlines()[:2] == [
        f"note: classes dark and DARK {same}",
        f"note: classes light and LIGHT {same}",
    ]


@pytest.mark.parametrize("new", ["own", "run"])
def test_a_network_of_ones_own_is_handed_to_the_model_that_is_of_it(
    new, command, model, tmp_path, monkeypatch
):
    code = "from torch import nn\n\n\ndef small(classes):\n"
    code += "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))\n"
    (tmp_path / "handed_networks.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ["--backbone", "handed_networks:small", "--weights", "none", "--image-size", "8"]
    options += ["--iterations", "2", "--batch-size", "4", "--device", "cpu", "--out", "own"]
    assert command("train", "photos", "--target", "b", *options)[0] == 0
    (other,) = {"own", "run"} - {new}
    arguments = ["evaluate", new, "photos", "--against", other]
    code, _, err = command(*arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert "hand its function over: --backbone" in err
    code, _, err = command(*arguments, "--backbone", "handed_networks:small")
    assert (code, err) == (0, "")
    alone = {}
    for each, handed in (("run", []), ("own", ["--backbone", "handed_networks:small"])):
        command("evaluate", each, "photos", "--out", f"of-{each}", *handed)
        alone[each] = EvaluationFile.load(tmp_path / f"of-{each}")
    (file,) = (tmp_path / "evaluation" / "photos").glob("*against*")
    both = EvaluationFile.load(file)
    assert both.tally == alone[new].tally
    assert both.against.tally == alone[other].tally


def test_two_models_of_two_networks_of_ones_own_are_handed_both(
    command, model, tmp_path, monkeypatch
):
    code = "from torch import nn\n"
    for name, wide in (("small", 2), ("large", 3)):
        layers = f"nn.Flatten(), nn.Linear(192, {wide}), nn.Linear({wide}, classes)"
        code += f"def {name}(classes):\n    return nn.Sequential({layers})\n"
    (tmp_path / "two_networks.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ["--weights", "none", "--image-size", "8", "--iterations", "1", "--device", "cpu"]
    small, large = "two_networks:small", "two_networks:large"
    for network in (small, large):
        given = ["--backbone", network, "--out", network.partition(":")[2]]
        assert command("train", "photos", "--target", "b", *options, *given)[0] == 0
    arguments = ["evaluate", "small", "photos", "--against", "large", "--backbone"]
    for alone in (small, large):
        code, _, err = command(*arguments, alone)
        assert (code, err.count("\n")) == (1, 1)
        assert f"1 network for 2 models, of {small} and {large}; name one for each" in err
    code, _, err = command(*arguments, f"{large},{small}")
    assert (code, err.count("\n")) == (1, 1)
    assert f"small/model.safetensors does not fit {large}" in err
    assert command(*arguments, f"{small},{large}")[0::2] == (0, "")
    code, _, err = command("evaluate", "small", "photos", "--backbone", f"{small},{large}")
    assert (code, "2 networks for 1 model, of two_networks:small" in err) == (1, True)


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_reader_that_has_gone_is_no_fault_of_a_network_of_ones_own(
    name, command, model, tmp_path
):
    (tmp_path / "gone_networks.py").write_text("from gradsurgery.backbones import SmallCNN\n")
    arguments = [sys.executable, "-m", "gradsurgery", name, "run", "photos", "--device", "cpu"]
    arguments += ["--backbone", "gone_networks:SmallCNN"]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_models_that_cannot_be_compared_are_one_line(command, model, tmp_path):
    code, out, err = command("evaluate", model, "photos", "--against", "run/model.safetensors")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "are the same model; name two" in err
    code, _, err = command("evaluate", model, "photos", "--against", "absent")
    assert (code, err.count("\n")) == (1, 1)


def test_what_there_is_to_know_of_a_model_is_said(command, model, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = tmp_path / "run" / "model.safetensors"
    weights = load_file(file)
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["gradsurgery"])
    save_file(weights, file, {"gradsurgery": json.dumps(about | {"decoder": "mine:Source"})})
    for way in (["evaluate", "run", "photos"], ["predict", "run", "photos"], ["explain", "run"]):
        code, _, err = command(*way)
        assert (code, err.count("note: ")) == (0, 1)
        assert "was trained on were decoded by mine:Source; other pictures" in err
