"""Walkthroughs written as folders: what is read of them is what was written, or nothing is written."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from adapters.content import writing
from adapters.content.check import (
    check_manuscript,
    faults_of_description,
    faults_of_markdown,
    faults_of_title,
    shows_nothing,
)
from adapters.content.folder import read_folder
from adapters.content.writing import folder_of, write_folder
from domain.errors import ContentRejected, InvalidValue, OperatorError
from domain.walkthrough import Delivery, Manuscript, StepText, WalkthroughType
from entrypoints.cli.demo import shipped_walkthroughs
from tests.domain import generate


def tour(*steps: StepText, key: str = "tour", title: str = "The tour", description: str = "Shows.") -> Manuscript:
    return Manuscript(key, title, description, WalkthroughType.COURSE, steps or (step("one"), step("two")))


def step(key: str, content: str = "", **given: object) -> StepText:
    values = {"title": f"Step {key}", **given}
    return StepText(key=key, content=content or f"# Step {key}\n\nDo {key}.", **values)  # type: ignore[arg-type]


def read_back(manuscript: Manuscript) -> Manuscript:
    with TemporaryDirectory() as folder:
        for name, text in folder_of(manuscript).items():
            Path(folder, name).write_text(text, encoding="utf-8", newline="")
        return read_folder(Path(folder))


# ------------------------------------------------------------------------------------------------- any at all

_LINES = [
    "Do that.", "# A heading", "A heading", "===", "---", "--- ", "***", "    code", "\ttab", "- a list", "  - in it",
    "1. first", "> quote", "> > deep", "```", "~~~", "````", "", "", "", " ", "two blanks  ", "`code` **bold**",
    "[a link](https://example.com)", "[a]: https://example.com", "# [a]", "| a | b |", ":::", "::: done-when",
    " ::: x", "- :::", "> :::", "    :::", "key: value", "title: no", "# A *nice* `heading` &amp; more", "日本語 😀",
    "résumé\xa0x", "a # b: c", "'quoted' \"twice\"", "\\*no\\*", "$x$", "%YAML", "...", "Setext", "#", "#no", "\\",
    "```\n:::\n```", "~~~sh\ncode\n~~~", "- a\n\n  :::",
]  # fmt: skip
_markdown = st.lists(st.sampled_from(_LINES), min_size=1, max_size=9).map("\n".join).filter(str.strip)
_line = st.one_of(
    st.sampled_from([
        "no", "1.0", "2026-01-01", "~", "null", "a # b", "a: b", "- a", "'x'", '"x"', "#x", "[x]", "{x}", "&a", "*a",
        "!a", "|", ">", "%x", "@x", "`x`", " x", "x ", "a\\b", "日本語", "é", "😀", "---", "0x1f", "1_000", "y", "a:",
        ":a", "?", "? a", "-", ",", "]", "x" * 150, "a  b " * 30, "word " * 30 + "end", "\xa0x", "A heading",
    ]),
    st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"]), min_size=1, max_size=30),
).filter(str.strip)  # fmt: skip
_description = st.one_of(_line, st.lists(_line | st.just(""), min_size=1, max_size=4).map("\n".join)).filter(str.strip)
_keys = st.one_of(
    st.sampled_from(["a", "a-", "a.", "1", "01", "1.5", "2-x", "no", "1e3", "x.md", "readme", "a_b-", "9-", "null"]),
    generate.keys,
)


def _manuscripts(
    markdown: st.SearchStrategy[str], line: st.SearchStrategy[str], description: st.SearchStrategy[str]
) -> st.SearchStrategy[Manuscript]:
    step = st.builds(
        StepText,
        key=_keys,
        title=line,
        content=markdown,
        assistant_notes=st.none() | markdown,
        workspace_actions=st.none() | markdown,
        done_when=st.none() | markdown,
        delivery=st.sampled_from(Delivery),
        estimated_minutes=st.none() | st.integers(1, 24 * 60),
    )
    return st.builds(
        Manuscript,
        key=_keys,
        title=line,
        description=description,
        type=st.sampled_from(WalkthroughType),
        steps=st.lists(step, unique_by=lambda each: each.key, min_size=1, max_size=3).map(tuple),
    )


def _is_held(text: str | None) -> bool:
    """Whether the format can hold it, by its description and not by its code."""
    if text is None:
        return True
    lines = text.split("\n")
    is_blank_at_an_end = not lines[0].strip(" \t") or not lines[-1].strip(" \t")
    # Below the front matter that a step may need, it could look like a second one.
    may_be_front_matter = lines[0].rstrip(" \t") == "---"
    return not (is_blank_at_an_end or may_be_front_matter or any(re.match(" {0,3}:::", line) for line in lines))


# Of lines that are sound by themselves, and of two that need each other, most texts are.
_sound = [line for line in _LINES if not faults_of_markdown(line)]
_held = (
    st.lists(st.sampled_from([*_sound, "# [a]\n\n[a]: https://example.com"]), min_size=1, max_size=9)
    .map("\n".join)
    .filter(lambda text: _is_held(text) and not faults_of_markdown(text) and not shows_nothing(text))
)
held_manuscripts = _manuscripts(
    _held,
    _line.filter(lambda text: not faults_of_title(text)),
    _description.filter(lambda text: not faults_of_description(text)),
)
"""Those that pass the check, and that a folder can hold."""


@settings(max_examples=600, deadline=None)
@given(_manuscripts(_markdown, _line, _description))
def test_what_passes_the_check_reads_back_as_it_was_or_is_not_written(manuscript: Manuscript) -> None:
    try:
        check_manuscript(manuscript)
    except ContentRejected:
        event("refused by the check")
        return
    texts = [text for each in manuscript.steps for text in each.texts()]
    if all(map(_is_held, texts)):
        event("written")
        assert read_back(manuscript) == manuscript
        return
    # A line that looks like a marker may be held all the same, as in a code fence.
    try:
        folder_of(manuscript)
    except InvalidValue as error:
        event("refused by the writer")
        refusal = str(error)
    else:
        event("written, with a line that looks like a marker")
        assert read_back(manuscript) == manuscript
        return
    assert re.match(r"step '[^']+' cannot be kept in a file: (its \w+ (begins|has a line)|put the fields)", refusal)


@settings(max_examples=200, deadline=None)
@given(held_manuscripts)
def test_what_is_written_of_what_was_read_is_the_same_folder(manuscript: Manuscript) -> None:
    assert read_back(manuscript) == manuscript
    assert folder_of(read_back(manuscript)) == folder_of(manuscript)


@pytest.mark.parametrize("folder", shipped_walkthroughs(), ids=lambda folder: folder.name)
def test_the_walkthroughs_that_come_along_are_written_as_they_were_read(folder: Path) -> None:
    manuscript = read_folder(folder)
    assert read_back(manuscript) == manuscript
    assert read_back(manuscript).content_hash() == manuscript.content_hash()


# -------------------------------------------------------------------------------------------- the files' form


@pytest.mark.parametrize(("count", "first", "last"), [(9, "01", "09"), (99, "01", "99"), (100, "001", "100")])
def test_steps_are_numbered_so_that_their_names_sort_in_every_program(count: int, first: str, last: str) -> None:
    files = [name for name in folder_of(tour(*(step(f"s{n}") for n in range(count)))) if name.endswith(".md")]
    assert files == sorted(files)
    assert (files[0], files[-1]) == (f"{first}-s0.md", f"{last}-s{count - 1}.md")


def test_five_hundred_steps_come_back_in_their_order() -> None:
    manuscript = tour(*(step(f"{n}") for n in range(500, 0, -1)))
    assert read_back(manuscript) == manuscript


def test_a_step_has_no_front_matter_that_it_does_not_need() -> None:
    assert folder_of(tour(step("one"))) == {
        "01-one.md": "# Step one\n\nDo one.\n",
        "walkthrough.yaml": "schema: 1\nkey: tour\ntitle: The tour\ndescription: Shows.\ntype: course\n",
    }


def test_a_step_is_written_with_all_that_it_has() -> None:
    whole = step(
        "a-",
        "Text.\n\n```\n:::\n```",
        title='No: "so" # it is',
        assistant_notes="Notes.",
        workspace_actions="- one\n- two",
        done_when="It is.",
        delivery=Delivery.TOGETHER,
        estimated_minutes=5,
    )
    files = folder_of(tour(whole))
    assert files["01-a-.md"] == (
        '---\nkey: a-\ntitle: "No: \\"so\\" # it is"\nminutes: 5\ndelivery: together\n---\n'
        "Text.\n\n```\n:::\n```\n"
        "\n::: assistant-notes\nNotes.\n:::\n\n::: workspace-actions\n- one\n- two\n:::\n\n::: done-when\nIt is.\n:::\n"
    )


def test_content_that_begins_with_a_rule_is_not_taken_for_front_matter() -> None:
    manuscript = tour(step("one", "---\nDo.\n---\nDone."))
    assert folder_of(manuscript)["01-one.md"] == "---\ntitle: Step one\n---\n---\nDo.\n---\nDone.\n"
    assert read_back(manuscript) == manuscript


def test_a_heading_that_a_definition_in_the_notes_makes_another_is_not_trusted_as_the_title() -> None:
    manuscript = tour(
        step("one", "# See [a]\n\nDo.", title="See [a]", assistant_notes="Know [a].\n\n[a]: https://example.com")
    )
    assert read_back(manuscript) == manuscript


@pytest.mark.parametrize(
    ("description", "written"),
    [
        ("no", '"no"'),
        ("1.0", '"1.0"'),
        ("a # b", '"a # b"'),
        ("Says: \\d", '"Says: \\\\d"'),
        ("Über “das” – 日本語 😀", "Über “das” – 日本語 😀"),
        ("two\n\n  lines", "|-\n  two\n\n    lines"),
        ("  first\nindented", '"  first\\nindented"'),
        ("ends\n", '"ends\\n"'),
        ("x y " * 30 + "z", ">-\n  " + "x y " * 25 + "\n  " + "x y " * 5 + "z"),
    ],
)
def test_a_description_is_written_in_the_plainest_form_that_reads_as_itself(description: str, written: str) -> None:
    text = folder_of(tour(description=description))["walkthrough.yaml"]
    expected = "\n".join(line.rstrip(" ") for line in written.split("\n"))
    assert text == f"schema: 1\nkey: tour\ntitle: The tour\ndescription: {expected}\ntype: course\n"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"content": "Do.\n\n::: note\nDon't.\n:::"}, "its content has a line that begins with ':::', as a block does"),
        ({"content": "\nDo."}, "its content begins or ends with a blank line"),
        ({"done_when": "It is.\n"}, "its done_when begins or ends with a blank line"),
        ({"assistant_notes": " \n"}, "its assistant_notes is blank"),
        ({"workspace_actions": "```\nrm"}, "close this code fence with a line of ``` and nothing else"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_with_the_step_and_the_text(given: dict[str, str], why: str) -> None:
    manuscript = tour(step("one"), step("two", **given))
    with pytest.raises(InvalidValue) as refused:
        folder_of(manuscript)
    assert str(refused.value) == (
        f"step 'two' cannot be kept in a file: {why}; change that in the draft and publish it, or pull another version"
    )


# ---------------------------------------------------------------------------------------------------- the disk

OLD = tour(step("one"), step("two"), step("three"))
NEW = tour(step("one", "# Step one\n\nDo it otherwise."), step("four"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder into which OLD was pulled, and what is nobody's business."""
    place = tmp_path / "tour"
    place.mkdir()
    for name, text in folder_of(OLD).items():
        (place / name).write_text(text)
    for name in ("README.md", ".hidden.md", "picture.png", "notes.txt", "drafts/05-five.md"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(f"this is {name}")
    assert read_folder(place) == OLD
    return place


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def others(folder: Path) -> dict[str, str]:
    """What a pull must leave alone."""
    kept = ("README.md", ".hidden.md", "picture.png", "notes.txt", "drafts/05-five.md")
    return {name: f"this is {name}" for name in kept}


def pull(folder: Path, *, known: tuple[Manuscript, ...] = (OLD,), is_forced: bool = False) -> bool:
    return write_folder(folder, NEW, known={each.content_hash() for each in known}, is_forced=is_forced)


def refusal(folder: Path, **given: object) -> str:
    """Why nothing is written, after seeing that nothing is."""
    before = contents(folder)
    with pytest.raises(OperatorError) as refused:
        pull(folder, **given)  # type: ignore[arg-type]
    assert contents(folder) == before
    return str(refused.value).replace(str(folder), "DIR")


@pytest.mark.parametrize("path", ["new", "a/b/c", "empty"])
def test_a_folder_is_made_or_filled(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    place = tmp_path / path
    assert pull(place) is True
    assert contents(place) == dict(folder_of(NEW))


def test_known_content_is_replaced_and_everything_else_stays(folder: Path) -> None:
    assert pull(folder) is True
    assert contents(folder) == {**folder_of(NEW), **others(folder)}


def by_hand(folder: Path) -> None:
    """Makes OLD's files there such as an author writes them."""
    (folder / "01-one.md").rename(folder / "1 one.md")
    (folder / "02-two.md").write_text("---\n# Said so by Ada.\ntitle: Step two\n---\n# Step two\n\nDo two.\n")
    (folder / "walkthrough.yaml").write_text(f"# For new colleagues.\n{folder_of(OLD)['walkthrough.yaml']}")
    assert read_folder(folder) == OLD


@pytest.mark.promise("content.pull")
def test_what_the_folder_holds_already_is_not_written_again_in_whatever_files(folder: Path) -> None:
    by_hand(folder)
    before = contents(folder)
    assert write_folder(folder, OLD, known=()) is False
    assert write_folder(folder, OLD, known=(), is_forced=True) is False
    assert contents(folder) == before


@pytest.mark.promise("content.pull")
def test_what_an_author_wrote_beside_the_content_is_refused_by_name_and_forced(folder: Path) -> None:
    by_hand(folder)
    assert refusal(folder) == (
        "DIR has comments, layout or file names of your own, which a pull does not keep "
        "(02-two.md, 1 one.md, walkthrough.yaml): name another folder, or replace these files with --force"
    )
    (folder / "03-three.md").rename(folder / "3\n.md")
    (folder / "3\n.md").write_text("---\nkey: three\n---\n" + folder_of(OLD)["03-three.md"])
    assert read_folder(folder) == OLD
    assert "(02-two.md, 1 one.md, 3\\n.md and 1 more)" in refusal(folder)
    assert pull(folder, is_forced=True) is True
    assert contents(folder) == {**folder_of(NEW), **others(folder)}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("walkthrough.yaml", "title: The tour", "# So far.\ntitle: The tour"),
        ("walkthrough.yaml", "title: The tour", 'title: "The tour"'),
        ("02-two.md", "# Step two", "---\ntitle: Step two\n---\n# Step two"),
        ("02-two.md", "Do two.\n", "Do two."),
        ("02-two.md", "\n", "\r\n"),
    ],
)
def test_one_byte_that_could_not_be_pulled_again_is_enough_to_refuse(
    folder: Path, name: str, old: str, new: str
) -> None:
    path = folder / name
    path.write_text(path.read_text().replace(old, new), newline="")
    assert read_folder(folder) == OLD
    assert f" keep ({name}): " in refusal(folder)


