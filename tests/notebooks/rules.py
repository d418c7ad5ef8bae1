"""What every lesson keeps to. Each rule returns what is wrong with a notebook, in words."""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import nbformat
from nbformat import NotebookNode
from tolerance import RELATIVE, own_tolerance

SECTIONS = (
    "Problem statement",
    "Mathematical formulation",
    "Intuition",
    "Implementation plan",
    "Build it",
    "Check it",
    "Experiments",
    "Visualizations",
    "Exercises",
    "Reflection questions",
    "Completion checklist",
    "Recap",
)
MAX_BYTES = 1_000_000
MAX_CELL_LINES = 25
MAX_UNCOMPARED = 3
MAX_CLOSE_CELLS = 5
UNCOMPARED_TAGS = {"nbval-ignore-output", "nbval-skip"}
UNCOMPARED_COMMENT = re.compile(r"#\s*(NBVAL_IGNORE_OUTPUT|NBVAL_SKIP|PYTEST_VALIDATE_IGNORE_OUTPUT)")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LEAKS = {
    "an absolute path": re.compile(
        r"(?<![\w.:/<-])/(home|root|tmp|Users|usr|work|opt|var|mnt|private|content)/|\b[A-Z]:\\\w"
    ),
    "a grad_fn": re.compile(r"grad_fn="),
    "a memory address": re.compile(r"0x[0-9a-fA-F]{6,}"),
}
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*$", re.M)
LINE_STYLE_WITH_COLOUR = re.compile(r"[rgbcmy](--?|:|-\.)[.o^sxvD*+]?|C\d|tab:\w+|#[0-9a-fA-F]{6}")
SHADES = re.compile(r"black|white|(light|dark)?gr[ea]y|none|0?\.\d+")
COLOUR_MAPS = {"cividis", "viridis"}
EMPTY_WORDS = re.compile(r"(an? |the )?(figure|image|picture|plot|chart|graph)\b", re.I)
MIN_ALTERNATIVE = 60
CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.S)
INLINE = re.compile(r"(?<![\\$])\$(?!\$)([^$\n]*(?:\n[^$\n]+)*?)(?<!\\)\$")
KEPT_TAGS = {"details", "summary", "code", "sub", "sup", "br", "b", "i", "em", "strong", "kbd"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(\s*<?([^)\s>]*)>?[^)]*\)")


def format_and_ids(notebook: NotebookNode, path: Path) -> Iterator[str]:
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        yield f"nbformat {notebook.nbformat}.{notebook.nbformat_minor} is below 4.5"
    ids = Counter(cell.get("id", "") for cell in notebook.cells)
    for each, count in ids.items():
        if not each:
            yield f"{count} cells have no id"
        elif count > 1:
            yield f"the id {each} is there {count} times"
    try:
        nbformat.validate(copy.deepcopy(notebook))
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error.message}"


def kernel(notebook: NotebookNode, path: Path) -> Iterator[str]:
    name = notebook.metadata.get("kernelspec", {}).get("name")
    if name != "python3":
        yield f"kernel {name!r} instead of 'python3'"


def execution_counts(notebook: NotebookNode, path: Path) -> Iterator[str]:
    cells = _code(notebook)
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(cells)}: run `make notebooks`"
    if not any(cell.outputs for cell in cells):
        yield "no outputs: nbval would compare nothing"
    for cell in cells:
        for output in cell.outputs:
            if output.get("execution_count", cell.execution_count) != cell.execution_count:
                yield f"an output of {_name(cell)} has another execution count than its cell"


def errors(notebook: NotebookNode, path: Path) -> Iterator[str]:
    for cell in _code(notebook):
        meant = "raises-exception" in _tags(cell)
        raised = any(output.output_type == "error" for output in cell.outputs)
        if raised and not meant:
            yield f"{_name(cell)} ended in an error and is not tagged raises-exception"
        if meant and not raised:
            yield f"{_name(cell)} is tagged raises-exception and raises nothing"


def widget_state(notebook: NotebookNode, path: Path) -> Iterator[str]:
    if "widgets" in notebook.metadata:
        yield "the notebook holds widget state"
    for cell in _code(notebook):
        if any(WIDGET_VIEW in output.get("data", {}) for output in cell.outputs):
            yield f"{_name(cell)} holds a widget view, which shows nothing without its state"


