"""What the README and docs/ promise: commands compose, links and tables hold, and the two additions work as printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from models import BACKBONES

from arch_bench import catalog
from arch_bench.config.schema import CONF, compose, read
from arch_bench.report.__main__ import _parser as report_parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
TEXT = "\n".join([README, *DOCS.values()])
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}
PROGRAMS = "arch-bench", "arch-bench-task", "arch-bench-report"
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
CODE = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))
"""What stands in backticks within sentences and tables."""


def commands() -> list[str]:
    """Return every command line in a code block, comments left out."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    lines = "".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    return list(dict.fromkeys(shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()))


def files_in_readme() -> dict[str, str]:
    """Return path -> text of every file the README shows: a path in backticks, then its block."""
    return dict(re.findall(r"`([\w/]+\.(?:py|yaml))`[^`]*\n```(?:python|yaml)\n(.*?)```", README, re.DOTALL))


def first_of_sweep(override: str) -> str:
    """Return an override with the first of its values."""
    value = OverridesParser.create().parse_override(override).value()
    return f"{override.partition('=')[0]}={value.list[0]}" if isinstance(value, ChoiceSweep) else override


@pytest.mark.parametrize("command", [line for line in commands() if line.split()[0] in PROGRAMS])
def test_every_command_composes(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "arch-bench-report":
        report_parser().parse_args(arguments)
        return
    if program == "arch-bench-task":
        arguments = [f"task={arguments[0]}", *(each for each in arguments[1:] if not each.startswith("n="))]
    cell, _ = read(compose([first_of_sweep(each) for each in arguments if "=" in each]))
    assert cell.task_name


def test_other_commands_name_what_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    named = [*commands(), *CODE]
    assert {word for line in named for word in re.findall(r"^make ([a-z]+)", line)} <= targets
    assert {word for line in named for word in re.findall(r"\.\[([a-z]+)\]", line)} <= extras
    paths = {word for line in named for word in re.findall(r"\b(?:tests|benchmarks)/\w+\.py", line)}
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_settings_and_options_in_sentences_exist() -> None:
    texts = [path.read_text() for path in CONF.rglob("*.yaml")]
    known = {key for text in texts for key in re.findall(r"(?:^|[\s{,])([a-z]\w*):", text, re.MULTILINE)}
    pattern = r"([a-z_]+(?:\.[a-z_]+)*)(?:=(\S*))?"
    found = [match for each in CODE if (match := re.fullmatch(pattern, each))]
    named = [match for match in found if match[2] is not None or (CONF / match[1].partition(".")[0]).is_dir()]
    assert len(named) > 40
    assert [match[0] for match in named if match[1].split(".")[-1] not in {*known, *GROUPS}] == []
    options = [(match[1], match[2]) for match in named if match[1] in GROUPS and match[2]]
    missing = {option for group, option in options if not (CONF / group / f"{option}.yaml").exists()}
    assert missing - {"running_mean", "toggle"} == set()


def test_links_of_the_readme_lead_somewhere() -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]+)(?:#([^)]+))?\)", README):
        assert (ROOT / target).exists(), target
        titles = re.findall(r"^#+ (.*)$", (ROOT / target).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [title.lower().replace(" ", "-") for title in titles], f"{target}#{anchor}"


def test_every_page_is_linked() -> None:
    for name in DOCS:
        assert f"docs/{name}" in README or f"]({name}" in DOCS["index.md"] or name == "index.md", name


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 15_360


@pytest.mark.parametrize(
    ("text", "is_built"), [("[a](#a)", True), ("[a](#nowhere)", False), ("[a](nowhere.md)", False), ("[a](/a/)", False)]
)
def test_a_broken_link_or_anchor_ends_the_build(text: str, is_built: bool, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A\n\n{text}\n")
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: []\nnav: [index.md]\n")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is is_built, done.stderr


def test_the_design_page_names_every_package_and_module() -> None:
    page, harness = DOCS["design.md"], ROOT / "arch_bench"
    packages = {path.parent.name for path in harness.glob("*/__init__.py")}
    listed = set(re.findall(r"^(\w+)/ ", page.partition("has these packages")[2], re.MULTILINE))
    assert packages <= listed
    if listed <= packages:  # until all of them exist, other modules are on their way into one
        modules = {path.stem for path in harness.glob("[!_]*.py")}
        assert {name for name in modules if f"`{name}`" not in page} == set()


@pytest.mark.parametrize(("page", "table"), [("backbones", catalog.table), ("tasks", catalog.task_table)])
def test_the_tables_are_what_the_catalog_prints(page: str, table: object) -> None:
    shown = DOCS[f"{page}.md"].partition(f"<!-- {page} -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == table(), "`make docs` updates it"  # type: ignore[operator]


@pytest.mark.parametrize("name", [name for name in BACKBONES if f"\n| `{name}` |" in DOCS["backbones.md"]])
def test_every_mixer_has_a_card(name: str) -> None:
    cells = next(line for line in catalog.table().splitlines() if line.startswith(f"| `{name}` |")).split(" | ")
    assert all(cell.strip() for cell in cells)


def test_every_task_says_what_is_scored_and_what_guessing_scores() -> None:
    rows = [line.split(" | ") for line in catalog.task_table().splitlines()[2:]]
    assert len(rows) > 30
    assert [row[0] for row in rows if not all(cell.strip() for cell in row[:4])] == []


@pytest.mark.slow
def test_both_additions_work_as_printed(tmp_path: Path) -> None:
    for part in ("arch_bench", "conf", "docs", "tasks", "tests", "Makefile", "pyproject.toml", "README.md"):
        source, copy = ROOT / part, tmp_path / part
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    shown = files_in_readme()
    assert len(shown) == 4
    for path, text in shown.items():
        (tmp_path / path).write_text(text)
    said = re.findall(r"`((?:pytest|arch-bench) [^`]*(?:running_mean|toggle)[^`]*)`", README)
    assert len(said) == 4
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for command in [*said, "pytest tests/test_layers.py", "pytest tests/test_readme.py -k card"]:
        program, *arguments = command.split()
        is_test = program == "pytest"
        arguments += ["-q", "-p", "no:cacheprovider"] if is_test else ["dry_run=true", "logger=none"]
        run = [sys.executable, "-m", program.replace("-", "_"), *arguments]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found = re.search(r"(\d+) passed" if is_test else r"(\d+) to run", done.stdout)
        assert int(found[1]) >= (10 if is_test else 1), command  # type: ignore[index]
