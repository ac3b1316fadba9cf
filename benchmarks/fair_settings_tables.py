"""The tables and the figure of `docs/evidence/fair-settings.md`, from the runs of its table.

python benchmarks/fair_settings_tables.py [--figure docs/figures/fair-settings.png]
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from fair_settings import SETTINGS, TABLE, Run, read
from tabulate import tabulate

from gradsurgery.data import open_source
from gradsurgery.report.figures.style import encoded, new_figure, styled
from gradsurgery.results.statistics import PairedComparison, compare_paired

BASELINE = "deep-all"
Choice = Callable[[Run, Sequence[Run]], int]
"""The point of a run's curves at which its model is taken; it may look at runs beside it, that are

the same but for one more source that is held out.
"""


def last(run: Run, _: Sequence[Run]) -> int:
    """The last model."""
    return len(run.curves["target"]) - 1


def by_validation(run: Run, _: Sequence[Run]) -> int:
    """The first model of the highest source validation accuracy: the protocol's."""
    values = run.curves["validation"]
    return values.index(max(values))


def by_agreement(run: Run, beside: Sequence[Run]) -> int:
    """The first model by which agreement, of the steps since the point before, is down to chance.

    Chance is 2^(1−D) of the components that are not zero in all D domains. Where agreement never
    falls so far it is the last model.
    """
    chance = 2.0 ** (1 - sources_of(run.setting))
    agreeing = run.curves["agreeing"]
    return next((i for i, value in enumerate(agreeing) if 0 <= value <= chance), last(run, beside))


def by_sources(run: Run, beside: Sequence[Run]) -> int:
    """The point at which the sources that were held out, each in a run of its own, did best."""
    curves = [other.curves["target"] for other in beside]
    means = [fmean(values) for values in zip(*curves, strict=True)]
    return means.index(max(means))


def oracle(run: Run, _: Sequence[Run]) -> int:
    """The model that is best on the target."""
    values = run.curves["target"]
    return values.index(max(values))


CHOICES: dict[str, Choice] = {
    "last model": last,
    "source validation": by_validation,
    "agreement at chance": by_agreement,
    "leave one source out": by_sources,
    "target (oracle)": oracle,
}


def sources_of(setting: str) -> int:
    """The number of source domains."""
    return len(open_source(SETTINGS[setting].data.format(seed=0)).domains) - 1


def taken(runs: Iterable[Run], choice: Choice, beside: Iterable[Run] = ()) -> dict[int, float]:
    """Target accuracy in percent by seed."""
    others = list(beside)
    return {
        run.seed: 100 * run.curves["target"][choice(run, [o for o in others if o.seed == run.seed])]
        for run in runs
    }


class Results:
    """The runs of one setting."""

    def __init__(self, setting: str, runs: Iterable[Run]) -> None:
        self.setting = setting
        here = [run for run in runs if run.setting == setting]
        target = SETTINGS[setting].target
        self.runs = [run for run in here if run.held_out == target]
        self.beside = [run for run in here if run.held_out != target]
        self.methods = list(dict.fromkeys(run.method for run in self.runs))

    def of(self, method: str, rate: float | None = None) -> list[Run]:
        """The runs of a method, at the rate that its own source validation chooses, or another."""
        wanted = self.chosen_rate(method) if rate is None else rate
        return [run for run in self.runs if (run.method, run.rate) == (method, wanted)]

    def chosen_rate(self, method: str) -> float:
        """The rate of the highest mean validation accuracy; ties go to the lower loss."""

        def merit(rate: float) -> tuple[float, float]:
            runs = self.of(method, rate)
            points = [by_validation(run, ()) for run in runs]
            curves = [(run.curves, at) for run, at in zip(runs, points, strict=True)]
            accuracy = fmean(curve["validation"][at] for curve, at in curves)
            return round(accuracy, 9), -fmean(curve["loss"][at] for curve, at in curves)

        return max(self.rates(method), key=merit)

    def rates(self, method: str) -> list[float]:
        """The rates that the method was run at."""
        return sorted({run.rate for run in self.runs if run.method == method})

    def over(self, other: str, values: dict[int, float]) -> str:
        """Mean difference from another method over the seeds of both, with its 95 % interval.

        Both have their own rate and their own step by source validation. A star: p < 0.05.
        """
        if other not in self.methods:
            return "–"
        base = taken(self.of(other), by_validation)
        seeds = sorted(values.keys() & base.keys())
        if len(seeds) < 2:
            return "–"
        return difference(compared(values, base))


def compared(values: dict[int, float], base: dict[int, float]) -> PairedComparison:
    """By the seeds of both."""
    seeds = sorted(values.keys() & base.keys())
    return compare_paired([values[s] for s in seeds], [base[s] for s in seeds], seed=0)


