"""What is said of a data set."""

from gradsurgery.documents.record import Copies, Record, SkippedFile, SplitSizes
from gradsurgery.report.run_text import (
    copies_sentences,
    gap_sentences,
    imbalance_sentences,
    recorded_sentences,
)
from gradsurgery.report.summary import copied_targets

CLASSES = ["cat", "dog", "cow"]


def test_gaps():
    assert gap_sentences({"a": [1, 2, 3]}, CLASSES) == []
    assert gap_sentences({"a": [1, 0, 0], "b": [0, 0, 0]}, CLASSES) == [
        "Domain a has no image of dog, cow.",
        "Domain b has no images.",
    ]
    many = [f"c{i}" for i in range(13)]
    assert gap_sentences({"a": [1, *[0] * 12]}, many)[0].endswith("c10 and 2 more classes.")


def test_imbalance_from_three_times_on():
    assert imbalance_sentences({"a": [29, 10, 15], "b": [10, 10, 10]}, CLASSES) == []
    assert imbalance_sentences({"a": [30, 10, 20], "b": [9, 5, 6]}, CLASSES) == [
        "The domains are uneven: a has 60 images, b 20, 3.0 times fewer."
    ]
    assert imbalance_sentences({"a": [0, 0, 0]}, CLASSES) == []


def test_copies():
    assert copies_sentences(Copies()) == []
    found = Copies(
        images=5,
        across_classes=1,
        across_domains={"a and b": 2},
        across_parts=2,
        of_target=1,
        examples=[["a/cat/1", "b/dog/1"]],
    )
    assert copies_sentences(found, target="b") == [
        "5 images are one of several identical files.",
        "Test images of the target b identical to images trained on: 1; on them the accuracy says "
        "nothing of a domain that was never seen.",
        "The domains a and b share 2 pictures.",
        "Pictures that are trained on, and validated or tested on too: 2.",
        "Pictures with more than one class, of which one at least is wrong: 1.",
        "For example a/cat/1 and b/dog/1.",
    ]
    assert copies_sentences(found, target="b", alike_at=32) == [
        "5 images look like another image, at 32x32 pixels.",
        "Test images of the target b like images that were trained on: 1; on them the accuracy "
        "says nothing of a domain that was never seen.",
        "Groups of look-alikes in the domains a and b: 2.",
        "Groups of look-alikes, some trained on and others validated or tested on: 2.",
        "Groups of look-alikes with more than one class: 1.",
        "For example a/cat/1 and b/dog/1.",
    ]


def test_a_copied_target_is_said_once(written):
    plain = Record.load(written("agr-sum").parent)
    assert copied_targets([plain]) == []
    assert recorded_sentences([plain]) == recorded_sentences([plain, plain])
    target = plain.configuration.target
    tested = 7
    plain.split.sizes[target] = SplitSizes(train=20, validation=3, test=tested)
    copied = plain.model_copy(deep=True)
    copied.data.identical = Copies(images=9, of_target=(tested + 1) // 2)
    (sentence,) = copied_targets([plain, copied, copied])
    assert sentence.startswith(f"ATTENTION: {(tested + 1) // 2} of the {tested} test images of")
    copied.data.identical.of_target = (tested + 1) // 2 - 1
    assert copied_targets([copied]) == []


def test_look_alikes_of_a_run_are_said_with_the_size_that_it_saw(written):
    record = Record.load(written("agr-sum", configuration__image_size=48).parent)
    record.data.alike = Copies(images=5)
    (said,) = [each for each in recorded_sentences([record]) if "look like" in each]
    assert said.endswith("5 images look like another image, at 48x48 pixels.")


def test_of_a_split_for_each_seed_the_first_is_said(written):
    records = []
    for seed in range(3):
        path = written("agr-sum", seed=seed, configuration__split_per_run=True)
        records.append(Record.load(path.parent))
        records[-1].data.alike = Copies(images=9, across_parts=seed + 4)
    (said,) = [each for each in recorded_sentences(records) if "trained on" in each]
    assert "the split of seed 0: " in said
    assert said.endswith("validated or tested on: 4.")


def test_one_is_not_several():
    (sentence,) = copies_sentences(Copies(images=1))
    assert sentence == "1 image is one of several identical files."


def test_classes_left_out_are_named_and_files_are_none(written):
    record = Record.load(written("agr-sum").parent)
    assert not any("Classes left out" in sentence for sentence in recorded_sentences([record]))
    record.data.left_out = [
        SkippedFile(identity="class cow", reason="4 images, none in photo"),
        SkippedFile(identity="class notes.txt", reason=".txt is not read"),
    ]
    (said,) = [each for each in recorded_sentences([record]) if "Classes left out" in each]
    assert said.endswith(
        "Classes left out, for not every domain has them: cow (4 images, none in photo)."
    )


def test_of_many_pairs_of_domains_those_with_most_in_common_are_named():
    pairs = {f"a and c{n}": n for n in range(1, 40)}
    sentences = copies_sentences(Copies(images=80, across_domains=pairs))
    assert sentences[1] == "The domains a and c39 share 39 pictures."
    assert sentences[10:] == [
        "The domains a and c30 share 30 pictures.",
        "And 29 more pairs of domains have such pictures in common.",
    ]
