"""What views of edits ask, by kind: a Lab makes them of its subject, an SAE and the SAE's store."""

from __future__ import annotations

from saelab.analysis.steering.erasing import Erasing
from saelab.analysis.steering.session import Session

SESSIONS = {"steering": Session, "erasing": Erasing}

__all__ = ["SESSIONS"]
