"""`gradsurgery deploy` and `export`: a model for domains nobody has seen yet, and its way out."""

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from gradsurgery.atomic import atomic_file, check_folder, write_text
from gradsurgery.cli import options as opt
from gradsurgery.cli.finished_runs import make_report
from gradsurgery.cli.live import displayed
from gradsurgery.cli.sweep import plan_parts, run_plan
from gradsurgery.cli.train import check_new
from gradsurgery.data import Source, digest_of, reopened
from gradsurgery.deployment import load_model
from gradsurgery.deployment.export import (
    SUFFIXES,
    Format,
    Normalization,
    description_file,
    export_model,
)
from gradsurgery.deployment.model_file import named_on_hub
from gradsurgery.deployment.model_file import push as upload
from gradsurgery.documents.configuration import options_of
from gradsurgery.documents.data_options import NO_TARGET, DataOptions
from gradsurgery.documents.deployment import MODEL_FOLDER, Deployment
from gradsurgery.documents.document import folder_name
from gradsurgery.documents.plan import PLAN_PARTS, Plan, SweepPlan
from gradsurgery.documents.record import Record
from gradsurgery.documents.studies import Diagnosis, DiagnosisOptions
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.report.model_card import (
    doubtful,
    expectation,
    few_tests,
    model_card,
    short_card,
    tried_table,
)
from gradsurgery.report.rendering import OnTerminal
from gradsurgery.report.section import Text
from gradsurgery.results import take_inventory
from gradsurgery.results.deployment import (
    Tried,
    candidates_of,
    choose,
    classes_unseen,
    copied_tests,
    known_domains,
    tested_images,
    unseen_groups,
    unseen_low,
    without_looking,
)
from gradsurgery.studies.diagnosis import diagnose_run
from gradsurgery.sweep.run import tidy
from gradsurgery.sweep.runs import (
    SweepRun,
    existing_records,
    finished_record,
    opened_sources,
    planned,
)
from gradsurgery.training import train
from gradsurgery.training.outcome import MODEL_FILE
from gradsurgery.training.run import prepare_images

_ATTAINABLE = Literal["leave-one-domain-out", "training-domain"]


@opt.takes_plan("targets")
def deploy(
    data: Annotated[str | None, opt.DATA] = None,
    *,
    plan: opt.PlanOptions,
    criterion: Annotated[
        _ATTAINABLE,
        typer.Option(
            help="Choose by the accuracy on the domains left out, or on the validation images of "
            "the others."
        ),
    ] = "leave-one-domain-out",
    out: Annotated[Path | None, typer.Option(help="Default: deployments/<data>.")] = None,
    launch: opt.LaunchOptions,
    options: dict[str, Any],
) -> None:
    """Choose a method by leaving every domain out in turn, and train it on all of them.

    Writes a sweep with its report, and the folder model: the model file, its card README.md and
    deployment.json. The same command again goes on where it ended, however it ended.
    """
    parts = plan_parts(plan, data and [data], options)
    for name, value in (("targets", "all"), ("leave_one_domain_out", False)):
        if parts.setdefault(name, value) != value:
            raise ArgumentError(f"{name} is not for a deployment, which leaves out every domain")
    trials = Plan(**parts)
    if len(trials.data) != 1:
        raise ArgumentError(f"a deployment is of one data set, found {', '.join(trials.data)}")
    shared = set(DataOptions.model_fields) & set(options_of("condition"))
    if apart := [name for name in trials.searched if name in shared]:
        raise ArgumentError(
            f"grid: {apart[0]} is not for a deployment, whose candidates must know the same "
            "classes and be judged on the same images in the same way; give it once, as an option"
        )
    if not plan.print_config:
        check_new(None if plan.dry_run else out, SweepPlan.file_name, trials.methods)
    (source,) = opened_sources(trials).values()
    if NO_TARGET in source.domains:
        raise ArgumentError(
            f"{source.name} has a domain called {NO_TARGET!r}, the word for leaving none out; "
            "rename it"
        )
    folder = out or Path("deployments") / folder_name(source.name)
    if not plan.print_config:
        _check_images(trials, source, folder, launch.cache)
    run_plan(
        parts,
        folder,
        plan,
        launch,
        after=lambda folder: _finish(trials, source, folder, criterion, launch.cache),
    )
    if plan.dry_run and not plan.print_config:
        print("then one more run, of the method that is chosen, on all domains")


def _check_images(plan: Plan, source: Source, folder: Path, cache: Path | None) -> None:
    """Raise `DataError` where finished runs in `folder` had other images than there are now.

    Candidates are compared on the same images, and the model of a folder is trained on these.
    """
    runs = planned(plan, {plan.data[0]: source})
    digests: dict[tuple[int, str], str] = {}
    for directory, record in existing_records(runs, folder).items():
        c = record.configuration
        made = c.image_size, c.resize
        if made not in digests:
            opened = reopened(source, plan.data[0], c.reading)
            digests[made] = digest_of(opened, c.image_size, cache)
        if record.data.digest != digests[made]:
            raise DataError(
                f"the images of {source.name} have changed since the runs in {folder} were "
                f"finished (such as {directory}); name another folder for a model of what is "
                "there now (--out)"
            )


