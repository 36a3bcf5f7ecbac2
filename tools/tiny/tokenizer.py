"""The demo model's byte-level BPE: V4's pre-tokenizer and control tokens, a small vocabulary.

Merges are learned from the corpus with every digit kept alone, so numbers are read digit by digit;
the pre-tokenizer that goes with the model is V4's own.
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel

from template import ASSISTANT, BOS, DSML, END_THINK, EOS, PAD, REMINDER, TASKS, THINK, USER

FIRST = (BOS, EOS, PAD)
LAST = (USER, ASSISTANT, THINK, END_THINK, DSML, REMINDER, *TASKS)

WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
STAGES = (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", WORDS)


def pre_tokenizer(stages=STAGES):
    splits = [pre_tokenizers.Split(Regex(stage), "isolated") for stage in stages]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, bytes_])


def train(texts, size):
    """A tokenizer of exactly `size` entries: BOS, EOS, pad, the BPE, the other control tokens."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer((r"\p{N}", *STAGES[1:]))
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(FIRST) - len(LAST),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    entries = sorted(learned["vocab"], key=learned["vocab"].get)
    vocab = {token: i for i, token in enumerate((*FIRST, *entries, *LAST))}
    if len(vocab) != size:
        raise ValueError(f"the corpus yields {len(vocab)} entries, not {size}")
    merges = [tuple(m) for m in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = ByteLevel()
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in (*FIRST, *LAST)])
    return tokenizer


def load(path):
    return Tokenizer.from_file(str(path))
