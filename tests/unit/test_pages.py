"""The walker of the manual's pages notices what a reader would stumble over."""

from __future__ import annotations

from pathlib import Path

import pytest

import tests.pages
from tests.pages import ROOT, Walk, blocks


def walk(tmp_path: Path, text: str) -> list[str]:
    page = tmp_path / "page.md"
    page.write_text(text)
    with Walk(tmp_path / "reader", {"10.0.0.5": "127.0.0.1"}) as reader:
        return reader.walk(page)


def console(*lines: str, title: str = "") -> str:
    return "\n".join([f'```console title="{title}"' if title else "```console", *lines, "```", ""])


def test_files_are_written_commands_typed_and_what_they_print_is_there(tmp_path: Path) -> None:
    page = '```text title="names.txt"\nada\n10.0.0.5\n```\n' + console(
        "$ x=5; cat names.txt",
        "ada",
        "10.0.0.5",
        "$ cat > more <<'E'",
        "$ not typed",
        "E",
        "$ echo $x \\",
        "  six",
        "5 … six",
    )
    page += console("$ wc -l < more", "1", "$ pwd", "…/work", title="other terminal")
    assert len(walk(tmp_path, page)) == 5
    assert (tmp_path / "reader/work/names.txt").read_text() == "ada\n127.0.0.1\n"


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (["$ false"], "ended with code 1"),
        (["$ echo one", "two"], "did not print"),
        (["$ echo one two", "one…three"], "did not print"),
        (["$ sleep 5 &", "ready"], "goes on without"),
        (["$ tail -f /dev/null", "ready"], "goes on without"),
        (["$ sleep 30"], "goes on without"),
        (["$ tail -f /dev/null", "$ true"], "still runs where"),
    ],
)
def test_what_does_not_work_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], wrong: str
) -> None:
    monkeypatch.setattr(tests.pages, "LIMIT_S", 0.3)
    with pytest.raises(AssertionError, match=wrong):
        walk(tmp_path, console(*lines))


def test_ctrl_c_ends_what_goes_on(tmp_path: Path) -> None:
    script = '```python title="wait.py"\nimport time\nprint("here", flush=True)\n'
    script += "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('bye')\n```\n"
    assert walk(tmp_path, script + console("$ tail -n1 /dev/null; python wait.py -f", "here", "^C", "bye", "$ true"))


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=lambda page: page.stem)
def test_every_block_of_the_manual_is_read(page: Path) -> None:
    text = page.read_text()
    assert len(blocks(page)) == sum(line.lstrip().startswith("```") for line in text.splitlines()) / 2
