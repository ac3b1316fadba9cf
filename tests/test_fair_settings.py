"""The scripts behind `docs/evidence/fair-settings.md`."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(name="scripts")
def _scripts(monkeypatch):
    """The modules `fair_settings` and `fair_settings_tables`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield [importlib.import_module(n) for n in ("fair_settings", "fair_settings_tables")]
    for name in ("fair_settings", "fair_settings_tables"):
        del sys.modules[name]


@pytest.mark.parametrize("method", ["deep-all", "agr-sum", "agr-ema", "sand-mask"])
def test_runs_trained_together_are_those_trained_one_by_one(method, scripts, tmp_path):
    script, _ = scripts
    setting = script.SETTINGS["rotated-mlp"]._replace(steps=6, every=3)
    data = script.Data.of(setting, 0, tmp_path)
    jobs = [
        script.Job(rate, seed, held_out, data)
        for rate, seed, held_out in ((1e-3, 0, ("75",)), (1e-2, 3, ("75",)))
    ]
    for job, curve in zip(jobs, script.together(setting, method, jobs), strict=True):
        alone = script.one_by_one(setting, method, job)
        for name in script.CURVES:
            assert curve[name] == pytest.approx(alone[name], rel=1e-3), name


def test_a_run_is_read_as_it_was_written(scripts, tmp_path):
    script, _ = scripts
    curves = {"validation": [0.5, 1.0], "loss": [2.25, 0.125], "agreeing": [0.03125, -1.0]}
    run = script.Run("coded-8", "agr-sum", 3e-3, 4, "random", 20, curves | {"target": [0.25, 0.75]})
    script.append(run, tmp_path / "runs.csv")
    script.append(run._replace(seed=5), tmp_path / "runs.csv")
    assert script.read(tmp_path / "runs.csv") == [run, run._replace(seed=5)]


def test_models_are_selected_as_the_page_says(scripts):
    script, tables = scripts
    curves = {
        "validation": [0.5, 0.9, 0.8, 0.9],
        "loss": [1.0] * 4,
        "agreeing": [0.02, 0.009, 2.0**-7, 0.001],  # 8 domains: chance is 2^-7
        "target": [0.5, 0.6, 0.55, 0.4],
    }
    run = script.Run("coded-8", "agr-sum", 1e-3, 0, "random", 20, curves)
    beside = [
        run._replace(held_out=f"code-{d}", curves=curves | {"target": target})
        for d, target in ((1, [0.1, 0.2, 0.9, 0.4]), (2, [0.3, 0.5, 0.3, 0.6]))
    ]
    assert tables.last(run, ()) == 3
    assert tables.by_validation(run, ()) == 1
    assert tables.by_agreement(run, ()) == 2
    assert tables.by_sources(run, beside) == 2
    assert tables.oracle(run, ()) == 1
    never = run._replace(curves=curves | {"agreeing": [0.5] * 4})
    assert tables.by_agreement(never, ()) == 3
    results = tables.Results("coded-8", [run, run._replace(rate=3e-3, curves=never.curves)])
    assert results.chosen_rate("agr-sum") in (1e-3, 3e-3)
    better = run._replace(rate=1e-2, curves=curves | {"validation": [0.5, 0.91, 0.8, 0.9]})
    assert tables.Results("coded-8", [run, better]).chosen_rate("agr-sum") == 1e-2
    lower = run._replace(rate=1e-2, curves=curves | {"loss": [0.5] * 4})
    assert tables.Results("coded-8", [run, lower]).chosen_rate("agr-sum") == 1e-2
