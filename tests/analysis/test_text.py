"""Numbers and names in words."""

import re
from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from train.analysis import table
from train.analysis.text import folded, number, plus_minus, spread


def test_values_that_differ_by_rounding_have_one_text():
    for value in (-0.095, -0.09499999999999, -0.09500000000001, 94.0 - 94.095):
        assert number(value, "+.2f") == "-0.10"
    assert (number(2, ".1f"), number(float("nan"), ".1f"), number(float("-inf"), "+.1f")) == ("2.0", "nan", "-inf")
    assert spread(-0.09499999999999, (-1.005, 0.815), "+.2f") == "-0.10 [-1.00, +0.82]"  # to the even digit
    assert plus_minus([0.19, 0.2], "+.2f") == "+0.20 ± 0.00"


@given(st.floats(-1e6, 1e6))
def test_numbers_are_those_of_python_but_for_ties(value):
    assert abs(float(number(value, ".2f")) - float(f"{value:.2f}")) <= 0.0100001
    if abs(value * 1000 % 10 - 5) > 1e-3:
        assert float(number(value, ".2f")) == float(f"{value:.2f}")


@given(st.text("ab1:,+/", max_size=40), st.integers(1, 20))
def test_names_are_folded_behind_punctuation(name, width):
    lines = folded(name, width).split("\n")
    assert "".join(lines) == name
    assert max(map(len, lines)) <= max(width, 2)
    words = re.findall(r"[^:,+/]+[:,+/]?", name)
    if max(map(len, words), default=0) <= width:
        assert all(line[-1] in ":,+/" for line in lines[:-1])


def test_no_name_of_a_table_is_cut_in_a_word():
    name = "same_amounts:swdpp:keep=0.5,tau=0.25,q_max=0.5+anneal=0.1"
    cells = table.Table("agent", *["x" * 12] * 4)
    for column in cells.columns[1:]:
        column.no_wrap = True
    cells.add_row(table.Name(name))
    for width in (80, 100):
        console = Console(width=width, record=True, file=StringIO())
        console.print(cells)
        parts = [line.split("│")[1].strip() for line in console.export_text().splitlines() if line.startswith("│")]
        assert "".join(parts) == name
        assert all(part[-1] in ":,+" for part in parts[:-1])