def magics(notebook: NotebookNode, path: Path) -> Iterator[str]:
    for cell in _code(notebook):
        if re.search(r"^\s*(%|!|\?)", cell.source, re.M):
            yield f"{_name(cell)} uses a magic or a shell line: nbval does not see when those fail"


def headings(notebook: NotebookNode, path: Path) -> Iterator[str]:
    found = _headings(notebook)
    if [level for level, _ in found].count(1) != 1:
        yield f"{[level for level, _ in found].count(1)} first-level headings instead of one"
    before = 0
    for level, title in found:
        if level > before + 1:
            yield f"heading {title!r} jumps from level {before} to {level}"
        before = level


def sections(notebook: NotebookNode, path: Path) -> Iterator[str]:
    found = [title for level, title in _headings(notebook) if level == 2]
    for section in SECTIONS:
        if found.count(section) != 1:
            yield f"section {section!r} is there {found.count(section)} times"
    order = [title for title in found if title in SECTIONS]
    if sorted(order, key=SECTIONS.index) != order:
        yield f"sections out of order: {order}"


def alternatives(notebook: NotebookNode, path: Path) -> Iterator[str]:
    for text in _markdown(notebook):
        for bang, alt, target in LINK.findall(text):
            if bang and not alt.strip():
                yield f"image {target} has no alternative text"
        for tag in re.findall(r"<img\b[^>]*>", text):
            if not re.search(r"\balt=(\"[^\"]+\"|'[^']+')", tag):
                yield f"{tag} has no alternative text"
    for cell in _code(notebook):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                alt = output.metadata.get("image/png", {}).get("alt", "")
                if not alt.strip():
                    yield f"{_name(cell)} shows a figure without alternative text: show(figure, alt=...)"


def links(notebook: NotebookNode, path: Path) -> Iterator[str]:
    anchors = {title.replace(" ", "-") for _, title in _headings(notebook)}
    for text in _markdown(notebook):
        for _, _, target in LINK.findall(text):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            file, _, anchor = unquote(target).partition("#")
            if file and not (path.parent / file).exists():
                yield f"link to {file}, which is not there"
            if not file and anchor not in anchors:
                yield f"link to #{anchor}, which is no heading here"


def neighbours(notebook: NotebookNode, path: Path) -> Iterator[str]:
    lessons = sorted(each.name for each in path.parent.glob("[0-9][0-9]_*.ipynb"))
    if path.name not in lessons:
        yield f"{path.name} is not called NN_topic.ipynb"
        return
    at = lessons.index(path.name)
    opening = "\n".join(_markdown(notebook)).partition("\n## Problem statement")[0]
    targets = {target for _, _, target in LINK.findall(opening)}
    for word, index in {"previous": at - 1, "next": at + 1}.items():
        if 0 <= index < len(lessons) and lessons[index] not in targets:
            yield f"the opening does not link to the {word} lesson, {lessons[index]}"
    if "README.md" not in targets:
        yield "the opening does not link to the contents, README.md"


def size(notebook: NotebookNode, path: Path) -> Iterator[str]:
    if path.stat().st_size > MAX_BYTES:
        yield f"{path.stat().st_size} bytes are more than {MAX_BYTES}"


def cell_lengths(notebook: NotebookNode, path: Path) -> Iterator[str]:
    for cell in _code(notebook):
        if (lines := len(cell.source.splitlines())) > MAX_CELL_LINES:
            yield f"{_name(cell)} has {lines} lines, more than {MAX_CELL_LINES}"


def uncompared(notebook: NotebookNode, path: Path) -> Iterator[str]:
    cells = [
        cell
        for cell in _code(notebook)
        if _tags(cell) & UNCOMPARED_TAGS or UNCOMPARED_COMMENT.search(cell.source)
    ]
    if len(cells) > MAX_UNCOMPARED:
        yield f"{len(cells)} cells are not compared by nbval, more than {MAX_UNCOMPARED}"


