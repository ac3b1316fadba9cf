import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradsurgery.backbones import Backbone, build_backbone
from gradsurgery.data import ImageSet, draw_split
from gradsurgery.documents.tasks_vs_domains import TasksOptions
from gradsurgery.errors import ArgumentError
from gradsurgery.studies.groupings import Group, Groups, find_tasks, parameters_in_order
from gradsurgery.studies.removals import group_cosines, group_gradients
from tests.studies.image_sets import image_set

DOMAINS, CLASSES = 3, 3
IMAGES = image_set(
    [d for d in range(DOMAINS) for _ in range(30)], [c for _ in range(30) for c in range(CLASSES)]
)
NAMES = ["class", "domain", "low=c0|c1"]
SOURCES = ["d0", "d1", "d2"]


def groups(grouping: str, **options: object) -> Groups:
    return Groups(
        grouping,  # type: ignore[arg-type]
        IMAGES,
        draw_split(IMAGES),
        TasksOptions(groups=3, batch_size=4, **options),
        sources=SOURCES,
        tasks=find_tasks(IMAGES, NAMES, SOURCES),
        seed=5,
    )


def linear(outputs: int) -> Backbone:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, outputs))
    return Backbone("linear", model, (0.5,) * 3, (0.5,) * 3, False, None)


def test_tasks_label_the_images_they_are_of() -> None:
    found = find_tasks(IMAGES, NAMES, ["d2", "d0"])
    assert [(task.name, task.size) for task in found] == [("class", 3), ("domain", 2), ("low", 2)]
    assert found[0].labels is IMAGES.label
    assert found[1].labels[[0, 30, 60]].tolist() == [1, -1, 0]  # d1 is no source
    assert found[2].labels[:3].tolist() == [1, 1, 0]


def test_digits_have_their_tasks(digits: ImageSet) -> None:
    found = find_tasks(digits, ["parity", "size", "loop"], [])
    digit = digits.label
    assert (found[0].labels == digit % 2).all()
    assert (found[1].labels == (digit >= 5)).all()
    assert (found[2].labels == np.isin(digit, [0, 6, 8, 9])).all()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("colour", "unknown task 'colour'; there are class, domain, parity"),
        ("parity", "the task 'parity' asks for the class '1', and made has c0, c1, c2"),
        ("all=c0|c1|c2", "the task 'all' has one label alone"),
        ("class=c0", "two tasks are called 'class'"),
        ("none=", "the task 'none' asks for the class ''"),
    ],
)
def test_a_task_that_there_is_not(name: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words.replace("|", r"\|")):
        find_tasks(IMAGES, ["class", name], SOURCES)


def test_the_groups_of_a_step_have_the_same_images() -> None:
    found = {name: groups(name).at(3) for name in ("tasks", "tasks-apart", "domains", "dealt")}
    everything = np.sort(np.concatenate([group.positions for group in found["domains"]]))
    assert len(everything) == 12
    for name, listed in found.items():
        assert [group.number for group in listed] == [0, 1, 2]
        assert [g.task for g in listed] == ([0, 1, 2] if "tasks" in name else [0, 0, 0])
        if name == "tasks":
            assert all((np.sort(group.positions) == everything).all() for group in listed)
        else:
            positions = np.concatenate([group.positions for group in listed])
            assert (np.sort(positions) == everything).all()
            assert [len(group.positions) for group in listed] == [4, 4, 4]
    assert [set(IMAGES.domain[g.positions]) for g in found["domains"]] == [{0}, {1}, {2}]
    assert len(set(IMAGES.domain[found["dealt"][0].positions])) > 1


def test_all_training_images_of_a_group() -> None:
    assert [len(group.positions) for group in groups("domains").whole(100)] == [21, 21, 21]
    assert [len(group.positions) for group in groups("dealt").whole(100)] == [63, 63, 63]
    some = groups("tasks").whole(6)
    assert [len(group.positions) for group in some] == [18, 18, 18]
    assert np.bincount(IMAGES.label[some[0].positions]).tolist() == [6, 6, 6]  # of all classes


