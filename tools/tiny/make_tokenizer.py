"""Learn the demo model's BPE from its corpus:  python make_tokenizer.py OUT.json"""

import sys

import tokenizer as bpe
from corpus import sample
from model import Shape


def main():
    lengths = (900, 900, 900, 1800, 1800, 3600, 3600, 3600, 7000)
    texts = [sample(f"bpe/{i}", lengths[i % len(lengths)]) for i in range(6000)]
    bpe.train(texts, Shape.vocab).save(sys.argv[1])


if __name__ == "__main__":
    main()
