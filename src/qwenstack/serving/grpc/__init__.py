"""The model over gRPC: the services of `proto/qwenstack/v1`, beside the HTTP application and on its parts.

Needs the extra `grpc`. `create_grpc_server` builds the server; who may call what, limits and failures are the gate's.
"""

import os
from importlib.util import find_spec

from qwenstack.core.errors import MissingExtraError

if any(find_spec(name) is None for name in ("grpc", "grpc_health", "grpc_reflection")):
    raise MissingExtraError(
        "The gRPC server needs packages that are not installed. In the project's folder, "
        "`.venv/bin/pip install -e '.[grpc]'` installs them; or leave `server.grpc_port` out."
    )

# Read by the library when it is imported. It would get ready for forks, with a line on standard error each time that
# the engine's process is started; our processes begin with a program of their own.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from qwenstack.serving.grpc.server import GrpcServer, create_grpc_server

__all__ = ["GrpcServer", "create_grpc_server"]
