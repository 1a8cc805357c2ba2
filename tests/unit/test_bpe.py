"""The tokenizer: known merges, and the same tokens whatever the order of the captions."""

from collections import Counter
from pathlib import Path

import yaml

from fewstep.backbones.bpe import learn_merges, new_tokenizer
from fewstep.backbones.sd_new import new_stable_diffusion, save_pipeline
from fewstep.config.teacher import TrainTeacherConfig

CAPTIONS = ["a small red star on a blue background", "a large green circle on a white background"]


def test_merges_follow_frequency_then_the_alphabet() -> None:
    words = Counter({("l", "o", "w</w>"): 5, ("l", "o", "w", "e", "r</w>"): 2, ("n", "e", "w</w>"): 6})
    assert learn_merges(words, 3) == [("l", "o"), ("e", "w</w>"), ("n", "ew</w>")]
    assert len(learn_merges(words, 100)) == 7, "nothing is left to merge"


def test_every_word_becomes_one_token_and_unknown_ones_stay_spellable() -> None:
    tokenizer = new_tokenizer(CAPTIONS, 700, 12)
    assert tokenizer.tokenize(CAPTIONS[0]) == [f"{word}</w>" for word in CAPTIONS[0].split()]
    assert tokenizer.unk_token_id not in tokenizer("zebra é", add_special_tokens=False).input_ids
    ids = tokenizer("a star", padding="max_length").input_ids
    assert len(ids) == 12
    assert ids[0] == tokenizer.bos_token_id
    assert ids[3] == tokenizer.eos_token_id


def test_the_vocabulary_is_a_function_of_the_captions() -> None:
    assert new_tokenizer(CAPTIONS, 700, 12).get_vocab() == new_tokenizer(CAPTIONS[::-1], 700, 12).get_vocab()


def test_the_saved_tokenizer_does_not_depend_on_its_last_call(tmp_path: Path) -> None:
    params = yaml.safe_load((Path(__file__).parents[1] / "integration/miniature.yaml").read_text())
    backbone = new_stable_diffusion(
        TrainTeacherConfig.model_validate(params["train_teacher"]), 16, CAPTIONS, 0
    )
    for asked in ("fresh", "padded"):
        if asked == "padded":
            backbone.tokens(CAPTIONS)
        save_pipeline(backbone, tmp_path / asked)
    saved = [(tmp_path / asked / "tokenizer/tokenizer.json").read_bytes() for asked in ("fresh", "padded")]
    assert saved[0] == saved[1]
