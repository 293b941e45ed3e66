"""What must outlive a process: API keys and the audit log, in SQLite or PostgreSQL.

`open_database` opens or makes a database and brings its tables up to date; `ApiKeys` and `AuditLog` are what it holds,
`back_up` and `restore` copy it. Whatever a function here has returned from is on the disk. The package knows nothing of
HTTP or of models.
"""

from qwenstack.storage.api_keys import ApiKey, ApiKeys, KeySnapshot, NewKey
from qwenstack.storage.audit import AuditEntry, AuditLog, AuditRecord, Verification
from qwenstack.storage.backup import back_up, restore
from qwenstack.storage.database import Database, open_database

__all__ = [
    "ApiKey",
    "ApiKeys",
    "AuditEntry",
    "AuditLog",
    "AuditRecord",
    "Database",
    "KeySnapshot",
    "NewKey",
    "Verification",
    "back_up",
    "open_database",
    "restore",
]
