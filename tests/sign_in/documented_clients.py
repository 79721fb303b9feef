"""`cairn`, for which CLIENT_DOCUMENTS (JSON, by client id) is all there is on the web: loopback is not public."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from dependency_injector import providers

from entrypoints.cli import main
from entrypoints.container import Container


class GivenDocuments:
    """`ClientDocuments` that are all there are."""

    async def fetch(self, client_id: str) -> Mapping[str, Any] | None:
        document: Mapping[str, Any] | None = json.loads(os.environ["CLIENT_DOCUMENTS"]).get(client_id)
        return document


if __name__ == "__main__":
    Container.client_documents.override(providers.Object(GivenDocuments()))
    main.main(sys.argv[1:])
