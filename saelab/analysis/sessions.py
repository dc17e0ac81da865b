"""What views with a session ask, by kind: a Lab makes them of its subject, an SAE and the SAE's store."""

from __future__ import annotations

from saelab.analysis.attention.looking import HeadSession
from saelab.analysis.steering.erasing import Erasing
from saelab.analysis.steering.session import Session

SESSIONS = {"steering": Session, "erasing": Erasing, "heads": HeadSession}

__all__ = ["SESSIONS"]
