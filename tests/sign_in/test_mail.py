"""Messages as a mail server gets them, and what happens when it does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from adapters import mail
from adapters.mail import Outbox, SmtpMailer
from domain.errors import InvalidValue
from domain.sign_in import SignInState
from domain.tenancy import Millis, email_address
from tests.domain.generate import examples
from tests.sign_in.conftest import Mailbox

SENDER = "Führer durch Acme <guides@acme.example.com>"


def is_address(typed: str) -> bool:
    try:
        email_address(typed)
    except InvalidValue:
        return False
    return True


@contextmanager
def mail_server(
    host: str = "127.0.0.1", mailbox: Mailbox | None = None, *, speaks_utf8: bool = False
) -> Iterator[tuple[Mailbox, str]]:
    """A mail server, and its host and port."""
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    mailbox = mailbox or Mailbox()
    controller = Controller(mailbox, hostname=host, port=port, enable_SMTPUTF8=speaks_utf8)
    controller.start()
    try:
        yield mailbox, f"{host}:{port}"
    finally:
        controller.stop()


@pytest.mark.promise("auth.oauth")
async def test_a_message_arrives_as_it_was_meant() -> None:
    with mail_server() as (mailbox, at):
        assert await SmtpMailer(f"smtp://{at}", SENDER).send("ada@example.com", "Für Ada: “Hi”", "123456\n\nörks\n")
    (message,) = mailbox.to("ada@example.com")
    assert (message["subject"], message["from"], message["to"]) == ("Für Ada: “Hi”", SENDER, "ada@example.com")
    assert message.get_content().replace("\r\n", "\n") == "123456\n\nörks\n"
    assert message["message-id"].endswith("@acme.example.com>")
    assert message["date"].datetime.tzinfo is not None


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    ("to", "subject"),
    [
        ("ada@example.com\r\nBcc: all@example.com", "Your code"),
        ("ada@example.com", "Your code\r\nBcc: all@example.com"),
        ("ada@example.com, all@example.com", "Your code"),
        ("ada", "Your code"),
    ],
)
async def test_nothing_that_is_put_into_a_header_adds_another_one_or_another_reader(to: str, subject: str) -> None:
    with mail_server() as (mailbox, at):
        assert not await SmtpMailer(f"smtp://{at}", SENDER).send(to, subject, "123456")
    assert mailbox.messages == []


_ATOM = st.text("abcXYZ019!#$%&'*+-/=?^_`{|}~é한ष", min_size=1, max_size=8)
_ADDRESSES = st.builds(
    "{}@{}".format,
    st.lists(_ATOM, min_size=1, max_size=4).map(".".join),
    st.sampled_from(["example.com", "Sub.Example.org.", "exämple.com", "ｅxample.com"]),
)


@pytest.mark.promise("auth.identity")
def test_a_message_goes_to_the_very_address_that_becomes_the_identity() -> None:
    with mail_server(speaks_utf8=True) as (mailbox, at):

        @examples(150)
        @given(_ADDRESSES.filter(is_address))
        def check(typed: str) -> None:
            state = SignInState.keeping().send(typed, b"1" * 32, Millis(1))
            assert state.email is not None
            assert asyncio.run(SmtpMailer(f"smtp://{at}", SENDER).send(state.email, "Your code", "123456"))
            to, message = mailbox.messages.pop()
            assert (to, mailbox.messages) == (state.email, [])
            (reader,) = message["to"].addresses
            assert reader.addr_spec.encode(errors="surrogateescape").decode() == to  # RFC 6532: UTF-8 as it is

        check()


async def test_an_address_that_the_server_refuses_is_told_and_not_logged() -> None:
    with mail_server() as (mailbox, at), capture_logs() as logs:
        assert not await SmtpMailer(f"smtp://{at}", SENDER).send("ada@refused.example.com", "Your code", "123456")
    assert mailbox.messages == []
    assert [(line["event"], line["problem"]) for line in logs] == [
        ("a message could not be handed in to the mail server", "SMTPRecipientsRefused")
    ]
    assert "ada" not in str(logs)


async def test_a_server_that_is_not_there_or_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "_SEND_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, capture_logs() as logs:
        port = silent.getsockname()[1]
        async with asyncio.timeout(5):
            assert not await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER).send("ada@example.com", "Your code", "1")
    assert not await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER).send("ada@example.com", "Your code", "123456")
    assert len(logs) == 1


async def test_what_the_server_answers_is_logged_by_its_number_alone() -> None:
    class Talkative(Mailbox):
        async def handle_DATA(self, *_: Any) -> str:  # noqa: N802
            return "554 nothing for ada@example.com"

    with mail_server(mailbox=Talkative()) as (_, at), capture_logs() as logs:
        assert not await SmtpMailer(f"smtp://{at}", SENDER).send("ada@example.com", "Your code", "123456")
    assert [(line["problem"], line["code"]) for line in logs] == [("SMTPDataError", 554)]
    assert "ada" not in str(logs)


@pytest.mark.parametrize("login", ["", "ada:secret@"])
async def test_a_server_on_another_machine_is_told_nothing_in_the_clear(login: str) -> None:
    with mail_server("127.0.0.2") as (mailbox, at), capture_logs() as logs:
        assert not await SmtpMailer(f"smtp://{login}{at}", SENDER).send("ada@example.com", "Your code", "123456")
    assert mailbox.messages == []
    assert len(logs) == 1
    assert "secret" not in str(logs)


@pytest.mark.parametrize(
    "url",
    [
        "mail.example.com",
        "http://mail.example.com",
        "smtp://",
        "smtp://mail.example.com:x",
        "smtp://h/path",
        "smtp://h?q",
    ],
)
def test_an_unreadable_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(InvalidValue, match=r"CAIRN_SMTP_URL cannot be read: write it as smtp://") as refusal:
        SmtpMailer(url.replace("//", "//ada:secret@", 1), SENDER)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("sender", ["", "Acme Guides", "a@b, c@d", "a@b\nBcc: c@d"])
def test_a_sender_that_is_no_address_is_refused(sender: str) -> None:
    with pytest.raises(InvalidValue, match="CAIRN_MAIL_FROM is an address"):
        SmtpMailer("smtp://localhost", sender)


async def test_the_outbox_shows_every_message_and_keeps_the_newest_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "_MAX_REMEMBERED", 2)
    shown: list[str] = []
    outbox = Outbox(shown.append)
    for to, code in [("a@example.com", "000001"), ("b@example.com", "000002"), ("a@example.com", "000003")]:
        assert await outbox.send(to, "Your code", f"{code}\n\nIn 2026, type it.\n")
    assert outbox.codes == {"b@example.com": "000002", "a@example.com": "000003"}
    await outbox.send("c@example.com", "Your code", "000004")
    assert outbox.codes == {"a@example.com": "000003", "c@example.com": "000004"}
    assert shown[0] == "Message to a@example.com: Your code\n\n  000001\n\n  In 2026, type it.\n"
    assert len(shown) == 4