@pytest.mark.promise("content.pull")
def test_changes_that_were_never_stored_are_refused_and_forced(folder: Path) -> None:
    assert refusal(folder, known=()) == (
        "DIR has changes that were never stored: push them, or overwrite them with --force"
    )
    assert pull(folder, known=(), is_forced=True) is True
    assert contents(folder) == {**folder_of(NEW), **others(folder)}


def test_a_folder_that_no_pull_can_write_is_refused_as_written_by_hand(folder: Path) -> None:
    (folder / "01-one.md").write_text("---\ntitle: One\n---\n---\n# So\n\n::: done-when\nIt is.\n:::\n\n---\nEnd.\n")
    found = read_folder(folder)
    with pytest.raises(InvalidValue):
        folder_of(found)
    assert " keep (01-one.md, 02-two.md, 03-three.md and 1 more): " in refusal(folder, known=(found,))


def test_what_is_no_sound_walkthrough_is_refused_and_forced(folder: Path) -> None:
    (folder / "01-one.md").write_text("# One\n\n::: note\n")
    assert refusal(folder) == ("DIR does not hold a sound walkthrough: see 'cairn lint', or overwrite it with --force")
    assert pull(folder, is_forced=True) is True
    assert contents(folder) == {**folder_of(NEW), **others(folder)}


