"""What the page and the terminal give to be copied: that each client understands it, whatever the name and address."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import tomllib
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from entrypoints.http.connecting import Client, Tried, claude_code_command, client_name, clients, mcp_servers

URL = "https://acme.example.com/mcp"
PERSONAL = "https://acme.example.com/v/Zm9vYmFyYmF6cXV4MTIzNA/mcp"
# What no server has, so that whatever gets in is also quoted.
HOSTILE = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("'\"`$\\;&|<>(){}#! \u202e🗿مَ"),
    min_size=1,
    max_size=40,
)


def client(name: str, slug: str = "acme", url: str = URL, *, is_personal: bool = False) -> Client:
    (found,) = (each for each in clients(slug, url, is_personal=is_personal) if each.name == name)
    return found


def words(client: Client) -> list[str]:
    """What a shell would make of the command."""
    (command,) = (each.text for each in client.snippets if "terminal" in each.label)
    return shlex.split(command)


@pytest.mark.promise("server-page")
def test_six_clients_are_told_of_each_with_something_to_copy_and_how_far_it_was_tried() -> None:
    told = clients("acme", URL)
    assert [each.name for each in told] == ["Claude Code", "Cursor", "VS Code", "Codex", "Gemini CLI", "ChatGPT"]
    assert all(snippet.text and snippet.label for each in told for snippet in each.snippets)
    # Who was tried has a version, and nobody else.
    assert [each.name for each in told if each.version is None] == [
        each.name for each in told if each.tried is Tried.NOT
    ]


@pytest.mark.promise("server-page")
def test_the_commands_are_those_that_the_clients_take() -> None:
    assert words(client("Claude Code")) == [
        "claude", "mcp", "add", "--transport", "http", "--scope", "user", "acme", URL,
    ]  # fmt: skip
    assert words(client("Codex")) == ["codex", "mcp", "add", "acme", "--url", URL]
    assert words(client("Gemini CLI")) == [
        "gemini", "mcp", "add", "--transport", "http", "--scope", "user", "acme", URL,
    ]  # fmt: skip
    program, option, configuration = words(client("VS Code"))
    assert (program, option) == ("code", "--add-mcp")
    assert json.loads(configuration) == {"name": "acme", "type": "http", "url": URL}


def test_the_links_and_the_file_carry_the_same_server() -> None:
    cursor, code = client("Cursor"), client("VS Code")
    assert cursor.link is not None
    assert code.link is not None
    link = urlsplit(cursor.link)
    assert (link.scheme, link.netloc, link.path) == ("cursor", "anysphere.cursor-deeplink", "/mcp/install")
    asked = parse_qs(link.query, strict_parsing=True)
    assert asked["name"] == ["acme"]
    (configuration,) = asked["config"]
    assert json.loads(base64.b64decode(configuration, validate=True)) == {"url": URL}
    assert json.loads(cursor.snippets[0].text) == {"mcpServers": {"acme": {"url": URL}}}
    assert json.loads(code.snippets[1].text) == {"servers": {"acme": {"type": "http", "url": URL}}}
    assert code.link.startswith("vscode:mcp/install?")
    assert json.loads(unquote(code.link.partition("?")[2])) == {"name": "acme", "type": "http", "url": URL}


def test_on_a_personal_address_nothing_is_said_of_signing_in() -> None:
    for each in clients("acme", PERSONAL, is_personal=True):
        assert any(PERSONAL in snippet.text for snippet in each.snippets)
        assert "sign in" not in (each.note or "")
        assert "OAuth" not in (each.note or "")


def test_codex_is_given_a_personal_address_in_its_file_for_its_command_would_begin_a_sign_in() -> None:
    (snippet,) = client("Codex", url=PERSONAL, is_personal=True).snippets
    assert tomllib.loads(snippet.text) == {"mcp_servers": {"acme": {"url": PERSONAL}}}


def test_chatgpt_is_told_that_it_cannot_reach_this_machine() -> None:
    assert "https addresses on the internet" in (client("ChatGPT", url="http://127.0.0.1:8000/mcp").note or "")
    assert "https addresses on the internet" not in (client("ChatGPT").note or "")


@pytest.mark.parametrize("taken", ["workspace", "computer-use", "claude-in-chrome"])
def test_a_slug_that_claude_code_keeps_for_itself_gets_another_name(taken: str) -> None:
    assert client_name(taken) == f"{taken}-walkthroughs"
    assert words(client("Claude Code", slug=taken))[7] == f"{taken}-walkthroughs"


@given(HOSTILE.filter(lambda name: client_name(name) == name), HOSTILE)
@example("acme", ">>>>>>")  # a plus in base64, which a query would take for a blank
def test_whatever_stands_in_a_name_or_address_comes_out_as_it_went_in(name: str, url: str) -> None:
    assert shlex.split(claude_code_command(name, url, f"X: {name}"))[7:] == [name, url, "--header", f"X: {name}"]
    assert json.loads(mcp_servers(name, {"url": url})) == {"mcpServers": {name: {"url": url}}}
    told = {each.name: each for each in clients(name, url)}
    assert words(told["Codex"])[3:] == [name, "--url", url]
    assert words(told["Gemini CLI"])[7:] == [name, url]
    assert json.loads(words(told["VS Code"])[2])["url"] == url
    cursor, code = told["Cursor"].link or "", told["VS Code"].link or ""
    assert f"{cursor}{code}".isascii()
    assert not set(f"{cursor}{code}") & set("'\"<>` \\")
    asked = parse_qs(urlsplit(cursor).query, strict_parsing=True)
    assert asked["name"] == [name]
    assert json.loads(base64.b64decode(asked["config"][0], validate=True)) == {"url": url}
    assert json.loads(unquote(code.partition("?")[2]))["name"] == name


@pytest.mark.promise("server-page")
def test_a_real_shell_reads_the_commands_as_they_are_meant() -> None:
    hostile = 'it\'s "$HOME" `id` $(id) \\ 🗿; rm -rf ~ & #'
    command = claude_code_command("acme", URL, hostile).replace("claude", "printf '%s\\n'", 1)
    said = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True, env={})
    assert said.stdout.splitlines() == [
        "mcp", "add", "--transport", "http", "--scope", "user", "acme", URL, "--header", hostile,
    ]  # fmt: skip