def _finish(
    plan: Plan, source: Source, folder: Path, criterion: _ATTAINABLE, cache: Path | None
) -> None:
    """Choose, train on all domains, and write and print what came of it."""
    tried = candidates_of(take_inventory([folder]))
    candidates = [each.candidate for each in tried]
    domains = list(source.domains)
    chosen = choose(candidates, criterion, domains)
    if chosen is None:
        raise DataError(
            f"no candidate in {folder} has all of its runs (the first lacks "
            f"{candidates[0].lacks}); repeat the same command"
        )
    run = _final_run(plan, source, tried[chosen])
    directory = folder / run.directory
    source = reopened(source, run.configuration.data, run.configuration.reading)
    record = finished_record(run, folder)  # wherever the data lay then
    if record is None:
        print(f"training {run.configuration.method} on all domains", file=sys.stderr)
    else:
        tidy(run, folder)
    with displayed("on all domains") as report:
        if record is None:
            record = train(run.configuration, directory, report, cache, opened=source)
        conflict = _conflict(source, directory, record, cache)
    own, every = tried[chosen].records, [each for one in tried for each in one.records]
    deployment = Deployment(
        data=record.data.name,
        data_digest=record.data.digest,
        domains=record.data.domains,
        classes=record.data.classes,
        criterion=criterion,
        seeds=sorted({each.configuration.seed for each in own}),
        candidates=candidates,
        chosen=chosen,
        without_it=without_looking(candidates, criterion, domains),
        classes_unseen=classes_unseen(own),
        tested=tested_images(own),
        tested_groups=unseen_groups(own),
        unseen_low=unseen_low(own),
        known=known_domains(every),
        doubts=record.data.doubts,
        copied=copied_tests(every),
        directory=run.directory,
    )
    model = folder / MODEL_FOLDER
    model.mkdir(exist_ok=True)
    with atomic_file(model / MODEL_FILE) as temporary:
        shutil.copyfile(directory / MODEL_FILE, temporary)
    write_text(model / "README.md", model_card(deployment, record, conflict))
    deployment.save(model)
    page = make_report([folder]).page
    said = [*few_tests(deployment, record), *doubtful(deployment)]
    told = [expectation(deployment), *map(Text, said)]
    Console().print(OnTerminal([tried_table(deployment), *told]))
    print(f"model and card: {model}")
    print(f"report: {page}")


def _final_run(plan: Plan, source: Source, chosen: Tried) -> SweepRun:
    """The chosen candidate's run on all domains, with the first seed."""
    options = chosen.configuration.model_dump(exclude=set(PLAN_PARTS))
    if "device" in plan.options:  # where it is worked on may be another than the candidates'
        options["device"] = plan.options["device"]
    final = Plan(
        data=plan.data,
        targets=[NO_TARGET],
        methods=[chosen.configuration.method],
        seeds=plan.seeds[:1],
        options=options,
    )
    (run,) = planned(final, {plan.data[0]: source})
    return run


def _conflict(
    source: Source, directory: Path, record: Record, cache: Path | None
) -> Diagnosis | None:
    """Where the domains conflict in the model; measured once. None of a single domain."""
    if len(record.data.domains) < 2:
        return None
    if (directory / Diagnosis.file_name).exists():
        return Diagnosis.load(directory)
    images = prepare_images(source, record.configuration, cache, lambda _: None)
    device = record.configuration.device
    conflict = diagnose_run(directory, DiagnosisOptions.model_validate({}), images, device)
    conflict.save(directory)
    return conflict


def export(
    model: Annotated[str, opt.MODEL],
    *,
    form: Annotated[
        Format | None, typer.Option("--format", help="Of the file. With --push: none.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Default: model.onnx, .pt2 or .pt. Its description is beside it: model.onnx.json."
        ),
    ] = None,
    normalization: Annotated[
        Normalization,
        typer.Option(
            help="inside: the input is uint8 (batch, size, size, 3), as images are decoded; "
            "beside: it is float32 (batch, 3, size, size), normalised."
        ),
    ] = "inside",
    push: Annotated[
        str | None, typer.Option(metavar="hf://owner/name", help="Upload it to the Hub.")
    ] = None,
    backbone: opt.OwnBackboneOption = None,
) -> None:
    """Write the model for another runtime, run it there, and compare it with the model itself.

    --push uploads the model file, with the record, the split and the README.md beside it (or a
    short one, where there is none), and what was exported.
    """
    if form is None and push is None:
        raise ArgumentError(f"give --format ({', '.join(SUFFIXES)}) or --push hf://owner/name")
    if push is not None:
        named_on_hub(push)  # raises where it is no name
    path = out or Path("model" if form is None else f"model{SUFFIXES[form]}")
    if form is not None:
        if path.suffix != SUFFIXES[form]:
            raise ArgumentError(f"cannot write {path}: its name must end in {SUFFIXES[form]}")
        check_folder(path.parent)
    trained = load_model(model, backbone=backbone, device="cpu")
    written: tuple[Path, ...] = ()
    if form is not None:
        difference = export_model(trained, path, form, normalization)
        print(f"{path}: logits differ from the model's by {difference:.1g} at most")
        written = (path, description_file(path))
    if push is not None:
        beside = trained.file.parent / Record.file_name
        card = short_card(trained.about, Record.load(beside) if beside.is_file() else None)
        print(f"uploaded: {upload(trained.file, push, written, card)}")