@pytest.mark.parametrize("is_sound", [True, False])
@pytest.mark.parametrize("is_forced", [True, False])
def test_another_walkthroughs_folder_is_refused_forced_or_not(folder: Path, is_sound: bool, is_forced: bool) -> None:
    yaml = folder / "walkthrough.yaml"
    yaml.write_text(yaml.read_text().replace("key: tour", "key: 'other'"))
    if not is_sound:
        (folder / "01-one.md").write_text("\x00")
    assert refusal(folder, is_forced=is_forced) == (
        "DIR holds another walkthrough, 'other': name another folder, --force or not"
    )


def test_a_folder_of_somebodys_markdown_is_refused_forced_or_not(tmp_path: Path) -> None:
    (tmp_path / "diary.md").write_text("Dear diary")
    for is_forced in (True, False):
        assert refusal(tmp_path, is_forced=is_forced) == (
            "DIR holds Markdown files and no walkthrough.yaml: name an empty folder"
        )


def test_a_folder_without_any_file_of_a_walkthrough_is_filled(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("A repository.")
    (tmp_path / ".git").mkdir()
    assert pull(tmp_path) is True
    assert contents(tmp_path) == {**folder_of(NEW), "README.md": "A repository."}


def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(folder: Path, tmp_path: Path) -> None:
    inside = folder / "drafts" / "one.txt"
    (folder / "01-one.md").rename(inside)
    (folder / "01-one.md").symlink_to(inside)
    before = inside.read_text()
    assert " keep (01-one.md): " in refusal(folder)
    assert pull(folder, is_forced=True) is True
    assert not (folder / "01-one.md").is_symlink()
    assert inside.read_text() == before
    outside = tmp_path / "outside.md"
    outside.write_text("theirs")
    (folder / "01-one.md").unlink()
    (folder / "01-one.md").symlink_to(outside)
    assert "sound" in refusal(folder, known=(NEW,))
    assert pull(folder, is_forced=True) is True
    assert read_folder(folder) == NEW
    assert outside.read_text() == "theirs"


@pytest.mark.parametrize("kind", ["link", "dangling", "file", "with a folder in it", "with a file in it"])
def test_what_is_in_the_place_of_the_stage_is_told_and_never_followed_or_removed(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("x")
    stage = folder / ".cairn-pull"
    match kind:
        case "link":
            stage.symlink_to(tmp_path / "elsewhere")
        case "dangling":
            stage.symlink_to(tmp_path / "nowhere")
        case "file":
            stage.write_text("x")
        case "with a folder in it":
            (stage / "05-five.md").mkdir(parents=True)
        case "with a file in it":
            stage.mkdir()
            (stage / "notes.txt").write_text("x")
    there = sorted(folder.rglob("*"))
    assert refusal(folder) == "DIR/.cairn-pull is in the way of a pull: move it away"
    assert write_folder(folder, OLD, known=()) is False
    assert sorted(folder.rglob("*")) == there
    assert (tmp_path / "elsewhere" / "precious").read_text() == "x"


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_touched(folder: Path) -> None:
    (folder / "02-four.md").mkdir()
    (folder / "02-four.md" / "x").write_text("x")
    assert refusal(folder, is_forced=True) == "DIR/02-four.md is a folder where a file belongs: move it away"


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OperatorError, match=r"cannot write .*: name a folder that can be written, and pull again$"):
        pull(tmp_path / path)
    assert (tmp_path / "file").read_text() == "x"


def test_two_pulls_at_once_do_not_mix(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move_in = writing._move_in
    told = []

    def meanwhile(*given: object) -> None:
        with pytest.raises(OperatorError) as refused:
            write_folder(folder, OLD, known={OLD.content_hash()}, is_forced=True)
        told.append(str(refused.value))
        move_in(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "_move_in", meanwhile)
    assert pull(folder) is True
    assert told == [f"another pull is writing {folder}: wait until it is done"]
    assert read_folder(folder) == NEW


class Crash(BaseException):
    pass


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, *, is_forced: bool = False) -> bool:
    """Ends a pull as its process may end, after so many changes to the folder; False where it made no more."""
    left = allowed

    def watched(original, path, *given, **options):  # type: ignore[no-untyped-def]
        nonlocal left
        target = Path(given[0]) if given else path
        if target.parent in (folder, folder / ".cairn-pull"):
            if not left:
                raise Crash
            left -= 1
        return original(path, *given, **options)

    with monkeypatch.context() as patch:
        for name in ("unlink", "replace", "mkdir", "rmdir"):
            patch.setattr(Path, name, watching(watched, getattr(Path, name)))
        try:
            pull(folder, is_forced=is_forced)
        except Crash:
            return True
    return False


def watching(watched, original):  # type: ignore[no-untyped-def]
    return lambda path, *given, **options: watched(original, path, *given, **options)


def test_a_pull_that_was_interrupted_anywhere_can_be_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    template = tmp_path / "template"
    shutil.copytree(folder, template)
    moments = halves = 0
    while interrupted(folder, monkeypatch, moments):
        moments += 1
        try:
            assert read_folder(folder) in (OLD, NEW), "half of it is taken for a walkthrough"
        except ContentRejected:
            halves += 1
        # Whatever the first left, and whenever the second ends as well.
        for again in range(moments):
            interrupted(folder, monkeypatch, again)
        assert pull(folder) in (True, False)
        assert contents(folder) == {**folder_of(NEW), **others(folder)}, f"after {moments - 1} changes"
        shutil.rmtree(folder)
        shutil.copytree(template, folder)
    assert halves == 5  # three former files go, and two come before the last one: after each of them
    assert moments > halves
    assert contents(folder) == {**folder_of(NEW), **others(folder)}


def test_what_was_written_since_an_interruption_is_not_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(range(100))
    while (folder / "walkthrough.yaml").exists():
        assert interrupted(folder, monkeypatch, next(moments))
    (folder / "03-three.md").write_text("# Mine\n\nWritten since.\n")
    assert refusal(folder) == "DIR does not hold a sound walkthrough: see 'cairn lint', or overwrite it with --force"
    assert pull(folder, is_forced=True) is True
    assert contents(folder) == {**folder_of(NEW), **others(folder)}


def test_a_forced_pull_that_was_interrupted_before_it_moved_anything_leaves_no_leave_to_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand(folder)
    before = contents(folder)
    # Two changes: its temporary place is made, and the journal is there.
    assert interrupted(folder, monkeypatch, 2, is_forced=True)
    assert (folder / ".cairn-pull" / "journal.json").exists()
    assert before.items() <= contents(folder).items()
    assert " of your own, " in refusal(folder)


def test_new_files_are_safe_from_a_power_cut_before_old_ones_go_and_the_journal_after_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    originals = {"unlink": Path.unlink, "replace": Path.replace}
    flush, remove = os.fsync, shutil.rmtree

    def flushed(descriptor: int) -> None:
        node = os.fstat(descriptor).st_ino
        (path,) = (each for each in (folder, *folder.rglob("*")) if each.stat().st_ino == node)
        told.append(f"flush {path.relative_to(folder)}")
        flush(descriptor)

    def changed(name: str):  # type: ignore[no-untyped-def]
        def watched(path: Path, *given: object, **options: object) -> object:
            told.append(f"{name} {path.relative_to(folder)}")
            return originals[name](path, *given, **options)  # type: ignore[operator]

        return watched

    def removed(path: Path) -> None:
        told.append(f"remove {path.relative_to(folder)}")
        remove(path)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    for name in originals:
        monkeypatch.setattr(Path, name, changed(name))
    assert pull(folder) is True
    # In which order the former files go is the disk's.
    gone = sorted(told[8:10])
    assert [*told[:8], *gone, *told[10:]] == [
        "flush .cairn-pull/01-one.md",
        "flush .cairn-pull/02-four.md",
        "flush .cairn-pull/walkthrough.yaml",
        "flush .cairn-pull/journal.json.new",
        "replace .cairn-pull/journal.json.new",
        "flush .cairn-pull",
        "flush .",
        "unlink walkthrough.yaml",
        "unlink 02-two.md",
        "unlink 03-three.md",
        "replace .cairn-pull/01-one.md",
        "replace .cairn-pull/02-four.md",
        "replace .cairn-pull/walkthrough.yaml",
        "flush .",
        "remove .cairn-pull",
    ]


@pytest.mark.parametrize(("number", "is_borne"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_disk_that_cannot_flush_is_borne_and_one_that_fails_to_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_borne: bool
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    if is_borne:
        assert pull(folder) is True
        assert contents(folder) == {**folder_of(NEW), **others(folder)}
    else:
        assert refusal(folder) == (
            "cannot write DIR (Input/output error): name a folder that can be written, and pull again"
        )


def test_a_failure_before_anything_is_moved_leaves_the_folder_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *given: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OperatorError) as refused:
            pull(folder)
    assert str(refused.value) == (
        f"cannot write {folder} (No space left on device): name a folder that can be written, and pull again"
    )
    assert read_folder(folder) == OLD
    assert not (folder / ".cairn-pull").exists()
