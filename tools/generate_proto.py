"""Write the Python code of `proto/` into the package: `python tools/generate_proto.py [FOLDER]`.

It is committed, so that nobody who installs the package needs the generator; a test holds it to a fresh generation.
"""

from __future__ import annotations

import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
PROTO = ROOT / "proto"
PACKAGE = ROOT / "src/qwenstack/serving/grpc/v1"
_INIT = '"""Generated from `proto/qwenstack/v1` by `tools/generate_proto.py`; not to be edited."""\n'
_IMPORT = re.compile(r"^from qwenstack\.v1 import ", re.MULTILINE)


def generate(folder: Path) -> None:
    """Write the modules and their types into a folder.

    Raises:
        SystemExit: the generator refuses a file; it has said why.
    """
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as temporary:
        outputs = [f"--{kind}_out={temporary}" for kind in ("python", "pyi", "grpc_python")]
        status = protoc.main(
            ["protoc", f"--proto_path={PROTO}", f"--proto_path={files('grpc_tools') / '_proto'}", *outputs, *sources]
        )
        if status != 0:
            sys.exit(status)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(_INIT)
        for path in (Path(temporary) / "qwenstack/v1").iterdir():
            text = path.read_text()
            if path.name.endswith("_pb2_grpc.py") and "class " not in text:
                continue  # of a file without services
            # The generator takes the folder of the .proto files for that of the Python package, and leaves types open.
            text = _IMPORT.sub("from qwenstack.serving.grpc.v1 import ", text)
            (folder / path.name).write_text(text.replace("_Mapping]", "_Mapping[str, object]]"))


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
