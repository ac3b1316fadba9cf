"""A run that trains the last layer alone: on features computed once, against the whole network.

    python benchmarks/frozen_features.py pacs:FOLDER --target sketch --weights FILE
        [--backbone tf_efficientnet_lite0] [--image-size 224] [--batch-size 128] [--steps 20]

Both are whole runs by `gradsurgery.train`, one after the other, with few steps; printed is what a
run of 1,000 steps with a validation every 20 comes to. The features are computed in any case and
count as a whole, though runs share them.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import gradsurgery as gs
from gradsurgery.data import ImageSet, open_source, prepare
from gradsurgery.documents.record import Record
from gradsurgery.training import TrainingProgress, frozen_features

STEPS, VALIDATIONS = 1000, 50


def timed(
    configuration: gs.RunConfiguration, images: ImageSet, *, whole: bool
) -> tuple[Record, float]:
    """The run's record, and the seconds that the features took."""
    moments: list[float] = []

    def report(progress: TrainingProgress) -> None:
        if progress.stage == "features":
            moments.append(time.perf_counter())

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(
            frozen_features,
            "may_keep_features",
            (lambda _: False) if whole else frozen_features.may_keep_features,
        ),
    ):
        record = gs.train(configuration, Path(folder) / "run", report, opened=images)
    parts = len(moments) - 1
    return record, (moments[-1] - moments[0]) * (parts + 1) / parts if parts > 0 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--target", required=True)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--method", default="agr-sum")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="of the run with the whole network")
    options = parser.parse_args()
    images = replace(prepare(open_source(options.data), size=options.image_size), folder=None)
    common = gs.RunConfiguration(
        data=options.data,
        target=options.target,
        method=options.method,
        backbone=options.backbone,
        weights=options.weights,
        image_size=options.image_size,
        batch_size=options.batch_size,
        freeze="all-but-head",
    )
    for whole in (False, True):
        steps = options.steps if whole else STEPS
        run = common.model_copy(update={"iterations": steps, "validate_every": steps})
        record, features = timed(run, images, whole=whole)
        if record.cost.frozen_features == whole:
            parser.error(f"{options.backbone} has no features that can be kept")
        cost = record.cost
        rest = cost.seconds - steps * cost.seconds_per_step  # a validation, and the tests
        tested = sum(part.test for part in record.split.sizes.values())
        sources = record.configuration.sources(tuple(record.data.domains))
        validated = sum(record.split.sizes[domain].validation for domain in sources)
        an_image = rest / (validated + 2 * tested)
        total = features + STEPS * cost.seconds_per_step + VALIDATIONS * validated * an_image
        total += 2 * tested * an_image
        print(
            f"{'whole network' if whole else 'features     '}  "
            f"{1000 * cost.seconds_per_step:8.1f} ms a step  features {features:6.1f} s  "
            f"a run of {STEPS} steps {total:8.1f} s"
        )


if __name__ == "__main__":
    main()
