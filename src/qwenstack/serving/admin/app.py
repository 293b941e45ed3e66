"""The administration as an application: the public one's parts behind the same gate, with other routes."""

from __future__ import annotations

from fastapi import FastAPI

from qwenstack.core.errors import ConfigError
from qwenstack.serving.access import AdminRoute
from qwenstack.serving.admin.adapter_shelf import AdapterShelf
from qwenstack.serving.admin.adapters import adapter_routes
from qwenstack.serving.admin.audit import audit_routes
from qwenstack.serving.admin.keys import key_routes
from qwenstack.serving.admin.models import model_routes
from qwenstack.serving.admin.usage import usage_routes
from qwenstack.serving.app import ServerParts, bare_app, guard, openapi_routes
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.identity import Access
from qwenstack.storage import ApiKeys, AuditLog, UsageRecords

_DESCRIPTION = """
The administration of a qwenstack server. Every address here takes a key of the scope `admin`, or the one in the file
that the server names when it starts.

- Every change is in the audit log, with who made it.
- Lists have `data` and `has_more`; `after` takes the id of the last element of the page before.
- Errors have the body of the public API: `{"error": {"message", "type", "param", "code"}}`.
"""


def create_admin_app(public: FastAPI, config: ServeConfig) -> FastAPI:
    """Build the administration of the server whose public application `create_app` made.

    Args:
        public: lends its model, keys, metrics and audit log.
        config: what `admin_config` returned.

    Raises:
        ConfigError: the server has no database, so that acts could not be written down.
    """
    parts: ServerParts = public.state.parts
    if parts.database is None:
        raise ConfigError("The administration needs a database for its audit log; `storage.url` is `off`.")
    app = bare_app(title="qwenstack administration", description=_DESCRIPTION)
    log = AuditLog(parts.database)
    routers = (
        key_routes(ApiKeys(parts.database), parts.keys),
        model_routes(parts.backend.service),
        adapter_routes(AdapterShelf(parts.llm, parts.backend.service, log, folder=config.adapters_folder)),
        usage_routes(UsageRecords(parts.database)),
        audit_routes(log),
        openapi_routes(app.openapi, AdminRoute),
    )
    guard(app, routers, config=config, parts=parts, unmatched=Access.ADMIN)
    return app
