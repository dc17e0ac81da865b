"""The process that makes a map for another: see `background`."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import traceback
from pathlib import Path

from saelab.analysis.maps import keeping
from saelab.analysis.maps.making import latent_map
from saelab.stores import FeatureStore
from saelab.types import SaelabError, StoreError

NICE = 5
"""The kernel, which answers meanwhile, goes first."""


def main() -> None:
    """Make the map that a line on the standard input asks for, and tell of it on the standard output."""
    # libraries may print or ask: what they do goes elsewhere, and to no child of theirs
    asked, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def say(**line: object) -> None:
        told.write(json.dumps(line).encode() + b"\n")
        told.flush()

    def outlive_none() -> None:
        asked.read()  # returns where the other process has ended
        os._exit(1)

    wanted = json.loads(asked.readline())
    threading.Thread(target=outlive_none, daemon=True).start()
    with contextlib.suppress(AttributeError, OSError):  # Windows
        os.nice(NICE)
    try:
        store = FeatureStore.open(Path(wanted["folder"]))
        if keeping.key(store, wanted["options"]) != wanted["key"]:
            message = f"A store must stay as it is. Got another one in {store.folder}. Open it anew."
            raise StoreError(message)
        latent_map(store, **wanted["options"], progress=lambda what, share: say(what=what, share=share))
    except SaelabError as error:
        say(error=type(error).__name__, message=str(error))
    except Exception as error:
        trace = traceback.format_exc().strip()
        message = (
            f"A map must be made without a fault. Got {type(error).__name__}: {error}. It was here: {trace}"
        )
        say(error="JobError", message=message)
