"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from cyclopts import Parameter

ModelArgument: TypeAlias = Annotated[
    str | None,
    Parameter(
        help="A name from 'qwenstack models', a folder or .gguf file, hf:ORG/NAME[:FILE], ms:ORG/NAME[:FILE], or auto."
    ),
]
Assignments: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        negative="",
        show_default=False,
        help="A setting as KEY=VALUE, such as engine.max_num_seqs=8; 'qwenstack config show' lists them.",
    ),
]
AsJson: TypeAlias = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON.")]
