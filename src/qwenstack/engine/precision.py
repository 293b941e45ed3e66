"""How finely a request is computed: decided once, from the length of its prompt, when it is admitted.

Rounding activations to 16 bits costs short prompts little and long ones much. A request keeps its class to the end, and
the class is part of the key of cached prefixes, so that its tokens do not depend on what else runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwenstack.kernels import ActivationBits


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPolicy:
    """Prompts of at most `short_prompt_tokens` run at 16 bits, longer ones at `activation_bits`."""

    activation_bits: ActivationBits
    short_prompt_tokens: int = 0
    """0: all prompts run at `activation_bits`."""

    def choose(self, num_prompt_tokens: int) -> ActivationBits:
        """Return the class of a request with a prompt of this length."""
        return 16 if num_prompt_tokens <= self.short_prompt_tokens else self.activation_bits

    @property
    def classes(self) -> tuple[ActivationBits, ...]:
        """The classes that requests may get: as many forward passes a step may take."""
        if self.activation_bits == 8 and self.short_prompt_tokens > 0:
            return (8, 16)
        return (self.activation_bits,)

    def __str__(self) -> str:
        """Say it in words, for `doctor` and `bench`."""
        if len(self.classes) == 1:
            return f"{self.activation_bits} bits"
        return f"16 bits for prompts of at most {self.short_prompt_tokens} tokens, 8 bits for longer ones"
