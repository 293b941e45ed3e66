"""What must outlive a process: API keys, the audit log, what tenants keep and what was used, in SQLite or PostgreSQL.

`open_database` opens or makes a database and brings its tables up to date; `ApiKeys`, `AuditLog`, `UsageRecords`,
`StoredResponses`, `StoredFiles` and `StoredBatches` are what it holds, `ServerLease` says which servers use it,
`back_up` and `restore` copy it. Whatever a function here has returned from is on the disk. The package knows nothing of
HTTP or of models.
"""

from qwenstack.storage.api_keys import ApiKey, ApiKeys, KeySnapshot, NewKey, is_tenant_name
from qwenstack.storage.audit import AuditEntry, AuditLog, AuditRecord, Verification
from qwenstack.storage.backup import back_up, restore
from qwenstack.storage.batches import LONGEST_PUT_OFF_S, NO_TOKENS, BatchStatus, BatchTokens, StoredBatch, StoredBatches
from qwenstack.storage.content_folder import Draft
from qwenstack.storage.database import Database, open_database
from qwenstack.storage.files import FileInUseError, StoredFile, StoredFiles
from qwenstack.storage.responses import StoredResponse, StoredResponses
from qwenstack.storage.servers import ServerLease
from qwenstack.storage.usage import Usage, UsageKey, UsageRecords

__all__ = [
    "LONGEST_PUT_OFF_S",
    "NO_TOKENS",
    "ApiKey",
    "ApiKeys",
    "AuditEntry",
    "AuditLog",
    "AuditRecord",
    "BatchStatus",
    "BatchTokens",
    "Database",
    "Draft",
    "FileInUseError",
    "KeySnapshot",
    "NewKey",
    "ServerLease",
    "StoredBatch",
    "StoredBatches",
    "StoredFile",
    "StoredFiles",
    "StoredResponse",
    "StoredResponses",
    "Usage",
    "UsageKey",
    "UsageRecords",
    "Verification",
    "back_up",
    "is_tenant_name",
    "open_database",
    "restore",
]