def difference(found: PairedComparison) -> str:
    """The mean difference, its 95 % interval, and a star: p < 0.05."""
    star = "*" if found.significant else ""
    return f"{found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}]{star}"


def shown(values: Iterable[float]) -> str:
    """Mean ± standard deviation."""
    numbers = list(values)
    return f"{fmean(numbers):.1f} ± {stdev(numbers):.1f}" if len(numbers) > 1 else "–"


def settings_table(results: Results) -> str:
    """A method a row: at one rate and early, at one rate and late, and each at its own."""
    rates = sorted({run.rate for run in results.runs})
    common = max(rates, key=lambda rate: sum(bool(results.of(m, rate)) for m in results.methods))
    rows = []
    for method in results.methods:
        row = [f"`{method}`"]
        equal = results.of(method, common)
        quarter = lambda run, _: len(run.curves["target"]) // 4 - 1  # noqa: E731
        for choice in (quarter, last):
            values = taken(equal, choice)
            row.append(f"{fmean(values.values()):.1f}" if values else "–")
        values = taken(results.of(method), by_validation)
        seen = [100 * max(run.curves["validation"]) for run in results.of(method)]
        row += [f"{results.chosen_rate(method):g}", f"{fmean(seen):.1f}", shown(values.values())]
        row += ["" if method == o else results.over(o, values) for o in (BASELINE, "agr-sum")]
        row.append(str(len(values)))
        rows.append(row)
    setting = SETTINGS[results.setting]
    steps, early = setting.steps, setting.steps // setting.every // 4 * setting.every
    names = ["method", f"at {common:g}, {early} steps", f"{steps} steps", "own rate"]
    names += ["validation", "target", "over Deep-All", "over Agr-Sum", "seeds"]
    return tabulate(rows, names, tablefmt="github", disable_numparse=True)


def rates_table(results: Results) -> str:
    """A method a row, a learning rate a column: target (validation) by source validation."""
    rates = sorted({run.rate for run in results.runs})
    rows = []
    for method in results.methods:
        row = [f"`{method}`"]
        for rate in rates:
            runs = results.of(method, rate)
            values = taken(runs, by_validation).values()
            seen = [100 * max(run.curves["validation"]) for run in runs]
            row.append(f"{fmean(values):.1f} ({fmean(seen):.1f})" if runs else "–")
        rows.append(row)
    return tabulate(rows, ["method", *(f"{rate:g}" for rate in rates)], tablefmt="github")


def selection_table(results: Results, rate: float | None = None) -> str:
    """A method a row, a way of selecting a column: target accuracy of the model that it takes."""
    rows = []
    for method in results.methods:
        runs = results.of(method, rate)
        if not runs or runs[0].curves["agreeing"][0] < 0:
            continue
        beside = [o for o in results.beside if o.method == method and o.rate == runs[0].rate]
        row = [f"`{method}`", f"{runs[0].rate:g}"]
        for choice in CHOICES.values():
            known = choice is not by_sources or {o.seed for o in beside} >= {r.seed for r in runs}
            row.append(shown(taken(runs, choice, beside).values()) if known else "–")
            if choice is by_agreement:
                found = compared(taken(runs, choice), taken(runs, by_validation))
                star = "*" if found.significant else ""
                row[-1] += f" ({found.difference:+.1f}{star})"
                reached = fmean(by_agreement(run, ()) < last(run, ()) for run in runs)
                row.append(f"{100 * reached:.0f} %")
        rows.append(row)
    names = ["method", "rate", *CHOICES]
    names.insert(names.index("agreement at chance") + 1, "reached")
    return tabulate(rows, names, tablefmt="github", disable_numparse=True)


def equal_rates_table(results: Results) -> str:
    """Two methods a row, a rate a column: how far the first is ahead where both have that rate.

    Their steps are those of source validation.
    """
    rates = sorted({run.rate for run in results.runs})
    rows = []
    for other in (BASELINE, "agr-sum"):
        for method in results.methods:
            if method in (BASELINE, other):
                continue
            row = [f"`{method}` over `{other}`"]
            for rate in rates:
                one, two = (taken(results.of(m, rate), by_validation) for m in (method, other))
                row.append(difference(compared(one, two)) if one and two else "–")
            rows.append(row)
    return tabulate(rows, ["", *(f"{rate:g}" for rate in rates)], tablefmt="github")