def test_a_group_that_is_told_wrong_labels() -> None:
    found = groups("domains", contradiction=1.0)
    every = np.arange(90)
    told = [found.told(Group(d, 0, every)) for d in range(3)]
    assert (told[0] == IMAGES.label).all()  # never the first
    assert (told[1] == (IMAGES.label + 1) % 3).all()
    assert (told[2] == (IMAGES.label + 2) % 3).all()  # another one than group 1
    of_two = groups("tasks", contradiction=1.0).told(Group(2, 2, every))
    assert (of_two == 1 - (IMAGES.label < 2)).all()
    some = groups("domains", contradiction=0.3).told(Group(1, 0, every)) != IMAGES.label
    assert 0.1 < some.mean() < 0.5


def test_losses_are_cross_entropies_of_the_tasks_own_outputs() -> None:
    backbone, found = linear(8), groups("tasks", scale=4.0)  # 3 + 3 + 2 outputs
    shown = found.at(0)
    positions = shown[0].positions
    x = (torch.from_numpy(IMAGES.images[positions]).float() / 255 - 0.5) / 0.5
    output = backbone.model(x.permute(0, 3, 1, 2))
    parts, weights = (output[:, :3], output[:, 3:6], output[:, 6:]), (1, 4**-0.5, 1 / 4)
    expected = []
    for part, task, weight in zip(parts, found.tasks, weights, strict=True):
        likely = part.softmax(1)[torch.arange(12), torch.from_numpy(task.labels[positions])]
        expected.append(-float(likely.detach().log().mean()) * weight)
    losses = [float(loss.detach()) for loss in found.losses(backbone, shown)]
    assert losses == pytest.approx(expected)


def test_the_last_layer_comes_last() -> None:
    model = linear(8).model
    named, own = parameters_in_order(model, 8)
    assert [name for name, _ in named] == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert own == 8 * 5 + 8
    with pytest.raises(ArgumentError, match="no linear last layer"):
        parameters_in_order(model, 9)
    ours = build_backbone("small-cnn", classes=9, weights="none", seed=0).model
    named, own = parameters_in_order(ours, 9)
    assert [name for name, _ in named][-2:] == ["classifier.weight", "classifier.bias"]
    assert own == 64 * 9 + 9


def gradients_of_images(backbone: Backbone, found: Groups) -> Tensor:
    """The gradient of every group's loss on every image alone, [groups, images, params]."""
    parameters = list(backbone.model.parameters())
    rows = []
    for group in found.at(0):
        alone = [Group(group.number, group.task, np.array([i])) for i in range(len(IMAGES.label))]
        losses = [next(found.losses(backbone, [each])) for each in alone]
        rows.append(group_gradients(losses, parameters))
    return torch.stack(rows).double()


@pytest.mark.parametrize("grouping", ["domains", "dealt"])
def test_measured_batches_estimate_the_cosine_of_the_gradients_of_all_images(
    grouping: str,
) -> None:
    backbone, found = linear(8), groups(grouping)
    of_images = gradients_of_images(backbone, found)
    of_all = torch.stack([of_images[g.number, g.positions].mean(0) for g in found.whole(100)])
    products = of_all @ of_all.T
    own, other = products.trace() / 3, (products.sum() - products.trace()) / 6
    if grouping == "dealt":  # groups of one distribution
        assert float(other / own) == pytest.approx(1)

    grams, repeats = [], 4
    for step in range(250):
        drawn = [found.at(step * repeats + k, measured=True) for k in range(repeats)]
        means = [[of_images[g.number, g.positions].mean(0) for g in each] for each in drawn]
        flat = torch.stack([row for each in means for row in each])
        grams.append((flat @ flat.T).view(repeats, 3, repeats, 3))
    estimate = group_cosines(torch.stack(grams).mean(0)).expected
    assert estimate == pytest.approx(float(other / own), abs=0.1)


def test_batches_of_a_measurement_may_share_images_and_a_batch_repeats_none() -> None:
    found = groups("domains")
    first, second = (found.at(k, measured=True) for k in (0, 1))
    assert [g.positions.tolist() for g in first] != [g.positions.tolist() for g in second]
    again = [g.positions.tolist() for g in found.at(0, measured=True)]
    assert [g.positions.tolist() for g in first] == again  # a pure function of the step
    seen = [found.at(k, measured=True)[0].positions for k in range(200)]
    assert all(len(set(batch)) == 4 for batch in seen)
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(seen[::2], seen[1::2], strict=True)])
    assert shared == pytest.approx(4 * 4 / 21, abs=0.25)  # as independent draws of 4 of 21 do
