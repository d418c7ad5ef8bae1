"""Every lesson keeps to the rules, and every rule sees a notebook that breaks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbformat.v4.rwbase import rejoin_lines
from rules import MAX_BYTES, RULES, SECTIONS, WIDGET_VIEW

METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3"},
    "language_info": {"name": "python"},
}
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    """The notebook as it is in the file; nbformat.read would repair ids that are there twice."""
    return rejoin_lines(nbformat.from_dict(json.loads(path.read_text(encoding="utf-8"))))


def problems(path: Path) -> dict[str, list[str]]:
    notebook = read(path)
    return {rule.__name__: found for rule in RULES if (found := list(rule(notebook, path)))}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_lessons(rule: Callable[[NotebookNode, Path], Any], path: Path) -> None:
    assert list(rule(read(path), path)) == []


CLOSE = {"05_sampling": {"surprise-table": "close-5%"}}  # texts that a model drew
"""Each cell with a tolerance of its own, by lesson and id."""


def test_the_cells_with_a_tolerance_of_their_own_are_listed() -> None:
    found = {
        path.stem: {
            cell.id: tag
            for cell in read(path).cells
            for tag in cell.metadata.get("tags", [])
            if tag.startswith("close")
        }
        for path in NOTEBOOKS
    }
    assert {lesson: cells for lesson, cells in found.items() if cells} == CLOSE


def stream(text: str) -> NotebookNode:
    return new_output("stream", name="stdout", text=text)


def png(**metadata: Any) -> NotebookNode:
    return new_output("display_data", data={"image/png": "", "text/plain": "<figure>"}, metadata=metadata)


def good_notebook() -> NotebookNode:
    alt = "A line that falls from 5 to 2 in the first hundred steps, and stays there."
    cells = [
        new_markdown_cell("# Lesson 02\n\n[previous](01_a.ipynb) · [next](03_c.ipynb) · [all](README.md)"),
        new_code_cell("print(profile)", outputs=[stream("profile: lesson\n")]),
        *[new_markdown_cell(f"## {section}\n\ntext, see [above](#Intuition)") for section in SECTIONS],
        new_code_cell(
            "config = TrainConfig(precision='fp32', threads=1)  # as in a sweep\n"
            "axes.plot(x, color=COLOURS[1], cmap='cividis')\naxes.axhline(2, color='0.6')\nshow(figure)",
            outputs=[png(**{"image/png": {"alt": alt}}), stream(f"Figure: {alt}\n")],
        ),
        new_markdown_cell(
            "With $x_i$ of $\\{0, 1\\}$, `$HOME` and \\$5:\n\n$$\\begin{cases} x \\\\ y \\end{cases}$$\n\n"
            "| symbol | meaning |\n| --- | --- |\n| $\\lvert x \\rvert$ | its size |\n\n"
            "<details><summary>Hint</summary>\n\n**Two** of [these](01_a.ipynb), or $x$.\n\n</details>\n\n"
            "<details><summary>Hint</summary>Try <code>x</code>.</details>\n\n- ☐ done"
        ),
        new_markdown_cell("![a picture](picture.png)\n\n```\n# no heading\n[no](link)\n```"),
    ]
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
    return new_notebook(cells=cells, metadata=METADATA)


@pytest.fixture
def lesson(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("README.md", "01_a.ipynb", "03_c.ipynb", "picture.png"):
        (folder / name).touch()
    return folder / "02_b.ipynb"


def write(notebook: NotebookNode, path: Path) -> None:
    path.write_text(json.dumps(notebook), encoding="utf-8")


def test_a_good_notebook_breaks_no_rule(lesson: Path) -> None:
    write(good_notebook(), lesson)
    assert problems(lesson) == {}


def old_format(nb: NotebookNode) -> None:
    nb.nbformat_minor = 4


def same_ids(nb: NotebookNode) -> None:
    nb.cells[1].id = nb.cells[0].id


def other_kernel(nb: NotebookNode) -> None:
    nb.metadata.kernelspec.name = "conda-env"


def executed_out_of_order(nb: NotebookNode) -> None:
    nb.cells[1].execution_count = 7


def stripped(nb: NotebookNode) -> None:
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = []


def null_count_in_output(nb: NotebookNode) -> None:
    nb.cells[1].outputs.append(new_output("execute_result", data={"text/plain": "1"}, execution_count=None))


def unexpected_error(nb: NotebookNode) -> None:
    nb.cells[1].outputs.append(new_output("error", ename="E", evalue="", traceback=[]))


def expected_error_missing(nb: NotebookNode) -> None:
    nb.cells[1].metadata.tags = ["raises-exception"]


def state(nb: NotebookNode) -> None:
    nb.metadata.widgets = {}


def view(nb: NotebookNode) -> None:
    nb.cells[1].outputs.append(new_output("display_data", data={WIDGET_VIEW: {"model_id": "1"}}))


def shell_line(nb: NotebookNode) -> None:
    nb.cells[1].source = "!pip list"


def two_titles(nb: NotebookNode) -> None:
    nb.cells[3].source = "# Another title\n\n" + nb.cells[3].source


def skipped_level(nb: NotebookNode) -> None:
    nb.cells[2].source += "\n\n#### Deep"


def missing_section(nb: NotebookNode) -> None:
    del nb.cells[5]


def swapped_sections(nb: NotebookNode) -> None:
    nb.cells[2], nb.cells[3] = nb.cells[3], nb.cells[2]


def image_without_alt(nb: NotebookNode) -> None:
    nb.cells[-1].source = "![ ](picture.png)"


def html_image_without_alt(nb: NotebookNode) -> None:
    nb.cells[-1].source = '<img src="picture.png" alt="">'


def figure_without_alt(nb: NotebookNode) -> None:
    nb.cells[-3].outputs = [png()]


def dead_link(nb: NotebookNode) -> None:
    nb.cells[-1].source = "[there](nowhere.md#part)"


def dead_anchor(nb: NotebookNode) -> None:
    nb.cells[-1].source = "[there](#Nowhere)"


def no_next(nb: NotebookNode) -> None:
    nb.cells[0].source = nb.cells[0].source.replace("[next](03_c.ipynb)", "")


def no_contents(nb: NotebookNode) -> None:
    nb.cells[0].source = nb.cells[0].source.replace("[all](README.md)", "")


def too_large(nb: NotebookNode) -> None:
    nb.cells[1].outputs.append(stream("x" * MAX_BYTES))


def long_cell(nb: NotebookNode) -> None:
    nb.cells[1].source = "x = 1\n" * 26


def many_uncompared(nb: NotebookNode) -> None:
    for number in range(4):
        cell = new_code_cell(f"{number}", metadata={"tags": ["nbval-ignore-output"]})
        nb.cells.append(cell)
    nb.cells[-1].metadata, nb.cells[-1].source = NotebookNode(), "# NBVAL_SKIP\n1"


def many_close(nb: NotebookNode) -> None:
    for number in range(6):
        nb.cells.append(new_code_cell(f"{number}", metadata={"tags": ["close-3%"]}))


def far(nb: NotebookNode) -> None:
    nb.cells[1].metadata.tags = ["close-20%"]


def printed(text: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        nb.cells[1].outputs.append(stream(text))

    change.__name__ = f"printed {text!r}"
    return change


def no_profile(nb: NotebookNode) -> None:
    nb.cells[1].outputs = [stream("hello")]


def figure_described_as(alt: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        nb.cells[-3].outputs = [png(**{"image/png": {"alt": alt}}), stream(f"Figure: {alt}\n")]

    return change


def unprinted_alternative(nb: NotebookNode) -> None:
    nb.cells[-3].outputs.pop()


def coded(source: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        nb.cells[-3].source = source

    return change


def other_language(nb: NotebookNode) -> None:
    nb.metadata.language_info.version = "3.12.1"


def editor_settings(nb: NotebookNode) -> None:
    nb.metadata.vscode = {}


def attachment(nb: NotebookNode) -> None:
    nb.cells[-1].attachments = {"a.png": {"image/png": ""}}


def text(source: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        nb.cells[-1].source = source

    return change


@pytest.mark.parametrize(
    ("change", "rule", "message"),
    [
        (old_format, "format_and_ids", "below 4.5"),
        (same_ids, "format_and_ids", "is there 2 times"),
        (other_kernel, "kernel", "conda-env"),
        (executed_out_of_order, "execution_counts", "make notebooks"),
        (stripped, "execution_counts", "compare nothing"),
        (null_count_in_output, "execution_counts", "another execution count"),
        (unexpected_error, "errors", "ended in an error"),
        (expected_error_missing, "errors", "raises nothing"),
        (state, "widget_state", "widget state"),
        (view, "widget_state", "widget view"),
        (shell_line, "magics", "shell line"),
        (two_titles, "headings", "2 first-level headings"),
        (skipped_level, "headings", "jumps from level 2 to 4"),
        (missing_section, "sections", "is there 0 times"),
        (swapped_sections, "sections", "out of order"),
        (image_without_alt, "alternatives", "no alternative text"),
        (html_image_without_alt, "alternatives", "no alternative text"),
        (figure_without_alt, "alternatives", "show(figure, alt=...)"),
        (dead_link, "links", "nowhere.md"),
        (dead_anchor, "links", "#Nowhere"),
        (no_next, "neighbours", "next lesson, 03_c.ipynb"),
        (no_contents, "neighbours", "contents"),
        (too_large, "size", "bytes are more than"),
        (long_cell, "cell_lengths", "26 lines"),
        (many_uncompared, "uncompared", "4 cells are not compared"),
        (many_close, "tolerances", "6 cells have a tolerance of their own"),
        (far, "tolerances", "close-1% to close-10%"),
        (coded("torch.set_num_threads(1)"), "processors", "does not follow OMP_NUM_THREADS"),
        (coded("config = TrainConfig(threads=1)"), "processors", "use torch.get_num_threads()"),
        (coded("TrainConfig.preset('fast', threads=n)"), "processors", "leaves precision to the machine"),
        (coded("TrainConfig(precision='fp32')"), "processors", "leaves threads to the machine"),
        (printed("saved to /home/me/run"), "leaks", "an absolute path"),
        (printed("C:\\Users\\me"), "leaks", "an absolute path"),
        (printed("tensor(1., grad_fn=<AddBackward0>)"), "leaks", "a grad_fn"),
        (printed("<object at 0x7f2b9f3e4c90>"), "leaks", "a memory address"),
        (no_profile, "profile", "does not print the profile"),
        (figure_described_as("A line."), "described_figures", "does not say what"),
        (figure_described_as("Figure of " + 9 * "a falling loss "), "described_figures", "does not say what"),
        (unprinted_alternative, "described_figures", "use show()"),
        (coded("axes.plot(x, color='red')"), "colours", "'red' is not from COLOURS"),
        (coded("axes.bar(x, edgecolor='#ff0000')"), "colours", "'#ff0000' is not from COLOURS"),
        (coded("for each in ('C0', '0.5'):\n    axes.plot(each)"), "colours", "'C0' is not from COLOURS"),
        (coded("axes.plot(x, 'r--')"), "colours", "'r--' is not from COLOURS"),
        (coded("axes.imshow(x, cmap='jet')"), "colours", "'jet' is not one of"),
        (other_language, "metadata", "3.12.1"),
        (editor_settings, "metadata", "vscode"),
        (attachment, "metadata", "attachment"),
        (text(r"so \(x\)"), "mathematics", "JupyterLab alone"),
        (text("$$x \\label{a}$$"), "mathematics", "no references"),
        (text("so $$x$$ holds"), "mathematics", "shares a line"),
        (text("so\n\\begin{align}x\\end{align}"), "mathematics", "outside of"),
        (text("from $ x$"), "mathematics", "with a blank"),
        (text("from $x $"), "mathematics", "with a blank"),
        (text("$x$5"), "mathematics", "followed by a digit"),
        (text("| a | b |\n| --- | --- |\n| $|x|$ | y |"), "mathematics", "ends its cell"),
        (text("costs 5$ a day"), "mathematics", "without its partner"),
        (text("<div style='color: red'>x</div>"), "markup", "<div> is taken away"),
        (text("<details><summary>Hint</summary>\n\nx"), "markup", "closed 0 times"),
        (text("<details>\n\nx\n\n</details>"), "markup", "click on"),
        (text("<details><summary>Hint</summary>\n**x**\n</details>"), "markup", "no blank line"),
        (text("<details><summary>Hint</summary>\n\nx\n</details>\nso $x$"), "markup", "no blank line"),
        (text("<details><summary>Hint</summary>`x`</details>"), "markup", "no blank line"),
        (text("- [ ] done"), "markup", "a task list"),
        (text("[there](/files/01.ipynb)"), "local_links", "on one machine"),
        (text("[there](http://localhost:8888/lab)"), "local_links", "on one machine"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_bad_notebook_is_seen(
    change: Callable[[NotebookNode], None], rule: str, message: str, lesson: Path
) -> None:
    notebook = good_notebook()
    change(notebook)
    write(notebook, lesson)
    found = problems(lesson)
    assert rule in found
    assert message in " ".join(found[rule])


def test_every_rule_is_tried() -> None:
    marks = test_a_bad_notebook_is_seen.pytestmark  # type: ignore[attr-defined]
    tried = {row[1] for mark in marks for row in mark.args[1]}
    assert tried == {rule.__name__ for rule in RULES}