def stopping_at_chance(found: Iterable[Results]) -> str:
    """What taking the model at which agreement is at chance does, over all methods and rates."""
    gains = []
    for results in found:
        for method in results.methods:
            for rate in results.rates(method):
                runs = results.of(method, rate)
                if runs[0].curves["agreeing"][0] >= 0:
                    both = (taken(runs, choice) for choice in (by_agreement, by_validation))
                    gains.append(compared(*both))
    stars = [gain.difference for gain in gains if gain.significant]
    return (
        f"agreement at chance against source validation: {len(gains)} pairs of method and rate, "
        f"{sum(d > 0 for d in stars)} gain by an amount that is significant (up to "
        f"{max(stars, default=0):.1f} points), {sum(d < 0 for d in stars)} lose (down to "
        f"{min(stars, default=0):.1f})"
    )


def search_table(results: Results) -> str:
    """A method a row: rate and step are chosen together, seed by seed, in three ways."""
    rows = []
    for method in results.methods:
        beside = [other for other in results.beside if other.method == method]
        found: dict[str, list[float]] = {
            "source validation": [],
            "one source out": [],
            "target": [],
        }
        chosen: list[float] = []
        for seed in sorted({other.seed for other in beside}):
            rates = sorted({other.rate for other in beside if other.seed == seed})
            runs = [r for r in results.runs if (r.method, r.seed) == (method, seed)]
            offered = [run for run in runs if run.rate in rates]
            around = {r: [o for o in beside if (o.seed, o.rate) == (seed, r)] for r in rates}
            merits = {
                "source validation": lambda run, at: run.curves["validation"][at],
                "one source out": lambda run, at, a=around: fmean(
                    other.curves["target"][at] for other in a[run.rate]
                ),
                "target": lambda run, at: run.curves["target"][at],
            }
            for name, merit in merits.items():
                pairs = [(run, at) for run in offered for at in range(len(run.curves["target"]))]
                run, at = max(pairs, key=lambda pair, merit=merit: merit(*pair))
                found[name].append(100 * run.curves["target"][at])
                if name == "one source out":
                    chosen.append(run.rate)
        if chosen:
            rows.append([f"`{method}`", *(shown(values) for values in found.values())])
            rows[-1] += [", ".join(f"{rate:g}" for rate in chosen)]
    names = ["method", "source validation", "leave one source out", "target (oracle)"]
    return tabulate(rows, [*names, "rates of leave one out"], tablefmt="github")


@styled()
def draw(results: Sequence[Results], methods: Sequence[str], path: Path) -> None:
    """Mean curves over steps: accuracy on the target above, agreement over chance below."""
    figure, axes = new_figure(2.6 * len(results), 4.4, 2, len(results), share_y="row")
    colors = dict(zip(methods, ("#1a1a1a", "#0072b2", "#d55e00"), strict=True))
    for column, each in enumerate(results):
        chance = 2.0 ** (1 - sources_of(each.setting))
        for method in methods:
            runs = each.of(method) if method in each.methods else []
            if not runs:
                continue
            steps = [runs[0].every * (i + 1) for i in range(len(runs[0].curves["target"]))]
            label = f"{method}, {runs[0].rate:g}"
            for row, name in enumerate(("target", "agreeing")):
                curves = zip(*(run.curves[name] for run in runs), strict=True)
                means = [fmean(values) for values in curves]
                scaled = [100 * m if row == 0 else m / chance for m in means]
                if min(means) >= 0:
                    axes[row, column].plot(steps, scaled, label=label, color=colors[method])
        axes[0, column].set_title(each.setting)
        axes[1, column].set_yscale("log")
        axes[1, column].yaxis.set_major_formatter("{x:g}")
        axes[0, column].legend(fontsize=6)
        axes[1, column].axhline(1, color="#595959", linewidth=0.8)
        axes[1, column].set_xlabel("step")
    axes[0, 0].set_ylabel("accuracy on the target, %")
    axes[1, 0].set_ylabel("agreement over chance")
    path.write_bytes(encoded(figure, "png"))


def main() -> None:
    """Print the tables, and draw the figure where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--figure", type=Path, default=None)
    arguments = parser.parse_args()
    runs = read(arguments.table)
    found = {name: Results(name, runs) for name in SETTINGS}
    for name, results in found.items():
        if BASELINE in results.methods:
            print(f"\n{name}\n")
            print(settings_table(results), rates_table(results), sep="\n\n", end="\n\n")
            print(selection_table(results))
            print(f"\nequal rates\n\n{equal_rates_table(results)}")
            if results.beside:
                print(f"\nrate and step together\n\n{search_table(results)}")
    print(f"\n{stopping_at_chance(found.values())}")
    if arguments.figure is not None:
        shown_ones = ("coded-4", "coded-8", "coded-12", "rotated-mlp", "colored-mlp")
        drawn = [found[name] for name in shown_ones if found[name].methods]
        draw(drawn, [BASELINE, "agr-sum", "agr-ema"], arguments.figure)


if __name__ == "__main__":
    main()
