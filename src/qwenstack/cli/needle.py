"""`qwenstack bench needle`: whether a model finds one sentence in a long text, as a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from qwenstack.cli.loading import load_llm
from qwenstack.cli.options import AsJson, Assignments, ModelArgument
from qwenstack.cli.output import print_json, print_table
from qwenstack.cli.settings import load_settings
from qwenstack.core.errors import ConfigError
from qwenstack.core.messages import Message
from qwenstack.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from qwenstack.engine import LLM
    from qwenstack.evals.needle_report import NeedleReport


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is hidden where."""

    lengths: Annotated[
        tuple[int, ...], Parameter(consume_multiple=True, negative="", validator=Number(gte=128, lte=1 << 24))
    ] = (8192, 32_768)
    """Tokens of prompt and answer together."""
    depths: Annotated[int, Parameter(validator=Number(gte=1, lte=101))] = 11
    """Places for the needle, evenly from the start of the text to its end."""
    language: Literal["en", "zh"] = "en"
    """Language of the text and the question."""
    hay: Path | None = None
    """A text file to hide the needle in; default: sentences made for it."""
    seed: int = 0
    """Chooses the made sentences and the numbers."""


_DEFAULT_SEARCH = Search()


def needle(
    model: ModelArgument = None,
    /,
    *,
    search: Search = _DEFAULT_SEARCH,
    out: Annotated[Path, Parameter(help="The picture; answers go beside it as .jsonl.")] = Path("needle.svg"),
    yarn_factor: Annotated[float | None, Parameter(help="Stretch the context by this factor with YaRN.")] = None,
    num_threads: Annotated[int | None, Parameter(help="Threads of the kernels.")] = None,
    as_json: AsJson = False,
    assignments: Assignments = (),
) -> None:
    """Hide a number in long texts and ask for it; answers that are there already are not asked again."""
    from qwenstack.evals.needle import places, run
    from qwenstack.evals.needle_picture import draw
    from qwenstack.evals.needle_report import Setup, append_cell, read_report

    if out.suffix != ".svg":
        raise ConfigError(f"`--out` is {str(out)!r}; the picture is SVG: give a name that ends in .svg.")
    flags = {
        "model": model,
        "engine.max_model_len": max(search.lengths),
        "engine.yarn_factor": yarn_factor,
        "engine.num_threads": num_threads,
    }
    settings = load_settings(assignments, flags).value
    hay = _hay(search)
    answers_path = out.with_suffix(".jsonl")
    llm = load_llm(settings)
    setup = Setup(
        model=llm.card.id,
        language=search.language,
        hay="made" if search.hay is None else search.hay.name,
        seed=search.seed,
        yarn_factor=settings.engine.yarn_factor,
    )
    done = {cell.place for cell in read_report(answers_path, setup).cells}
    wanted = places(search.lengths, search.depths)
    asked = run(LLMOnHay(llm), wanted, language=search.language, seed=search.seed, hay=hay, done=done)
    for cell in asked:
        append_cell(answers_path, setup, cell)
        word = "found" if cell.found else f"not found, {cell.answer!r}"
        sys.stderr.write(f"{cell.place.length} tokens, {cell.place.depth_percent} %: {word} ({cell.seconds:.1f} s)\n")
    report = read_report(answers_path, setup)
    out.write_text(draw(report), encoding="utf-8")
    if as_json:
        print_json(report.as_json())
    else:
        _print_report(report)


@dataclass(frozen=True, slots=True)
class LLMOnHay:
    """An `LLM` as the needle test wants it: greedy, and with plain text encoded without a token before it."""

    llm: LLM

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text."""
        tokenizer = self.llm.get_tokenizer()
        ids = tokenizer.encode(text)
        return ids if tokenizer.bos_token_id is None else ids[1:]

    def encode_chat(self, text: str) -> list[int]:
        """Return the ids of a conversation with one user's turn; thinking is off, the answer is one number."""
        messages = [Message(role="user", content=text)]
        return self.llm.get_tokenizer().encode_chat(messages, enable_thinking=False)

    def answer(self, prompt_token_ids: Sequence[int], max_tokens: int) -> str:
        """Return the likeliest answer."""
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        (output,) = self.llm.generate({"prompt_token_ids": prompt_token_ids}, params)
        return output.outputs[0].text


@dataclass(frozen=True, slots=True)
class _Hay:
    """The sentences of a search, from the first on each time."""

    search: Search
    text: str | None

    def __call__(self) -> Iterator[str]:
        from qwenstack.evals.haystack import made_sentences, sentences_of

        if self.text is None:
            return made_sentences(self.search.language, self.search.seed)
        return sentences_of(self.text, self.search.language)


def _hay(search: Search) -> _Hay:
    if search.hay is None:
        return _Hay(search, None)
    try:
        text = search.hay.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(search.hay)!r} cannot be read as text: {error}. Give a UTF-8 file.") from error
    if not text.strip():
        raise ConfigError(f"{str(search.hay)!r} is empty; give a text with sentences.")
    return _Hay(search, text)


def _print_report(report: NeedleReport) -> None:
    print_table(
        ("TOKENS", "DEPTH", "FOUND", "SECONDS"),
        [
            (
                str(cell.place.length),
                f"{cell.place.depth_percent} %",
                "yes" if cell.found else "no",
                f"{cell.seconds:.1f}",
            )
            for cell in sorted(report.cells, key=lambda cell: (cell.place.length, cell.place.depth_percent))
        ],
    )
