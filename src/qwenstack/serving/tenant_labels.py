"""Names of tenants as labels of metrics: bounded, since each label is a row that Prometheus keeps for weeks."""

from __future__ import annotations

MOST_TENANTS = 100
# A tenant's own name begins with a letter or a digit (`storage.api_keys`), so that these two are nobody's.
NAMELESS = "_none"
OTHERS = "_other"


class TenantLabels:
    """Gives the first tenants labels of their own, and all others one together."""

    def __init__(self, most: int = MOST_TENANTS) -> None:
        """Give out so many."""
        self._most = most
        self._known: set[str] = set()

    def label(self, tenant: str) -> str:
        """Return a tenant's label, the same each time."""
        if not tenant:
            return NAMELESS
        if tenant not in self._known and len(self._known) < self._most:
            self._known.add(tenant)
        return tenant if tenant in self._known else OTHERS
