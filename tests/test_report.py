"""Pages, tables and figures."""

import io

import numpy as np
import pytest
from PIL import Image

from vamf import figures
from vamf.report import tables
from vamf.report.page import Page


def test_text_is_escaped_and_code_is_marked():
    page = Page("a < b", "lead & more")
    page.text("see `x < y`")
    html = page.render("end")
    assert "<h1>a &lt; b</h1>" in html
    assert "<code>x &lt; y</code>" in html


def test_table_marks_the_best_cell():
    page = Page("t", "l")
    page.table(["a", "b"], [["1", "2"], ["3", "4"]], {(1, 0)})
    assert "<td class=best>3</td>" in page.render("")


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (12.345, "12.35"), (123.45, "123.5"), (float("nan"), "–"), (None, "–")]
)
def test_numbers(value, text):
    assert tables.number(value) == text


def test_spread_is_mean_and_sample_deviation():
    assert tables.mean_std([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    assert tables.mean_std([1.0]) == "1.000"
    assert tables.mean_std([]) == "–"


def test_images_lay_images_out_row_by_row():
    images = np.zeros((3, 2, 2))
    images[1] = 1.0
    sheet = np.asarray(Image.open(io.BytesIO(figures.image_grid(images, columns=2, scale=1, low=0, high=1))))
    assert sheet.shape == (7, 7)
    assert (sheet[1:3, 1:3] == 0).all()
    assert (sheet[1:3, 4:6] == 255).all()
    assert (sheet[4:6, 1:3] == 0).all()


def test_panels_with_diverged_values_still_draw():
    curve = figures.Curve([0, 1, 2], [1.0, float("nan"), 3.0], [0.1, 0.1, 0.1], "curve")
    for log in (False, True):
        image = figures.line_plots([figures.Panel("p", [curve], [figures.HLine(2.0, "level")])], "x", "y", log=log)
        assert b"<svg" in image


def test_panels_have_names_in_the_place_of_numbers():
    curve = figures.Curve([0, 1], [1.0, 2.0], [0.1, 0.1], "curve")
    text = figures.line_plots([figures.Panel("p", [curve])], "method", "y", names=["meanflow", "vamf"]).decode()
    assert "<!-- meanflow -->" in text  # letters are drawn; what they say stands beside them
    assert "<!-- vamf -->" in text
    assert "<!-- 0.2 -->" not in text


@pytest.mark.parametrize("values", [[0.0, 0.0], [-2.0, -1.0], [float("nan")] * 2])
@pytest.mark.filterwarnings("error")
def test_panels_of_values_without_a_scale_draw_without_a_warning(values):
    curve = figures.Curve([0, 1], values, [0.0, 0.0], "curve")
    assert b"<svg" in figures.line_plots([figures.Panel("p", [curve])], "x", "y")
