"""Where the end of a request is told, whatever wire it came by: the log and the audit log."""

from __future__ import annotations

from qwenstack.serving.audit import RequestAudit
from qwenstack.serving.identity import Access, Identity
from qwenstack.serving.request_log import Outcome, log_request


class RequestNotes:
    """Tells those who keep notes what came of requests."""

    def __init__(self, audit: RequestAudit, *, logs_requests: bool) -> None:
        """Tell the audit log, and the log too where that is wanted."""
        self._audit = audit
        self._logs_requests = logs_requests

    def note(self, outcome: Outcome, identity: Identity, request_id: str) -> None:
        """Note one request that was answered or refused; what everybody may ask is not audited."""
        if self._logs_requests:
            log_request(outcome)
        if outcome.access is not Access.PUBLIC:
            self._audit.note(
                identity,
                f"{outcome.method} {outcome.route}",
                status=outcome.status,
                request_id=request_id,
                duration_s=outcome.duration_s,
            )
