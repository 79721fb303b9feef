"""Messages to people: through a mail server, or, for development, into the terminal."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, localtime, make_msgid
from urllib.parse import unquote, urlsplit

import aiosmtplib
import structlog

from domain.errors import InvalidValue
from domain.tenancy import BREAKS_A_LINE, email_address

# A person waits for it, before a page.
_SEND_SECONDS = 10.0
_PORTS = {"smtp": 587, "smtps": 465}  # RFC 6409, RFC 8314
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CODE = re.compile(r"\b[0-9]{6}\b")
_MAX_REMEMBERED = 1_000

_log = structlog.get_logger(__name__)


class SmtpMailer:
    """A `Mailer` that hands each message to a mail server.

    `url` is `smtp://user:password@host:port` or `smtps://…`, its parts percent-encoded; `sender` is an address, or a
    name and an address as in `Acme Guides <guides@acme.com>`. By `smtp` the connection is encrypted before anything is
    said (RFC 3207), or there is none; only with a server on this machine it may stay in the clear.

    Raises:
        InvalidValue: when either cannot be read.
    """

    where = None

    def __init__(self, url: str, sender: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
        except (ValueError, KeyError):
            raise _unreadable_url() from None
        if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise _unreadable_url()
        try:
            (self._sender,) = SMTP.header_factory("From", SMTP.header_store_parse("From", sender)[1]).addresses
        except (MessageError, ValueError, IndexError):
            raise _unreadable_sender() from None
        # Looser than `email_address`: a machine may send by its own name, and nobody is known by this.
        if not self._sender.username or not self._sender.domain or BREAKS_A_LINE.search(sender):
            raise _unreadable_sender()
        is_local = parts.hostname in _LOOPBACK
        self._arguments: Mapping[str, object] = {
            "hostname": parts.hostname,
            "port": port,
            "username": unquote(parts.username) if parts.username else None,
            "password": unquote(parts.password) if parts.password else None,
            "use_tls": parts.scheme == "smtps",
            # None: where it is offered.
            "start_tls": False if parts.scheme == "smtps" else (None if is_local else True),
            "validate_certs": not is_local,
        }

    async def send(self, to: str, subject: str, text: str) -> bool:
        try:
            message = self._message(to, subject, text)
            async with asyncio.timeout(_SEND_SECONDS):
                await aiosmtplib.send(message, sender=self._sender.addr_spec, recipients=[to], **self._arguments)  # type: ignore[arg-type]  # as it takes them
        except (aiosmtplib.SMTPException, OSError, MessageError, ValueError, IndexError, InvalidValue) as error:
            # What the server says may hold the address, so its words are not repeated.
            code = error.code if isinstance(error, aiosmtplib.SMTPResponseException) else None
            _log.warning("a message could not be handed in to the mail server", problem=type(error).__name__, code=code)
            return False
        return True

    def _message(self, to: str, subject: str, text: str) -> EmailMessage:
        message = EmailMessage(policy=SMTP)
        message["From"] = self._sender
        mailbox, _, domain = email_address(to).partition("@")
        # Of its parts: read from a whole, letters beyond ASCII are a defect.
        message["To"] = Address(username=mailbox, domain=domain)
        message["Subject"] = subject
        message["Date"] = format_datetime(localtime())
        message["Message-ID"] = make_msgid(domain=self._sender.domain)
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834 section 5: no holiday notes in answer
        message.set_content(text)
        return message


def _unreadable_url() -> InvalidValue:
    # Without the URL itself, which holds a password.
    return InvalidValue(
        "CAIRN_SMTP_URL cannot be read: write it as smtp://user:password@host:port or smtps://…, with special "
        "characters percent-encoded"
    )


def _unreadable_sender() -> InvalidValue:
    return InvalidValue(
        "CAIRN_MAIL_FROM is an address, or a name and an address, such as Acme Guides <guides@acme.com>"
    )


class Outbox:
    """A `Mailer` for development: `show` gets each message, and the latest code for each address is remembered."""

    where = "This is a development server: the message is shown in the terminal that it runs in."

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._codes: OrderedDict[str, str] = OrderedDict()

    @property
    def codes(self) -> Mapping[str, str]:
        """The code in the latest message to each address."""
        return self._codes

    async def send(self, to: str, subject: str, text: str) -> bool:
        if code := _CODE.search(text):
            self._codes[to] = code[0]
            self._codes.move_to_end(to)
            while len(self._codes) > _MAX_REMEMBERED:
                self._codes.popitem(last=False)
        lines = "\n".join(f"  {line}".rstrip() for line in text.rstrip().split("\n"))
        self._show(f"Message to {to}: {subject}\n\n{lines}\n")
        return True
