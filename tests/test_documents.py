"""README, guides and API reference: their code runs, their links lead somewhere, no name is missing."""

import importlib
import importlib.util
import re
import subprocess
import sys

import pytest

from tests import documents

README, GUIDES, ROOT = documents.README, documents.GUIDES, documents.ROOT
REFERENCE = ROOT / ".github/docs/reference"
NAMESPACES = ["purestep"] + [
    f"purestep.{path.stem}"
    for path in sorted(REFERENCE.glob("*.md"))
    if path.stem not in ("README", "purestep")
]


@pytest.mark.parametrize("number", range(len(documents.blocks(README))))
def test_a_block_of_the_readme_runs_alone_and_learns(number, tmp_path, monkeypatch):
    block = documents.blocks(README)[number]
    if documents.needed(block):
        pytest.skip(f"{documents.needed(block)} is not installed")
    monkeypatch.chdir(tmp_path)
    namespace = documents.execute("README.md", [block])
    if number == 0:
        assert namespace["accuracy"] > 0.97


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_runs_from_top_to_bottom(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents.execute(guide.name, documents.blocks(guide))


def test_the_readme_is_one_page_and_begins_with_the_signature():
    text = README.read_text()
    assert "step(state, batch) -> (state, metrics)" in text.splitlines()[0]
    assert len(text.split()) <= 1000


@pytest.mark.parametrize(
    "path", [README, *GUIDES, *sorted(REFERENCE.glob("*.md"))], ids=lambda path: path.stem
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("name", NAMESPACES)
def test_every_public_name_is_in_the_reference_and_in_a_guide(name):
    page = REFERENCE / f"{name.removeprefix('purestep.')}.md"
    guides = set(re.findall(r"\w+", " ".join(path.read_text() for path in (README, *GUIDES))))
    for label in importlib.import_module(name).__all__:
        assert f"`{label}`" in page.read_text() or label in ("laws",)
        # The states of transforms are documented by their fields, in the reference alone.
        assert label in guides or label.endswith("State"), f"no guide or table names {name}.{label}"


def test_the_reference_is_what_the_docstrings_say():
    if not importlib.util.find_spec("griffe2md"):
        pytest.skip("the extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, ROOT / ".github/docs/reference.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_state_memory_is_what_the_code_says():
    from benchmarks import state

    assert state.markdown(state.table()) in (ROOT / ".github/docs/transforms.md").read_text()


def test_every_message_in_the_guide_of_errors_is_one_of_the_library():
    source = " ".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    rows = re.findall(r"^\| `(.*?)`", (ROOT / ".github/docs/errors.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    for phrase in rows:
        assert phrase in joined, phrase