def tolerances(notebook: NotebookNode, path: Path) -> Iterator[str]:
    tagged = 0
    for cell in _code(notebook):
        try:
            tagged += own_tolerance(_tags(cell)) != RELATIVE
        except ValueError as error:
            yield f"{_name(cell)}: {error}"
    if tagged > MAX_CLOSE_CELLS:
        yield f"{tagged} cells have a tolerance of their own, more than {MAX_CLOSE_CELLS}"


def processors(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """What a training leaves to the machine makes other numbers on the next one.

    A fixed number of threads needs a comment on its line that says why.
    """
    for cell in _code(notebook):
        for setting in re.findall(r"(?:set_num_threads\(|\bthreads=|--threads )\d+(?!.*#)", cell.source):
            yield f"{_name(cell)}: {setting} does not follow OMP_NUM_THREADS: use torch.get_num_threads()"
        for node in _syntax(cell):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("TrainConfig", "TrainConfig.preset"):
                given = {keyword.arg for keyword in node.keywords}
                for setting in sorted({"precision", "threads"} - given):
                    yield f"{_name(cell)}: TrainConfig leaves {setting} to the machine: set it"


def leaks(notebook: NotebookNode, path: Path) -> Iterator[str]:
    for cell in _code(notebook):
        for text in _output_texts(cell):
            for what, pattern in LEAKS.items():
                if match := pattern.search(text):
                    yield f"{_name(cell)} prints {what}: {match[0]}"


def profile(notebook: NotebookNode, path: Path) -> Iterator[str]:
    cells = _code(notebook)
    printed = " ".join(_output_texts(cells[0])) if cells else ""
    if "lesson" not in printed:
        yield "the first code cell does not print the profile, 'lesson'"


def described_figures(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """What someone reads who cannot see the figure: JupyterLab drops what stands in the metadata."""
    for cell in _code(notebook):
        printed = " ".join(_output_texts(cell))
        for output in cell.outputs:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "").strip()
            if not alt:
                continue
            if len(alt) < MIN_ALTERNATIVE or EMPTY_WORDS.match(alt):
                yield f"{_name(cell)}: {alt!r} does not say what the figure shows"
            if f"Figure: {' '.join(alt.split())}" not in " ".join(printed.split()):
                yield f"{_name(cell)} does not print the alternative text of its figure: use show()"


def colours(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Colours come from labstudio.figures.base.COLOURS, or are shades of grey."""
    for cell in _code(notebook):
        for node in _syntax(cell):
            value = node.value if isinstance(node, ast.keyword) else node
            if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                continue
            text, name = value.value, getattr(node, "arg", None) or ""
            if name == "cmap" and text not in COLOUR_MAPS:
                yield f"{_name(cell)}: cmap={text!r} is not one of {sorted(COLOUR_MAPS)}"
            named = name in ("c", "color", "colors") or name.endswith("color")
            if (named and not SHADES.fullmatch(text)) or LINE_STYLE_WITH_COLOUR.fullmatch(text):
                yield f"{_name(cell)}: the colour {text!r} is not from COLOURS"


def metadata(notebook: NotebookNode, path: Path) -> Iterator[str]:
    if (found := notebook.metadata.get("language_info")) != {"name": "python"}:
        yield f"language_info is {found}, not the name 'python' alone: run `make notebooks`"
    if others := set(notebook.metadata) - {"kernelspec", "language_info", "widgets"}:
        yield f"an editor left {sorted(others)} in the metadata: run `make notebooks`"
    for cell in notebook.cells:
        if cell.get("attachments"):
            yield "a cell holds an attachment, which GitHub does not show: link to a file"


def mathematics(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """What MathJax, VS Code's KaTeX and GitHub all read as a formula."""
    for text in map(_without_code, _markdown(notebook)):
        for command in re.findall(r"\\[(\[]|\\(?:label|ref|eqref|tag)\b", text):
            yield f"{command} works in JupyterLab alone: write $…$ or $$…$$, and no references"
        for match in DISPLAYED.finditer(text):
            before = text[: match.start()].rpartition("\n")[2]
            after = text[match.end() :].partition("\n")[0]
            if before.strip() or after.strip():
                yield f"the displayed formula {match[1][:40]!r} shares a line with text"
        rest = DISPLAYED.sub("", text)
        if r"\begin{" in rest:
            yield r"\begin{…} outside of $$…$$"
        for match in INLINE.finditer(rest):
            formula = match[1]
            if not formula or formula != formula.strip():
                yield f"${formula}$ begins or ends with a blank: VS Code and GitHub show the dollars"
            if rest[match.end() : match.end() + 1].isdigit():
                yield f"${formula}$ is followed by a digit: VS Code shows the dollars"
            line = rest[: match.start()].rpartition("\n")[2]
            if line.lstrip().startswith("|") and re.search(r"(?<!\\)\|", formula):
                yield f"${formula}$ in a table has a | that ends its cell: write \\mid or \\lvert"
        if "$" in INLINE.sub("", rest).replace(r"\$", ""):
            yield f"a dollar without its partner in {rest[:60]!r}"


def markup(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """HTML that VS Code and GitHub keep, and that they take for the same blocks as JupyterLab."""
    for text in map(_without_code, _markdown(notebook)):
        tags = re.findall(r"<(/?)([a-z][a-z0-9]*)\b[^>]*>", text, re.I)
        for tag in sorted({name.lower() for _, name in tags} - KEPT_TAGS - {"img"}):
            yield f"<{tag}> is taken away by some viewers"
        for tag in ("details", "summary"):
            opened, closed = tags.count(("", tag)), tags.count(("/", tag))
            if opened != closed:
                yield f"<{tag}> is opened {opened} times, closed {closed} times"
        if len(re.findall(r"<details>\s*<summary>", text)) != tags.count(("", "details")):
            yield "<details> does not begin with a <summary>: what does the reader click on?"
        for block in re.split(r"\n[ \t]*\n", text):
            html = re.search(r"^</?(details|summary)\b.*", block, re.M | re.S)
            if html and re.search(r"\$|\*\S|\]\(|\[code\]", html[0]):
                yield f"no blank line between {html[0][:40]!r} and Markdown: some viewers show its signs"
        if re.search(r"^\s*[-*+] \[[ xX]\] ", text, re.M):
            yield "a task list: its boxes are inputs without a name. Write '- ☐ '"


def local_links(notebook: NotebookNode, path: Path) -> Iterator[str]:
    for text in _markdown(notebook):
        for _, _, target in LINK.findall(text):
            if re.match(r"/|file:|data:|attachment:|https?://(localhost|127\.)", target):
                yield f"link to {target}, which is there on one machine only: make it relative"


RULES: tuple[Callable[[NotebookNode, Path], Iterator[str]], ...] = (
    format_and_ids,
    kernel,
    execution_counts,
    errors,
    widget_state,
    magics,
    headings,
    sections,
    alternatives,
    links,
    neighbours,
    size,
    cell_lengths,
    uncompared,
    tolerances,
    processors,
    leaks,
    profile,
    described_figures,
    colours,
    metadata,
    mathematics,
    markup,
    local_links,
)


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _markdown(notebook: NotebookNode) -> list[str]:
    """The Markdown cells, without fenced code."""
    return [FENCE.sub("", cell.source) for cell in notebook.cells if cell.cell_type == "markdown"]


def _syntax(cell: NotebookNode) -> Iterator[ast.AST]:
    try:
        yield from ast.walk(ast.parse(cell.source))
    except SyntaxError:  # a magic, of which the rule about magics speaks
        return


def _without_code(text: str) -> str:
    """Markdown whose code spans are replaced by the word [code]."""
    return CODE_SPAN.sub("[code]", text)


def _headings(notebook: NotebookNode) -> list[tuple[int, str]]:
    return [(len(marks), title) for text in _markdown(notebook) for marks, title in HEADING.findall(text)]


def _tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _name(cell: NotebookNode) -> str:
    first = (cell.source.strip().splitlines() or ["(empty)"])[0]
    return f"cell [{cell.execution_count}] {first[:50]!r}"


def _output_texts(cell: NotebookNode) -> Iterator[str]:
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        for kind in ("text/plain", "text/html", "text/markdown"):
            if kind in output.get("data", {}):
                yield output.data[kind]
