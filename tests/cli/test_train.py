"""The command train, in processes of its own where the process matters."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image
from scipy.stats import binomtest

from gradsurgery import RunConfiguration, __version__

# whoever started the tests may ignore SIGINT, which child processes inherit
ENTRY = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from gradsurgery.cli.main import run; run()"
)
SHORT = ["--iterations", "6", "--validate-every", "3", "--batch-size", "8"]
SHORT += ["--image-size", "12", "--device", "cpu"]
RUN = ["train", "rotated-digits", "--target", "75", *SHORT, "--out", "run"]
Command = Callable[..., tuple[int, str, str]]
Finished = Callable[[list[str]], None]


def started(*arguments: str, cache: Path, directory: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "GRADSURGERY_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", ENTRY, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=directory,
    )


def test_train_leaves_a_record_and_says_what_came_out(command: Command, tmp_path: Path) -> None:
    arguments = ["train", "rotated-digits", "--target", "75", "--method", "deep-all", *SHORT]
    code, out, err = command(*arguments, "--seed", "2")
    path = tmp_path / "runs" / "rotated-digits" / "75" / "deep-all" / "seed-2" / "record.json"
    record = json.loads(path.read_text())
    assert code == 0
    accuracy = record["result"]["best"]["target_accuracy"]
    counts = record["result"]["best"]["tests"]["75"]["confusion"]
    tested = sum(int(pair.split(":")[1]) for row in counts for pair in row.split())
    low, high = binomtest(round(accuracy * tested), tested).proportion_ci(0.95, "wilson")
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
    assert f"accuracy on 75 {accuracy:.1%} {interval} (best model" in out
    assert f"record: {path.relative_to(tmp_path)}" in out
    assert "step 3/6" in err
    assert record["configuration"]["iterations"] == 6
    again, out, err = command(*arguments, "--seed", "2")
    assert (again, err) == (0, "")
    assert "finished before" in out


@pytest.mark.parametrize("change", ["removed", "of another class", "other pixels"])
def test_a_finished_run_says_that_its_images_changed(
    change: str, train_small: Command, model: str
) -> None:
    record = json.loads(Path(model, "record.json").read_text())["configuration"]
    assert record["target"] == "c"
    again = ["photos", "--target", "c", "--out", model]
    code, out, err = train_small(*again)
    assert (code, err) == (0, "")
    assert out.startswith("this run was finished before\n")
    first, second = (Path("photos/a", label, "0.png") for label in ("dark", "light"))
    if change == "removed":
        first.unlink()
    elif change == "of another class":  # as many of each as before
        first.rename(second.with_name("7.png"))
        second.rename(first.with_name("7.png"))
    else:
        Image.new("RGB", (9, 9), (9, 9, 9)).save(first)
    code, out, err = train_small(*again)
    assert code == 0
    assert out.startswith("this run was finished before\n")
    assert err.startswith("the images of photos have changed since this run was finished; to train")
    assert err.count("\n") == 1


def test_classes_that_are_left_out_are_told_and_decoding_once(train_small: Command) -> None:
    for domain, labels in {"a": "xyz", "b": "xyz", "c": "xy"}.items():
        for label in labels:
            folder = Path("photos", domain, label)
            folder.mkdir(parents=True)
            for i in range(6):
                color = (40 * i, ord(label), ord(domain))
                Image.new("RGB", (9, 9), color).save(folder / f"{i}.png")
    code, _, err = train_small("photos", "--target", "c", "--classes", "common")
    assert code == 0, err
    assert err.count("left out, for not every domain has them: z") == 1
    assert err.count("decoded 36 images") == 1


def test_a_terminal_shows_the_run_while_it_works(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, err = command(*RUN)
    assert code == 0
    assert "agr-sum testing" in err
    assert "12/12" in err
    assert "accuracy on 75" in out
    assert "0/?" not in err


def test_every_option_reaches_the_configuration(command: Command, tmp_path: Path) -> None:
    options = {
        "method": "mixup+gradvac",
        "backbone": "small-cnn",
        "weights": "none",
        "batch-norm": "frozen",
        "iterations": 2,
        "batch-size": 4,
        "batches": "single",
        "learning-rate": 0.25,
        "weight-decay": 0.5,
        "optimizer": "sgd",
        "average": "swad",
        "validate-every": 1,
        "image-size": 12,
        "device": "cpu",
        "precision": "bfloat16",
        "channels-last": "on",
        "cuda-graph": "off",
        "seed": 3,
        "split-seed": 4,
        "threads": 1,
        "log-conflict": 2,
        "augment": "flip",
        "label-smoothing": 0.125,
        "clip-norm": 2.0,
        "schedule": "cosine",
        "warmup": 1,
        "test-on": "all",
    }
    given = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    flags = ["--split-per-run", "--skip-bad", "--out", "here", "--without", "0"]
    flags += ["--set", "mixup.alpha=0.5", "--set", "gradvac.beta=0.25"]
    flags += ["--set", "swad.overfit_patience=4"]
    code, _, err = command("train", "rotated-digits", "--target", "75", *given, *flags)
    assert code == 0, err
    recorded = json.loads((tmp_path / "here" / "record.json").read_text())["configuration"]
    expected = {key.replace("-", "_"): value for key, value in options.items()}
    expected |= {"data": "rotated-digits", "target": "75", "without": ["0"]}
    expected |= {"settings": {"mixup.alpha": 0.5, "gradvac.beta": 0.25}}
    expected["settings"]["swad.overfit_patience"] = 4
    # a compiled network takes seconds to begin: tests/training/test_device.py
    flags_of = {"split_per_run": True, "skip_bad": True, "compile": False}
    defaults = RunConfiguration(data="rotated-digits", target="75").model_dump(mode="json")
    assert recorded == {**defaults, **expected, **flags_of}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "target is missing; give --target and one of the domains of rotated-digits"),
        (["--target", "90"], "its domains are 0, 15, 30, 45, 60, 75"),
        (["--target", "75", "--method", "agr"], "unknown method 'agr'"),
        (["--target", "75", "--learning-rate", "-1"], "learning_rate must be greater than 0"),
        (["--target", "75", "--backbone", "alexnett"], "alexnet"),
        (["--target", "75", "--weights", "absent.pth"], "absent.pth"),
        (
            ["--target", "75", "--precision", "half"],
            "'float32', 'tf32', 'ieee', 'bfloat16' or 'float16'",
        ),
        (["--target", "75", "--out", "/proc/run"], "cannot write"),
        (["--target", "75", "--out", "x" * 4400], "File name too long"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    arguments: list[str], words: str, command: Command, tmp_path: Path
) -> None:
    code, out, err = command("train", "rotated-digits", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_another_run_in_the_folder_is_an_error_that_names_the_option(
    command: Command, finished: Finished
) -> None:
    finished(RUN)
    code, _, err = command(*RUN, "--seed", "1")
    assert code == 1
    assert "seed: 0 there, 1 here" in err


def test_usage_errors_exit_with_2(command: Command) -> None:
    many = ("train", "rotated-digits", "--target", "75", "--iterations", "many")
    for wrong in (many, ("trian",)):
        code, _, err = command(*wrong)
        assert code == 2, err


def test_settings_of_a_file_and_of_the_command_line_go_together(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(
        "data: rotated-digits\ntarget: 75\nmethod: irm\nsettings: {irm.penalty: 10}\n".replace(
            "75", "'75'"
        )
    )
    code, out, err = command(
        "train", "--config", "run.yaml", "--set", "irm.anneal=2", "--print-config"
    )
    assert code == 0, err
    assert yaml.safe_load(out)["settings"] == {"irm.penalty": 10.0, "irm.anneal": 2.0}


def test_version(command: Command) -> None:
    assert command("--version") == (0, f"{__version__}\n", "")


def test_the_package_is_a_command() -> None:
    arguments = [sys.executable, "-m", "gradsurgery", "--version"]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert done.stdout == f"{__version__}\n"


def test_help_needs_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from gradsurgery.cli.main import app\n"
        "heavy = {'torch', 'pandas', 'numpy', 'pydantic', 'timm', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_lists_the_commands(command: Command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    assert all(name in out for name in ("train", "compare", "show", "methods", "data"))


def test_an_interruption_exits_with_130_and_can_be_continued(tmp_path: Path, cache: Path) -> None:
    arguments = [*RUN, "--iterations", "100000"]
    with started(*arguments, cache=cache, directory=tmp_path) as process:
        while process.poll() is None and not (tmp_path / "run" / "checkpoint.pt").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; repeat the same command to continue"
    assert "Traceback" not in err
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    tmp_path: Path, cache: Path, command: Command
) -> None:
    assert command("data", "prepare", "rotated-digits", "--image-size", "12")[0] == 0
    limited = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, resource.RLIM_INFINITY))\n" + ENTRY
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", limited, *RUN],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot write run/")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"configuration.json", "split.json"}


def test_a_wrong_backbone_is_named_before_the_options_of_a_run_that_is_there(
    command: Command, finished: Finished
) -> None:
    finished(RUN)
    code, _, err = command(*RUN, "--backbone", "small-cn")
    assert code == 1
    assert err.startswith("error: there is no backbone 'small-cn'; did you mean small-cnn")
    code, _, err = command(*RUN, "--backbone", "small-mlp")
    assert (code, "holds a run with other options (backbone" in err) == (1, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--target", "nonesuch"], "has no domain 'nonesuch'"),
        (["--method", "agr-summ"], "unknown method 'agr-summ'"),
        (["--seed", "5", "--logger", "nope"], "unknown logger 'nope'"),
    ],
)
def test_options_are_checked_before_the_folder(
    change: list[str], words: str, command: Command, finished: Finished
) -> None:
    finished(RUN)
    code, _, err = command(*RUN, *change)
    assert code == 1
    assert words in err


def test_a_run_that_goes_on_says_from_which_step(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gradsurgery.training.loop._warn_where_it_diverges", interrupted)
        assert command(*RUN)[0] == 130
    code, _, err = command(*RUN)
    assert code == 0
    assert "going on from step 3 of 6" in err.splitlines()


@pytest.mark.parametrize(
    "words", ["train --target x --method", "compare --methods", "deploy --methods"]
)
def test_a_method_that_there_is_not_is_named_before_data_is_fetched(
    words: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("data is fetched")

    for module in ("train", "sweep", "deploy"):
        name = "open_source" if module == "train" else "opened_sources"
        monkeypatch.setattr(f"gradsurgery.cli.{module}.{name}", fetched)
    first, *rest = words.split()
    code, _, error = command(first, "hf://somebody/pictures", *rest, "agr-summ")
    assert code == 1
    assert "unknown method 'agr-summ'" in error
