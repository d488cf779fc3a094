"""Write the API reference from the docstrings: `python .github/docs/reference.py`.

With `--check` nothing is written; the exit status is 1 if a page is out of date. Needs the extra `docs`.
"""

import re
import sys
from pathlib import Path

import griffe
from griffe2md import ConfigDict, render_object_docs

ROOT = Path(__file__).parents[2]
PAGES = Path(__file__).parent / "reference"
NAMESPACES = (
    "",
    "transforms",
    "optimizers",
    "schedules",
    "losses",
    "adapters",
    "layers",
    "callbacks",
    "checkpoint",
    "replay",
    "data",
    "metrics",
    "rng",
    "tree",
    "types",
    "testing",
)
# The modules among the public names that have functions of their own.
SUBMODULES = {"testing": ("laws", "strategies")}

_OPTIONS = ConfigDict(
    heading_level=3,
    show_root_full_path=False,
    show_root_heading=True,
    show_root_members_full_path=False,
    separate_signature=True,
    show_signature_annotations=True,
    annotations_path="brief",
    members=None,
    filters=["!^_"],
    docstring_section_style="list",
    line_length=88,
)
_LINKED = re.compile(r"<code>(.*?)</code>", re.DOTALL)
_LINK = re.compile(r"\[([^\[\]]*)\]\(#[^)]*\)")
_EXAMPLE = re.compile(r"(?:^[ \t]*>>>.*\n(?:^[ \t]*\S.*\n)*)+", re.MULTILINE)


def sections(path: Path) -> list[tuple[str, list[str]]]:
    """Return the names of a facade's `__all__` under the comments that divide it."""
    listed = re.search(r"__all__ = \[(.*?)\]", path.read_text(encoding="utf-8"), re.DOTALL)
    assert listed, path
    found: list[tuple[str, list[str]]] = [("", [])]
    for heading, name in re.findall(r'# (.+)|"(\w+)"', listed[1]):
        if heading:
            found.append((heading, []))
        else:
            found[-1][1].append(name)
    return [(heading, names) for heading, names in found if names]


def plain(text: str) -> str:
    """Return Markdown without links to other objects, and with examples in fences."""

    def code(match: re.Match[str]) -> str:
        return "`" + _LINK.sub(r"\1", match[1]) + "`"

    def fenced(match: re.Match[str]) -> str:
        lines = match[0].rstrip("\n").split("\n")
        indent = min(len(line) - len(line.lstrip()) for line in lines)
        return "```pycon\n" + "\n".join(line[indent:] for line in lines) + "\n```\n"

    text = _LINK.sub(r"\1", _LINKED.sub(code, text))
    text = _EXAMPLE.sub(fenced, text + "\n")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def loaded() -> griffe.Module:
    """Return the package as griffe reads it from the source."""
    loader = griffe.GriffeLoader(
        search_paths=[ROOT / "src"],
        docstring_parser=griffe.Parser.google,
        docstring_options={"returns_multiple_items": False, "returns_named_value": False, "warnings": False},
    )
    package = loader.load("purestep")
    loader.resolve_aliases(implicit=True)
    assert isinstance(package, griffe.Module)
    return package


def page(package: griffe.Module, namespace: str) -> str:
    """Return the page of one namespace."""
    module = package[namespace] if namespace else package
    full = f"purestep.{namespace}" if namespace else "purestep"
    text = [f"# `{full}`\n", (module.docstring.value if module.docstring else "") + "\n"]
    for heading, names in sections(module.filepath):
        text.append(f"## {heading}\n" if heading else "")
        for name in names:
            if namespace == "" and name in NAMESPACES:
                text.append(f"### `{name}`\n\nSee [`purestep.{name}`]({name}.md).\n")
            elif name not in SUBMODULES.get(namespace, ()):
                text.append(plain(render_object_docs(module[name], _OPTIONS)))
    for name in SUBMODULES.get(namespace, ()):
        text.append(f"## `{full}.{name}`\n")
        for member in package[f"{namespace}.{name}"].members.values():
            if not member.is_alias and member.is_function and not member.name.startswith("_"):
                text.append(plain(render_object_docs(member, _OPTIONS)))
    return "\n".join(part for part in text if part)


def index() -> str:
    """Return the page that lists the others."""
    lines = ["# API reference", "", "Made from the docstrings by `python .github/docs/reference.py`.", ""]
    for namespace in NAMESPACES:
        full = f"purestep.{namespace}" if namespace else "purestep"
        lines.append(f"- [`{full}`]({namespace or 'purestep'}.md)")
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Return the text of every page by its path."""
    package = loaded()
    made = {PAGES / f"{namespace or 'purestep'}.md": page(package, namespace) for namespace in NAMESPACES}
    return {**made, PAGES / "README.md": index()}


def outdated() -> list[str]:
    """Return the names of pages that differ from the docstrings."""
    made = pages()
    stale = {path for path in PAGES.glob("*.md") if path not in made}
    stale |= {path for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text}
    return sorted(path.name for path in stale)


def main() -> None:
    """Write or check the pages."""
    if "--check" in sys.argv[1:]:
        names = outdated()
        sys.exit(f"out of date: {', '.join(names)}; run python .github/docs/reference.py" if names else 0)
    PAGES.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
