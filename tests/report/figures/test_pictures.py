import numpy as np

from gradsurgery.report.figures.pictures import SIDE, Examples, draw_examples, exemplary, mosaic


def plain(value, size=14):
    return np.full((size, size, 3), value, dtype=np.uint8)


def test_every_image_lies_in_its_row_and_column():
    page = mosaic([[plain(10), plain(20)], [None, plain(40, size=300)]])
    step = SIDE + 6
    assert page.shape == (2 * step - 6, 2 * step - 6, 3)
    assert (page[:SIDE, :SIDE] == 10).all()
    assert (page[:SIDE, step:] == 20).all()
    assert (page[step:, :SIDE] == 255).all()
    assert (page[step:, step:] == 40).all()
    assert (page[SIDE:step] == 255).all()


def test_small_images_keep_their_pixels():
    image = np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    page = mosaic([[image]])
    assert {tuple(p) for p in page.reshape(-1, 3)} == {tuple(p) for p in image.reshape(-1, 3)}


def test_rows_are_domains_and_columns_classes():
    images = {("dog", "photo"): plain(0), ("cat", "photo"): plain(0), ("dog", "b"): plain(0)}
    figure = draw_examples(Examples("pacs", ["dog", "cat"], ["photo", "b"], images)).figure
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["dog", "cat"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["photo", "b"]
    (missing,) = axes.texts
    assert missing.get_text() == "none"
    assert missing.xy == (SIDE + 6 + SIDE / 2, SIDE + 6 + SIDE / 2)


def test_of_many_classes_ten_are_shown_and_the_figure_says_so():
    classes = [f"class {i}" for i in range(65)]
    images = {(label, "a"): plain(0) for label in classes}
    figure = draw_examples(Examples("pacs", classes, ["a"], images)).figure
    assert len(figure.axes[0].get_xticks()) == 10
    assert "10 of 65 classes" in figure.get_supxlabel().replace("\n", " ")


def test_of_hundreds_of_domains_the_first_are_shown_and_it_says_so():
    domains, classes = [f"camera {d}" for d in range(300)], [f"c{k}" for k in range(150)]
    drawing = draw_examples(Examples("wild", classes, domains, {}))
    (axes,) = drawing.figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == domains[:20]
    assert len(axes.get_xticklabels()) == 10
    assert "the first 10 of 150 classes and the first 20 of 300 domains" in drawing.caption
    assert exemplary(classes[:3], domains[:2]) == (classes[:3], domains[:2])
