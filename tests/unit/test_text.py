"""Two spellings of one text are one text, wherever it comes from."""

from pathlib import Path

import pytest

from fewstep.config.sampling import SamplingConfig
from fewstep.core.keyed import Key
from fewstep.core.text import normalised, read_text
from fewstep.sampling.triplets import prompts_of

SPELLINGS = {
    "byte-order mark": "\ufeffein Bär\nim Wald",
    "Windows line ends": "ein Bär\r\nim Wald\r\n",
    "old line ends": "ein Bär\rim Wald\r",
    "decomposed": "ein Ba\u0308r\nim Wald",
    "space around": "  ein Bär\nim Wald \n\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_one_text(spelling: str, tmp_path: Path) -> None:
    assert normalised(spelling) == "ein Bär\nim Wald"
    (tmp_path / "a.txt").write_bytes(spelling.encode())
    assert read_text(tmp_path / "a.txt") == "ein Bär\nim Wald"


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_file_of_prompts_holds_the_same_prompts_in_every_spelling(spelling: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(spelling.encode())
    assert set(prompts_of(tmp_path / "prompts.txt", Key(0, "prompts"), range(2))) == {"ein Bär", "im Wald"}


def test_a_negative_prompt_is_normalised_too() -> None:
    assert SamplingConfig(negative_prompt=" Ba\u0308r\r\n").negative_prompt == "Bär"


def test_what_is_normalised_stays_as_it_is() -> None:
    for text in SPELLINGS.values():
        assert normalised(normalised(text)) == normalised(text)
